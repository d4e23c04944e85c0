"""Images as a network sees them, for commands that train nothing: audited, clustered, and their features at every stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transferapp.backbones.feature_store import CENTER, FeatureStore, trim_cache
from transferapp.backbones.registry import backbone_spec
from transferapp.backbones.trunk import Trunk
from transferapp.config import FitConfig
from transferapp.data.audit import audit, peek_sizes
from transferapp.data.dataset import Dataset
from transferapp.data.duplicates import with_clusters
from transferapp.data.label_fixes import apply_label_fixes
from transferapp.data.sources import open_source
from transferapp.recipes.fit.measure import Workshop, workshop
from transferapp.system.progress import Progress
from transferapp.system.threads import cpu_cores


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        source: What the source delivered, its labels corrected.
        dataset: Audited, with clusters.
        trunk: The network; None where no image is usable.
        rows: float32, shape (n, trunk.row_size): the center view's features, every stage beside the other.
    """

    source: Dataset
    dataset: Dataset
    trunk: Trunk | None
    rows: np.ndarray


def look(config: FitConfig, progress: Progress, *, refuse: bool = True) -> Look:
    """Read every image and push it through the backbone.

    Args:
        config: Which images, corrections of labels, and backbone.
        progress: Who is told.
        refuse: Whether a set that cannot be learned from is an error.

    Raises:
        DataError: The images cannot be used; the message says why.
        WeightsError: The backbone's weights are not to be had.
    """
    source = open_source(config.data, options=config.source, progress=progress)
    if config.label_fixes:
        source = apply_label_fixes(source, Path(config.label_fixes))
    with workshop(config) as shop:
        spec = backbone_spec(config.backbone)
        shop.peeked = peek_sizes(source)
        shop.order(spec)
        with progress.task(f"reading {len(source)} images", len(source)) as advance:
            dataset = with_clusters(audit(source, workers=cpu_cores(), progress=advance, refuse=refuse))
        if not len(dataset):
            return Look(source, dataset, None, np.empty((len(dataset), 0), np.float32))
        trunk = _trunk(shop, config, progress)
        trim_cache()
        store = FeatureStore(trunk, workers=cpu_cores(), note=progress.note)
        with progress.task(f"{spec.name}: {len(dataset)} images", len(dataset)) as advance:
            rows = store.collect(dataset.records, [CENTER], advance)[:, 0]
        return Look(source, dataset, trunk, rows)


def _trunk(shop: Workshop, config: FitConfig, progress: Progress) -> Trunk:
    spec = backbone_spec(config.backbone)
    with progress.task(f"waiting for {spec.name}", 0):
        return shop.trunk(spec)
