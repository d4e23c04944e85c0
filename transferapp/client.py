"""A client of the service (`docs/service.md`): images in, predictions out, over HTTP.

    with Client("http://127.0.0.1:8000") as client:
        print(client.predict("image.jpg").label)

It needs httpx (`pip install transferapp[client]`) and nothing else of this package but its errors. A service that is busy
says when to come back (503 and 429 with Retry-After), and the client does so a few times before it gives up.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx

from transferapp.errors import TransferAppError

if TYPE_CHECKING:
    from PIL import Image

RETRIES = 4
"""How often a request is sent again to a service that is busy or not ready."""

MAX_WAIT = 30.0
"""Seconds: longest wait between two tries, whatever the service asks for."""

_BUSY = (429, 503)


class ServiceError(TransferAppError):
    """The service refused a request, failed, or could not be reached.

    Attributes:
        status: The HTTP status; None if there was no answer.
        code: The problem's stable code, as in `docs/service.md`; `unreachable` if there was no answer.
        request_id: Names the request in the service's log.
        problem: The whole problem document; empty if the answer was none.
    """

    exit_code = 5
    default_code = "unreachable"

    def __init__(self, what: str, *, status: int | None = None, problem: Mapping[str, Any] | None = None) -> None:
        self.problem = dict(problem or {})
        mend = self.problem.get("mend")
        super().__init__(what, hint=mend, code=self.problem.get("code") or (f"http_{status}" if status else None))
        self.status = status
        self.request_id: str | None = self.problem.get("request_id")


@dataclass(frozen=True)
class Score:
    """One class and its probability in [0, 1]."""

    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """What the service says of one image.

    Attributes:
        scores: The best classes, most probable first.
        model: Name of the model that answered.
        model_version: Names its weights, classes and preprocessing.
        views: Crops whose probabilities were averaged.
        size: (width, height) of the image as a person sees it.
        warnings: What had to be done to the image, in sentences.
        seconds: Time that the service spent, by stage of work.
    """

    scores: tuple[Score, ...]
    model: str
    model_version: str
    views: int
    size: tuple[int, int]
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.scores[0].label


@dataclass(frozen=True)
class Model:
    """A model of the service.

    Attributes:
        name: What requests call it.
        default: Whether it answers where a request names none.
        phase: `ready` if it answers at all; otherwise `loading`, `warming` or `failed`.
        version: Of what is being served; None if nothing is.
    """

    name: str
    default: bool
    phase: str
    version: str | None


class Client:
    """A connection to one service, to be used by one thread at a time. Close it, or use it in a `with`.

    Args:
        base_url: Where the service is, such as `http://127.0.0.1:8000`.
        api_key: One of its keys, if it asks for one.
        timeout: Seconds to wait for an answer.
        transport: What carries the requests; by default the network.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def predict(
        self,
        image: str | Path | bytes | Image.Image,
        *,
        views: int | None = None,
        top_k: int | None = None,
        model: str | None = None,
    ) -> Prediction:
        """Classify one image.

        Args:
            image: A file's path, a file's bytes, or a Pillow image (sent as PNG).
            views: 1, 10 or 50 crops to average; None for the model's default.
            top_k: How many classes to answer with; None for the service's default.
            model: Which model to ask; None for the default one.

        Raises:
            ServiceError: The service refused the image, failed, or could not be reached; `code` says why.
            OSError: The file cannot be read.
        """
        answer = self._send(
            "POST",
            "/predict",
            params=_query(views=views, top_k=top_k, model=model),
            content=_bytes_of(image),
            headers={"Content-Type": "application/octet-stream"},
        )
        return _prediction(answer)

    def predict_many(
        self,
        images: Sequence[str | Path | bytes | Image.Image],
        *,
        views: int | None = None,
        top_k: int | None = None,
        model: str | None = None,
    ) -> list[Prediction | ServiceError]:
        """Classify several images in one request.

        Args:
            images: As for `predict`; at least one, and no more than the service takes (`max_files`).
            views: As for `predict`.
            top_k: As for `predict`.
            model: As for `predict`.

        Returns:
            One entry an image, in order; what is wrong with an image stands in its place as the error that it is.

        Raises:
            ServiceError: The request as a whole was refused.
        """
        answer = self._send(
            "POST",
            "/predict",
            params=_query(views=views, top_k=top_k, model=model),
            files=[("files", ("image", _bytes_of(image))) for image in images],
        )
        return [
            ServiceError(entry["detail"].rstrip("."), status=entry["status"], problem=entry)
            if "code" in entry
            else _prediction(entry)
            for entry in answer["results"]
        ]

    def models(self) -> list[Model]:
        """The service's models, by name.

        Raises:
            ServiceError: The service failed, or could not be reached.
        """
        entries = self._send("GET", "/models")["models"]
        return [Model(e["name"], e["default"], e["phase"], e.get("version")) for e in entries]

    def _send(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        for tries_left in reversed(range(RETRIES + 1)):
            try:
                answer = self._http.request(method, path, **request)
            except httpx.HTTPError as error:
                raise ServiceError(f"{self._http.base_url} gives no answer ({error})") from error
            if answer.is_success:
                return dict(answer.json())
            wait = _retry_after(answer)
            if not tries_left or wait is None:
                raise _error(answer)
            time.sleep(min(wait, MAX_WAIT))
        raise AssertionError  # the loop has returned or raised


def _query(**parameters: int | str | None) -> dict[str, int | str]:
    return {name: value for name, value in parameters.items() if value is not None}


def _bytes_of(image: str | Path | bytes | Image.Image) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds after which the service wants to be asked again; None where it does not."""
    value = answer.headers.get("retry-after", "")
    return float(value) if answer.status_code in _BUSY and value.isdecimal() else None


def _error(answer: httpx.Response) -> ServiceError:
    problem: dict[str, Any] = {}
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        problem = answer.json()
    what = str(problem.get("detail") or f"{answer.url} answered {answer.status_code}").rstrip(".")
    return ServiceError(what, status=answer.status_code, problem=problem)


def _prediction(answer: Mapping[str, Any]) -> Prediction:
    return Prediction(
        scores=tuple(Score(entry["label"], entry["score"]) for entry in answer["predictions"]),
        model=answer["model"],
        model_version=answer["model_version"],
        views=answer["views"],
        size=(answer["width"], answer["height"]),
        warnings=tuple(answer["warnings"]),
        seconds=answer["seconds"],
    )
