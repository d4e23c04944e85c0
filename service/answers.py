"""From an image in a request to the answer about it: the queue, the worker, and one entry an image."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from service.metrics import Metrics
from service.problems import Refusal, problem_document, request_id_of
from service.schemas import CropBox, ExplanationAnswer, PredictionAnswer, PredictionList, Problem, ScoredLabel
from service.worker import WorkerPool
from transferapp.bundle.occlusion import Explanation, explain
from transferapp.bundle.predictor import Prediction, Predictor
from transferapp.errors import TransferAppError
from transferapp.images import NOTES

logger = logging.getLogger(__name__)

T = TypeVar("T", Prediction, Explanation)


class Answerer:
    """Works on the images of one request.

    Args:
        request: Its application's queue, limits and metrics are used; what is worth a log line is left in its state.
        name: What the request calls the model.
        predictor: The model, kept to the end of the request whatever takes its place meanwhile.
    """

    def __init__(self, request: Request, name: str, predictor: Predictor) -> None:
        state = request.app.state
        self._pool: WorkerPool = state.pool
        self._metrics: Metrics = state.metrics
        self._limits = state.limits
        self._request = request
        self._name = name
        self._predictor = predictor
        self._deadline = time.monotonic() + state.settings.request_timeout

    async def predict(self, image: bytes, views: int, top_k: int, *, admitted: bool = False) -> PredictionAnswer:
        """Classify one image.

        Raises:
            TransferAppError: The image cannot be used, there is no room for it, or the network failed.
        """
        prediction, seconds = await self._work(
            lambda: self._predictor.predict(image, views=views, top_k=top_k), admitted=admitted
        )
        self._request.state.log |= {"model": self._name, "views": views, "format": prediction.format}
        width, height = prediction.size
        return PredictionAnswer(
            predictions=[ScoredLabel(label=score.label, score=score.score) for score in prediction.scores],
            model=self._name,
            model_version=self._predictor.bundle.version,
            views=prediction.views,
            format=prediction.format,
            width=width,
            height=height,
            notes=list(prediction.notes),
            warnings=[NOTES[note] for note in prediction.notes],
            seconds=seconds,
        )

    async def predict_all(self, images: list[bytes], views: int, top_k: int) -> PredictionList:
        """Classify several images; what is wrong with one stands in its own entry.

        The request takes its place in the queue once, and then works on as many images at a time as there are workers; so
        it is refused as a whole at the door, or not at all.

        Raises:
            Refusal: The queue is full.
        """
        self._pool.check()
        turns = asyncio.Semaphore(self._pool.workers)

        async def one(image: bytes) -> PredictionAnswer | Problem:
            async with turns:
                try:
                    return await self.predict(image, views, top_k, admitted=True)
                except TransferAppError as error:
                    return self._problem(error)
                except Exception:  # one image's misfortune is not the others'
                    logger.exception("image_failed", extra={"request_id": request_id_of(self._request.scope)})
                    return self._problem(Refusal("Something went wrong inside the service", code="internal"))

        results = await asyncio.gather(*map(one, images))
        self._request.state.log |= {
            "images": len(results),
            "bad_images": sum(isinstance(result, Problem) for result in results),
        }
        return PredictionList(results=results)

    async def explain(self, image: bytes, label: str | None) -> ExplanationAnswer:
        """Find where the model looked.

        Raises:
            TransferAppError: The image cannot be used, there is no room for it, or the network failed.
        """
        found, seconds = await self._work(lambda: explain(self._predictor, image, label=label))
        self._request.state.log |= {"model": self._name}
        width, height = found.size
        return ExplanationAnswer(
            label=found.label,
            score=found.score,
            saliency=[[round(cell, 4) for cell in row] for row in found.saliency.tolist()],
            box=found.box,
            center_score=found.center_score,
            lowest_score=found.lowest_score,
            crops=[CropBox(box=crop.box, mirror=crop.mirror, score=crop.score) for crop in found.crops],
            model=self._name,
            model_version=self._predictor.bundle.version,
            width=width,
            height=height,
            notes=list(found.notes),
            warnings=[NOTES[note] for note in found.notes],
            seconds=seconds,
        )

    async def _work(self, job: Callable[[], T], *, admitted: bool = False) -> tuple[T, dict[str, float]]:
        """Let a worker do `job`; its result, and the seconds of each stage with the wait in the queue."""
        queued = time.perf_counter()
        begun = queued

        def noted() -> T:
            nonlocal begun
            begun = time.perf_counter()
            return job()

        left = self._deadline - time.monotonic()
        result = await self._pool.run(noted, timeout=left, admitted=admitted)
        seconds = {"queue": begun - queued, **result.seconds}
        self._metrics.observe_stages(seconds)
        return result, {name: round(spent, 6) for name, spent in seconds.items()}

    def _problem(self, error: TransferAppError) -> Problem:
        document = problem_document(error, request_id_of(self._request.scope), self._limits)
        self._metrics.problems.labels(document["code"]).inc()
        return Problem(**document)
