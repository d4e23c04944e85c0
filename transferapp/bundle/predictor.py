"""Predictions with a bundle, for the command line, the evaluation and the service.

An image is decoded once and cropped 1, 10 or 50 times; the network runs on the crops, and their probabilities are averaged
(Krizhevsky et al., 2012). No TensorFlow is imported on this path.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transferapp.backbones.engine import Engine, OpenVINOEngine, read_network
from transferapp.bundle.format import NOVELTY, Bundle, read_bundle
from transferapp.bundle.novelty import is_known
from transferapp.bundle.prediction_sets import in_set
from transferapp.errors import BundleError, TransferAppError, UsageError
from transferapp.images import DATASET_LIMITS, SAMPLE_BITS, DecodedImage, ImageLimits, decode_image
from transferapp.images.views import (
    MULTI_SCALE_SHORT_SIDES,
    SHORT_SIDE,
    VIEW_COUNTS,
    View,
    center_index,
    render_batch,
    short_side_to_decode,
    views_for,
)

_CHUNK = 10
"""Crops in one forward pass, so that 50 crops take no more memory than ten."""


class ModelOutputError(TransferAppError):
    """The network returned NaN or infinite numbers."""

    exit_code = 4
    default_code = "model_output_invalid"


@dataclass(frozen=True)
class Score:
    """One class and its probability in [0, 1]."""

    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Attributes:
        scores: All classes or the best `top_k`, highest probability first.
        views: Crops that were averaged.
        format: Format of the image, by its bytes.
        size: (width, height) of the upright image.
        notes: Corrections made to the image: `first_frame`, `exif_rotated`, ...
        seconds: Time by step: `decode`, `crop`, `network`.
        novelty: Share of the held-out images that look at least as familiar, in [0, 1]; None where the bundle cannot say.
        known: Whether the image looks like one of the classes; None where the bundle cannot say.
        prediction_set: Classes that contain the right one at the coverage of the bundle, most probable first; None where the
            bundle cannot say.
    """

    scores: tuple[Score, ...]
    views: int
    format: str
    size: tuple[int, int]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    novelty: float | None = None
    known: bool | None = None
    prediction_set: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.scores[0].label


