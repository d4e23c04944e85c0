"""Audited images with their features at every stage, for recipes that train nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transferapp.backbones.feature_store import CENTER, FeatureStore, trim_cache
from transferapp.backbones.registry import backbone_spec
from transferapp.backbones.trunk import Trunk
from transferapp.config import FitConfig
from transferapp.data.audit import audit
from transferapp.data.dataset import Dataset
from transferapp.data.label_fixes import apply_label_fixes
from transferapp.data.near_duplicates import with_clusters
from transferapp.data.sources import open_source
from transferapp.recipes.fit.measure import backbone_loader
from transferapp.system.progress import Progress
from transferapp.system.threads import cpu_cores


@dataclass(frozen=True, eq=False)
class Featurized:
    """Audited images with their features.

    Attributes:
        source: The images as their source delivered them, with corrected labels.
        dataset: Audited, with clusters of near-duplicates.
        trunk: The network; None where no image is usable.
        rows: float32, shape (n, trunk.row_size): features of the center views, all stages side by side.
    """

    source: Dataset
    dataset: Dataset
    trunk: Trunk | None
    rows: np.ndarray


def featurize(config: FitConfig, progress: Progress, *, refuse: bool = True) -> Featurized:
    """Audit every image and compute its features.

    Args:
        config: Names the images, corrections of labels, and the backbone.
        progress: Receives progress updates.
        refuse: Whether a set that cannot be trained on is an error.

    Raises:
        DataError: The images cannot be used.
        WeightsError: The weights of the backbone are not available.
    """
    source = open_source(config.data, options=config.source, progress=progress)
    if config.label_fixes:
        source = apply_label_fixes(source, Path(config.label_fixes))
    with backbone_loader(config, source) as loader:
        spec = backbone_spec(config.backbone)
        loader.start(spec)
        with progress.task(f"reading {len(source)} images", len(source)) as advance:
            dataset = with_clusters(audit(source, workers=cpu_cores(), progress=advance, refuse=refuse))
        if not len(dataset):
            return Featurized(source, dataset, None, np.empty((len(dataset), 0), np.float32))
        with progress.task(f"waiting for {spec.name}", 0):
            trunk = loader.trunk(spec)
        trim_cache()
        store = FeatureStore(trunk, workers=cpu_cores(), note=progress.note)
        with progress.task(f"{spec.name}: {len(dataset)} images", len(dataset)) as advance:
            rows = store.collect(dataset.records, [CENTER], advance)[:, 0]
        return Featurized(source, dataset, trunk, rows)
