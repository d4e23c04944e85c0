"""Predictions for the images of a request: from the queue to the answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request

from service.metrics import Metrics
from service.problems import internal_error, problem_document
from service.queue import WorkerPool
from service.schemas import CropBox, ExplanationAnswer, PredictionAnswer, PredictionList, Problem, ScoredLabel
from transferapp.bundle.occlusion import Explanation, explain
from transferapp.bundle.predictor import Prediction, Predictor
from transferapp.errors import TransferAppError
from transferapp.images import NOTES

logger = logging.getLogger(__name__)

T = TypeVar("T", Prediction, Explanation)


class RequestPredictor:
    """Predictions and explanations for one request, within its time limit.

    Args:
        request: The request; entries for its log line are added to its state.
        name: Name of the model.
        predictor: The model. The request uses it to its end even if the registry replaces it meanwhile.
    """

    def __init__(self, request: Request, name: str, predictor: Predictor) -> None:
        state = request.app.state
        self._pool: WorkerPool = state.pool
        self._metrics: Metrics = state.metrics
        self._request = request
        self._name = name
        self._predictor = predictor
        self._deadline = time.monotonic() + state.settings.request_timeout

    async def predict(self, image: bytes, views: int, top_k: int, *, admitted: bool = False) -> PredictionAnswer:
        """Classify one image.

        Raises:
            TransferAppError: The image cannot be used, the queue is full, or the network failed.
        """
        prediction, seconds = await self._run(
            lambda: self._predictor.predict(image, views=views, top_k=top_k), admitted=admitted
        )
        self._request.state.log |= {"model": self._name, "views": views, "format": prediction.format}
        if prediction.novelty is not None:
            self._metrics.novelty.labels(self._name).observe(prediction.novelty)
        return PredictionAnswer(
            predictions=[ScoredLabel(label=score.label, score=score.score) for score in prediction.scores],
            novelty=prediction.novelty,
            known=prediction.known,
            prediction_set=None if prediction.prediction_set is None else list(prediction.prediction_set),
            views=prediction.views,
            format=prediction.format,
            **self._common(prediction, seconds),
        )

    async def predict_all(self, images: list[bytes], views: int, top_k: int) -> PredictionList:
        """Classify several images; the error of one is its own entry.

        The request is admitted to the queue once, as a whole, and then runs as many images at a time as there are workers.

        Raises:
            RequestError: The queue is full.
        """
        self._pool.check()
        turns = asyncio.Semaphore(self._pool.workers)

        async def one(image: bytes) -> PredictionAnswer | Problem:
            async with turns:
                try:
                    return await self.predict(image, views, top_k, admitted=True)
                except TransferAppError as error:
                    return self._problem(error)
                except Exception:  # the other images of the request are answered all the same
                    logger.exception("image_failed", extra={"request_id": self._request.state.request_id})
                    return self._problem(internal_error())

        results = await asyncio.gather(*map(one, images))
        bad = sum(isinstance(result, Problem) for result in results)
        self._request.state.log |= {"images": len(results), "bad_images": bad}
        return PredictionList(results=results)

    async def explain(self, image: bytes, label: str | None) -> ExplanationAnswer:
        """Compute the occlusion map of an image for a class, by default the most probable one.

        Raises:
            TransferAppError: The image cannot be used, the queue is full, or the network failed.
        """
        found, seconds = await self._run(lambda: explain(self._predictor, image, label=label))
        self._request.state.log |= {"model": self._name}
        return ExplanationAnswer(
            label=found.label,
            score=found.score,
            saliency=[[round(cell, 4) for cell in row] for row in found.saliency.tolist()],
            box=found.box,
            center_score=found.center_score,
            lowest_score=found.lowest_score,
            crops=[CropBox(box=crop.box, mirror=crop.mirror, score=crop.score) for crop in found.crops],
            **self._common(found, seconds),
        )

    async def _run(self, job: Callable[[], T], *, admitted: bool = False) -> tuple[T, dict[str, float]]:
        """Run `job` in a worker; return its result, and the seconds of each stage with the wait in the queue."""
        queued = begun = time.perf_counter()

        def timed() -> T:
            nonlocal begun
            begun = time.perf_counter()
            return job()

        result = await self._pool.run(timed, timeout=self._deadline - time.monotonic(), admitted=admitted)
        seconds = {"queue": begun - queued, **result.seconds}
        self._metrics.observe_stages(seconds)
        return result, {name: round(spent, 6) for name, spent in seconds.items()}

    def _common(self, result: Prediction | Explanation, seconds: dict[str, float]) -> dict[str, Any]:
        width, height = result.size
        return {
            "model": self._name,
            "model_version": self._predictor.bundle.version,
            "width": width,
            "height": height,
            "notes": list(result.notes),
            "warnings": [NOTES[note] for note in result.notes],
            "seconds": seconds,
        }

    def _problem(self, error: TransferAppError) -> Problem:
        document = problem_document(error, self._request.scope)
        self._metrics.problems.labels(document["code"]).inc()
        return Problem(**document)
