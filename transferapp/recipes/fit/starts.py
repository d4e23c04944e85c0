"""What contenders of the bake-off start from: the solved classifier as a head, or, from scratch, nothing at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from transferapp.backbones.feature_store import CENTER
from transferapp.backbones.keras_internals import all_layers
from transferapp.config import FitConfig
from transferapp.data.dataset import Dataset
from transferapp.recipes.fit.class_weighting import Weighting
from transferapp.recipes.fit.measure import Candidate
from transferapp.system.progress import Progress
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.probe import fit_probe

if TYPE_CHECKING:
    import keras

    from transferapp.training.settings import Weights


def linear_spec(config: FitConfig) -> HeadSpec:
    """The form of a head that starts from the solved classifier: linear, with what is to regularize it."""
    spec = config.head_spec
    return HeadSpec(dropout=spec.dropout, dropconnect=spec.dropconnect, l1=spec.l1, l2=spec.l2)


def solved_head(chosen: Candidate, train: Dataset, weighting: Weighting, config: FitConfig, progress: Progress) -> Head:
    """The linear classifier solved on the top stage: where a tail's head stands, wherever the one that would ship is cut."""
    top = chosen.trunk.top
    columns = chosen.trunk.row_slices[top.index]
    with progress.task(f"{chosen.spec.name}: {len(train)} training images", len(train)) as advance:
        rows = chosen.store.collect(train.records, [CENTER], advance)[:, 0, columns]
    with progress.task("solving the head to start from", 0):
        labels, l2 = train.labels, chosen.validations[top.index].l2
        probe = fit_probe(rows, labels, len(train.class_names), l2, sample_weight=weighting.of(labels))
    return Head.of(probe, linear_spec(config))


def blank_head(chosen: Candidate, num_classes: int, config: FitConfig) -> Head:
    """A head that knows nothing: of a linear one all weights are 0, of hidden layers they are random."""
    channels = chosen.trunk.top.shape[2]
    mean, std = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    if config.head_spec.hidden:
        return Head(config.head_spec, mean, std, num_classes)
    weights = (np.zeros((channels, num_classes), np.float32), np.zeros(num_classes, np.float32))
    return Head(config.head_spec, mean, std, num_classes, weights)


def random_weights(backbone: keras.Model, seed: int) -> Weights:
    """What pretraining is to be compared with: new random weights for the same network, in the order of `backbone.weights`.

    Those by which a `Normalization` scales pixels stay: they are of the input and not learned, and it computes with constants
    made of them.
    """
    import keras

    keras.utils.set_random_seed(seed)
    clone = keras.models.clone_model(backbone)
    for ours, theirs in zip(all_layers(clone), all_layers(backbone), strict=True):
        if isinstance(theirs, keras.layers.Normalization):
            ours.set_weights(theirs.get_weights())
    weights: Weights = clone.get_weights()
    return weights