class Predictor:
    """A bundle ready to classify images. Thread-safe.

    Args:
        bundle: The bundle.
        engine: Engine that runs the network; by default OpenVINO with the network of the bundle.
        precision: Of the default engine: `f32`, `bf16`, or None for the precision that the bundle names.
        streams: Of the default engine: number of concurrent callers.
        threads: Of the default engine: number of cores; None for all.
        limits: Limits of accepted images; None for those of dataset images, so that whatever a fit reads can be classified.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: Engine | None = None,
        precision: str | None = None,
        streams: int = 1,
        threads: int | None = None,
        limits: ImageLimits | None = None,
    ) -> None:
        self.bundle = bundle
        self.class_names = bundle.class_names
        self.image_size = bundle.image_size
        self.geometry = bundle.geometry
        self.limits = limits or DATASET_LIMITS
        self.default_views = int(bundle.manifest["input"].get("default_views", 10))
        if engine is None:
            # OpenVINO would map the files: copying over a bundle that is being served must not change its weights.
            engine = OpenVINOEngine(
                read_network(bundle.read("model.xml"), bundle.read("model.bin"), str(bundle.path)),
                precision=precision or str(bundle.manifest.get("precision", {}).get("served", "f32")),
                streams=streams,
                threads=threads,
            )
        self.engine = engine
        self.novelty = bundle.novelty()
        self._check_network()

    @classmethod
    def load(cls, path: Path | str, **options: Any) -> Predictor:
        """Open a bundle, with the options of the constructor.

        If another bundle replaces it meanwhile, that one is opened, never parts of both.

        Raises:
            BundleError: There is no usable bundle at `path`.
        """
        path = Path(path)
        bundle = read_bundle(path)
        while True:
            try:
                predictor, failure = cls(bundle, **options), None
            except BundleError as error:
                predictor, failure = None, error
            current = read_bundle(path)
            if current.manifest != bundle.manifest:
                bundle = current
            elif predictor is not None:
                return predictor
            else:
                assert failure is not None
                raise failure

    def _check_network(self) -> None:
        """Run once on a gray image, because the first run is slow, and check the output against the manifest."""
        height, width = self.image_size
        gray = np.full((1, height, width, 3), 127, dtype=np.uint8)
        try:
            output, *features = self._run(gray)
        except RuntimeError as error:
            raise BundleError(
                f"The network of {self.bundle.path} does not take {height}×{width} images ({str(error).splitlines()[0]})"
            ) from error
        if output.shape != (1, len(self.class_names)):
            raise BundleError(
                f"The network of {self.bundle.path} does not fit its manifest",
                expected=f"{len(self.class_names)} scores",
                got=f"an output of shape {output.shape}",
            )
        if self.novelty is None:
            return
        num_features = self.novelty.features.shape[1]
        if not features or features[0].shape != (1, num_features):
            raise BundleError(
                f"The network of {self.bundle.path} does not fit its {NOVELTY}",
                expected=f"a second output of {num_features} features",
                got=f"one of shape {features[0].shape}" if features else "a single output",
            )

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Run the network on crops.

        Args:
            images: uint8, shape (n, height, width, 3), n of at least 1.

        Returns:
            float32, shape (n, num_classes); every row sums to 1.

        Raises:
            ModelOutputError: The network gave NaN or infinite numbers.
        """
        return self._outputs(images)[0]

    def _outputs(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the probabilities, and further outputs of the network; arguments and errors as of `probabilities`."""
        parts = [self._run(images[i : i + _CHUNK]) for i in range(0, len(images), _CHUNK)]
        outputs = tuple(np.concatenate(output) for output in zip(*parts, strict=True))
        scores = outputs[0]
        if not np.isfinite(scores).all():
            raise ModelOutputError(
                f"The network of {self.bundle.name} gave scores that are not numbers",
                hint="Its weights are damaged or training diverged: fit the bundle again",
            )
        return outputs

    def _run(self, chunk: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the outputs that a prediction needs: the features only where novelty is told from them."""
        return (self.engine(chunk),) if self.novelty is None else self.engine.outputs(chunk)

    def boxes(self, decoded: DecodedImage, views: int) -> list[View]:
        """Return the boxes of the crops of an image."""
        return views_for(views, decoded.image.size, self.image_size, self.geometry)

    def crops(self, decoded: DecodedImage, views: int) -> np.ndarray:
        """Return the crops of an image: uint8, shape (views, height, width, 3)."""
        return render_batch(decoded.image, self.boxes(decoded, views), self.image_size)

    def average(self, decoded: DecodedImage, views: int) -> np.ndarray:
        """Return the probabilities of an image, averaged over its crops: float32, shape (num_classes,)."""
        mean: np.ndarray = self.probabilities(self.crops(decoded, views)).mean(axis=0)
        return mean

    def decode(self, source: Path | bytes, views: int | None = None) -> DecodedImage:
        """Decode an image no larger than the crops need.

        Raises:
            ImageError: The image cannot be used.
        """
        largest = MULTI_SCALE_SHORT_SIDES[-1] if self.check_views(views) == 50 else SHORT_SIDE
        needed = short_side_to_decode(largest, self.image_size)
        bits = self.bundle.sample_bits or max(SAMPLE_BITS)
        return decode_image(source, limits=self.limits, min_short_side=needed, sample_bits=bits)

    def check_views(self, views: int | None) -> int:
        """Return `views`, or the default of the bundle for None.

        Raises:
            UsageError: It is not 1, 10 or 50.
        """
        views = self.default_views if views is None else views
        if views not in VIEW_COUNTS:
            raise UsageError("Unknown number of views", expected=f"one of {VIEW_COUNTS}", got=str(views), code="views")
        return views

    def predict(self, source: Path | bytes, *, views: int | None = None, top_k: int | None = None) -> Prediction:
        """Classify one image.

        Args:
            source: A file, or the bytes of one.
            views: 1, 10 or 50 crops to average; None for the bundle's default.
            top_k: Number of classes to return; None for all.

        Raises:
            ImageError: The image cannot be used; `code` gives the reason.
            UsageError: `views` or `top_k` is out of range.
            ModelOutputError: The network's answer is not a number.
        """
        views = self.check_views(views)
        if top_k is not None and top_k < 1:
            raise UsageError("top_k is out of range", expected="1 or more", got=str(top_k), code="top_k")
        started = time.perf_counter()
        decoded = self.decode(source, views)
        read_at = time.perf_counter()
        crops = self.crops(decoded, views)
        cropped = time.perf_counter()
        by_crop, *features = self._outputs(crops)
        scores = by_crop.mean(axis=0)
        center = center_index(views)
        novelty = None if self.novelty is None else float(self.novelty.score(features[0][center : center + 1])[0])
        finished = time.perf_counter()
        order = np.argsort(-scores, kind="stable")
        return Prediction(
            scores=tuple(Score(self.class_names[i], float(scores[i])) for i in order[:top_k]),
            views=views,
            format=decoded.format,
            size=decoded.original_size,
            notes=decoded.notes,
            seconds={"decode": read_at - started, "crop": cropped - read_at, "network": finished - cropped},
            novelty=novelty,
            known=None if novelty is None else is_known(novelty),
            prediction_set=self._prediction_set(scores, order),
        )

    def _prediction_set(self, scores: np.ndarray, order: np.ndarray) -> tuple[str, ...] | None:
        threshold = self.bundle.set_threshold
        if threshold is None:
            return None
        held = in_set(scores[None], threshold)[0]
        return tuple(self.class_names[i] for i in order[held[order]])
