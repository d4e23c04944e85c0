"""Training data of a candidate: cached activations above a cut, or fresh views of the images themselves."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transferapp.backbones.engine import BATCH_SIZE, resolve_engine
from transferapp.backbones.feature_store import CENTER, FeatureStore, random_view_name
from transferapp.backbones.stages import Stage, stage_named
from transferapp.backbones.trunk import CutTrunk, cut_trunk
from transferapp.config import USUAL_BATCH_SIZE, FitConfig
from transferapp.data.dataset import Dataset
from transferapp.errors import ResourceError
from transferapp.policy.budget import MAX_CACHED_VIEWS
from transferapp.policy.cuts import INPUT
from transferapp.recipes.fit.measure import ProbedBackbone
from transferapp.recipes.fit.resume import RunFolder
from transferapp.system.progress import Progress
from transferapp.system.storage import free_bytes
from transferapp.system.threads import cpu_cores
from transferapp.training.probe import moments

if TYPE_CHECKING:
    import keras

    from transferapp.training.settings import Batches, MakeBatches

NO_ROOM = "no_room"
"""Code of the error that there is no room for activations."""

_DISK_SHARE = 0.8
"""Share of the free disk that activations may take: other programs, and the bundle, need some too."""

_CACHED_AS = "float16"
"""Half precision: the activations of a stage are rounded less by it than from one random view to the next."""

_TIMED_IMAGES = 24
"""Images of whose views the trunk is timed: with eight views each, a second or less of work that is needed anyway."""


_FEW = 256
"""Features on which an untrained head is inspected."""

_POOLED_AT_ONCE = 256


@dataclass(frozen=True)
class TrainingData:
    """Data to train and to validate on.

    Attributes:
        make_batches: From a batch size to the training batches.
        validation: The center views of the validation images, in order, for `model.predict`.
    """

    make_batches: MakeBatches
    validation: Any


@dataclass(frozen=True)
class Sample:
    """A few images to time a training step on.

    Attributes:
        make_batches: From a batch size to the batches.
        seconds_per_view: Seconds to bring one view of one image through the trunk; 0 where there is none.
    """

    make_batches: MakeBatches
    seconds_per_view: float


@dataclass(frozen=True, eq=False)
class HeadData:
    """Training data of a head alone: features of the frozen backbone.

    Attributes:
        data: Features, or where pooling is random, feature maps.
        shape: Of one: (channels,) or (height, width, channels).
        mean, std: float32, shape (channels,), of the pooled training features.
        some: A few of them, float32, shape (n, *shape).
    """

    data: TrainingData
    shape: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    some: np.ndarray


class DataProvider:
    """Provides the training data of each cut of a backbone.

    Args:
        backbone: The probed backbone.
        dataset: Audited and split.
        config: Settings of the fit, with epochs and batch size filled in.
        network: The Keras model of the backbone with pretrained weights.
        run: Its folder holds the activations.
        progress: Receives progress updates.
    """

    def __init__(
        self,
        backbone: ProbedBackbone,
        dataset: Dataset,
        config: FitConfig,
        network: keras.Model,
        run: RunFolder,
        progress: Progress,
    ) -> None:
        self._backbone, self._config, self._network = backbone, config, network
        self._train, self._val = dataset.part("train"), dataset.part("val")
        self._run, self._progress = run, progress
        self._stores: dict[str, tuple[CutTrunk, FeatureStore]] = {}
        self._full: dict[str, TrainingData] = {}

    def stage(self, cut: str) -> Stage | None:
        """Return the last frozen stage of a cut; None for `INPUT`."""
        return None if cut == INPUT else stage_named(self._backbone.trunk.stages, cut)

    def max_views(self, cut: str) -> int:
        """Return the most views of each image to cache, limited by the room on the disk; 0 where nothing is cached.

        Decided once a run: when it goes on, its own activations have taken room that they no longer need.

        Raises:
            ResourceError: There is no room for a single one.
        """
        if cut == INPUT:
            return 0
        return int(self._run.decide_by(f"{cut}/room", lambda: self._room(cut)))

    def _room(self, cut: str) -> int:
        """Return `max_views` for the room on the disk now."""
        stage = stage_named(self._backbone.trunk.stages, cut)
        image = math.prod(stage.shape) * np.dtype(_CACHED_AS).itemsize
        free = free_bytes(self._run.path)
        room = int(free * _DISK_SHARE - image * len(self._val)) // (image * len(self._train))
        if room < 1:
            needed = image * (len(self._train) + len(self._val)) / _DISK_SHARE
            raise ResourceError(
                "There is not enough room on the disk for its activations",
                expected=f"{needed / 1e6:,.0f} MB free beside {self._run.path}",
                got=f"{free / 1e6:,.0f} MB",
                hint="Free some space, or choose another place with --out",
                code=NO_ROOM,
            )
        return min(room, MAX_CACHED_VIEWS)

    def full(self, cut: str, views: int) -> TrainingData:
        """Return all training data of a cut, with this many cached views of each image."""
        if cut not in self._full:
            self._full[cut] = self._images() if cut == INPUT else self._activations(cut, views)
        return self._full[cut]

    def sample(self, cut: str) -> Sample:
        """Return a few images above a cut, and the time of the trunk."""
        if cut == INPUT:
            return Sample(self.full(cut, 0).make_batches, 0.0)
        trunk, store = self._store(cut)
        trunk.rows(np.zeros((BATCH_SIZE, *trunk.image_size, 3), np.uint8))  # the first pass is slow
        spread = np.linspace(0, len(self._train) - 1, min(_TIMED_IMAGES, len(self._train))).astype(int)
        records = [self._train.records[i] for i in np.unique(spread)]
        names = self._view_names(min(self._config.epochs, MAX_CACHED_VIEWS))
        done: list[int] = []
        started = time.perf_counter()
        rows, positions = store.locate(records, names, done.append)
        fresh = max(positions.size - done[0], 1)  # a kill may have left some of them, or all
        seconds = float(self._run.decide(f"{cut}/seconds-per-view", (time.perf_counter() - started) / fresh))
        # Each view counts as an image of its own here, so that there are enough for a batch.
        labels = np.repeat([record.label for record in records], positions.shape[1])
        return Sample(self._cached(trunk.shape, rows, positions.reshape(-1, 1), labels), seconds)

    def head(self, cut: str, pooling: str, views: int) -> HeadData:
        """Return the features of a stage: the center view of every image and, to train on, some random views beside it.

        Averages are in the feature cache already. Other poolings need the stage's feature maps, which are cached and, unless
        pooling is random, pooled once.

        Args:
            cut: The stage that the head stands on.
            pooling: One of `POOLINGS`.
            views: Random views of each image, as far as there is room for their maps on the disk.

        Raises:
            ResourceError: There is no room for the maps of a single view.
        """
        if pooling == "average":
            return self._averages(cut, views)
        trunk, store = self._store(cut)
        names = [CENTER, *self._view_names(min(views, self.max_views(cut) - 1))]
        with self._progress.task(f"{trunk.name}: {len(names)} views each", len(names) * len(self._train)) as advance:
            rows, positions = store.locate(self._train.records, names, advance)
        val_rows, val_positions = store.locate(self._val.records, [CENTER])
        features = _pooled(pooling, rows, positions.ravel(), trunk.shape)
        if pooling == "fractional_max":
            mean, std = moments(features)
            some = rows[positions[:_FEW, 0]].astype(np.float32).reshape(-1, *trunk.shape)
            validation = self._centers(val_rows, val_positions[:, 0], trunk.shape)
            data = TrainingData(self._cached(trunk.shape, rows, positions, self._train.labels), validation)
            return HeadData(data, trunk.shape, mean, std, some)
        val_features = _pooled(pooling, val_rows, val_positions[:, 0], trunk.shape)
        return self._vectors(features.reshape(*positions.shape, -1), val_features)

    def _averages(self, cut: str, views: int) -> HeadData:
        columns = self._backbone.trunk.row_slices[stage_named(self._backbone.trunk.stages, cut).index]
        names = [CENTER, *self._view_names(views)]
        label = f"{self._backbone.spec.name}: {len(names)} view{'s' if views else ''} each"
        with self._progress.task(label, len(names) * len(self._train)) as advance:
            rows = self._backbone.store.collect(self._train.records, names, advance)[..., columns]
        return self._vectors(rows, self._backbone.store.collect(self._val.records, [CENTER])[:, 0, columns])

    def _vectors(self, features: np.ndarray, val_features: np.ndarray) -> HeadData:
        """Return the data of pooled features: float32, shapes (n, views, channels) and (n_val, channels)."""
        count, views, channels = features.shape
        rows = features.reshape(-1, channels)
        positions = np.arange(count * views).reshape(count, views)
        data = TrainingData(
            self._cached((channels,), rows, positions, self._train.labels),
            self._centers(val_features, np.arange(len(val_features)), (channels,)),
        )
        return HeadData(data, (channels,), *moments(rows), some=features[:_FEW, 0])

    def _images(self) -> TrainingData:
        from transferapp.training.batches import CenterBatches, ImageBatches, training_images

        size, config = self._backbone.trunk.image_size, self._config
        random_views = self._backbone.store.random_views
        cache = training_images(size, random_views.augmentation)

        def make(batch_size: int) -> Batches:
            return ImageBatches(
                self._train.records,
                image_size=size,
                batch_size=batch_size,
                seed=config.seed,
                random_views=random_views,
                cache=cache,
                workers=cpu_cores(),
            )

        return TrainingData(
            make,
            CenterBatches(
                self._val.records,
                image_size=size,
                batch_size=USUAL_BATCH_SIZE,
                geometry=random_views.geometry,
                workers=cpu_cores(),
            ),
        )

    def _activations(self, cut: str, views: int) -> TrainingData:
        trunk, store = self._store(cut)
        count = len(self._train) * views
        with self._progress.task(f"{trunk.name}: {views} random views each", count) as advance:
            rows, positions = store.locate(self._train.records, self._view_names(views), advance)
        val_rows, val_positions = store.locate(self._val.records, [CENTER])
        validation = self._centers(val_rows, val_positions[:, 0], trunk.shape)
        return TrainingData(self._cached(trunk.shape, rows, positions, self._train.labels), validation)

    def _cached(
        self, shape: tuple[int, ...], rows: np.ndarray, positions: np.ndarray, labels: np.ndarray
    ) -> MakeBatches:
        from transferapp.training.batches import CachedBatches

        def make(batch_size: int) -> Batches:
            return CachedBatches(rows, positions, labels, shape, batch_size=batch_size, seed=self._config.seed)

        return make

    def _centers(self, rows: np.ndarray, positions: np.ndarray, shape: tuple[int, ...]) -> Any:
        from transferapp.training.batches import CachedCenters

        return CachedCenters(rows, positions, shape, batch_size=USUAL_BATCH_SIZE)

    def _store(self, cut: str) -> tuple[CutTrunk, FeatureStore]:
        if cut not in self._stores:
            stage, whole, config = self.stage(cut), self._backbone.trunk, self._config
            assert stage is not None
            trunk = cut_trunk(
                self._network,
                stage,
                whole.key,
                image_size=whole.image_size,
                engine=resolve_engine(config.engine),
                precision=config.precision,
                streams=cpu_cores(),
            )
            store = FeatureStore(
                trunk,
                workers=cpu_cores(),
                dtype=_CACHED_AS,
                random_views=self._backbone.store.random_views,
                folder=self._run.path / f"activations-{cut}",
            )
            self._stores[cut] = trunk, store
        return self._stores[cut]

    def _view_names(self, count: int) -> list[str]:
        return [random_view_name(index, self._config.seed) for index in range(count)]


def _pooled(pooling: str, rows: np.ndarray, positions: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return feature maps pooled as in prediction: float32, shape (len(positions), channels)."""
    import keras

    from transferapp.training.heads import pooled

    maps = keras.Input(shape)
    model = keras.Model(maps, pooled(pooling, maps, for_prediction=True))
    parts = []
    for start in range(0, len(positions), _POOLED_AT_ONCE):
        batch = rows[positions[start : start + _POOLED_AT_ONCE]].astype(np.float32).reshape(-1, *shape)
        parts.append(np.asarray(model.predict_on_batch(batch), np.float32))
    return np.concatenate(parts)
