"""The service under load: its rate against the bare engine and a plain service, and its behavior beyond its limits.

    python benchmarks/serving.py BUNDLE IMAGES throughput [--seconds S] [--rounds N] [--clients N]
    python benchmarks/serving.py BUNDLE IMAGES overload   [--seconds S] [--clients N]
    python benchmarks/serving.py BUNDLE IMAGES mixed      [--requests N] [--clients N]
    python benchmarks/serving.py BUNDLE IMAGES sigterm    [--seconds S] [--clients N]

IMAGES is a folder, searched for JPEGs. The load comes from the same machine. Candidates are compared in one run, in turns.
Results go to benchmarks/results/serving_*.json.

`throughput`: requests per second with ten crops, of (1) the bare engine on ready-made crops, the better of one caller on all
cores and one per core; (2) `transferapp serve`, decoding and HTTP included; (3) a plain service: FastAPI, Pillow, the same
crops, and Keras' `model.predict`. `overload`: a queue of eight images and more clients than that, while another process asks
/livez. `mixed`: valid and invalid requests, large and small; memory, threads and open files before and after. `sigterm`:
SIGTERM under load.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, free_port, write_results

ROOT = Path(__file__).resolve().parents[1]
OVERLOAD_QUEUE = 8
START_SECONDS = 90.0
JPEG = {"Content-Type": "image/jpeg"}


# Servers


@dataclass(frozen=True)
class Served:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]

    def figures(self) -> dict[str, int]:
        """Resident kilobytes, threads and open files (Linux)."""
        folder = Path("/proc") / str(self.process.pid)
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return {
            "rss_kb": int(status["VmRSS"].split()[0]),
            "threads": int(status["Threads"]),
            "files": len(list((folder / "fd").iterdir())),
        }


@contextlib.contextmanager
def serving(
    command: Sequence[str], ready: str, flag: Sequence[str] = ("--port",), **environment: str
) -> Iterator[Served]:
    """Start a server with its port as last argument, wait until `ready` answers 200, and stop it at the end."""
    port = free_port()
    quiet = {"TRANSFERAPP_LOG_LEVEL": "warning", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, *flag, str(port)], env={**os.environ, **quiet, **environment}, cwd=ROOT)
    waited = lasting(START_SECONDS)
    try:
        while True:
            if process.poll() is not None or waited():
                sys.exit(f"{' '.join(command)} did not become ready (exit code {process.returncode})")
            with contextlib.suppress(OSError):
                if ask(port, "GET", ready)[0] == 200:
                    break
            time.sleep(0.05)
        yield Served(port, process)
    finally:
        process.terminate()
        process.wait()


def transferapp_service(bundle: Path, **environment: str) -> contextlib.AbstractContextManager[Served]:
    return serving([sys.executable, "-m", "transferapp", "serve", str(bundle.resolve())], "/readyz", **environment)


def plain_service(bundle: Path) -> contextlib.AbstractContextManager[Served]:
    program = Path(__file__).with_name("plain_service.py")
    return serving([sys.executable, str(program), str(bundle.resolve())], "/docs", flag=())


# Load


def ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Send one request on its own connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@dataclass
class Tally:
    """Statuses and times seen by clients."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Shot:
    """A request and the statuses that it may get."""

    path: str
    body: bytes | None
    headers: dict[str, str]
    expected: tuple[int, ...] = (200,)
    method: str = "POST"


def client(port: int, shots: Sequence[Shot], until: Callable[[], bool], tally: Tally, start: int) -> None:
    """Send one request after the other on one connection, until `until` is true."""
    connection: http.client.HTTPConnection | None = None
    number = start
    while not until():
        shot = shots[number % len(shots)]
        number += 1
        began = time.perf_counter()
        try:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.connect()
            connection.request(shot.method, shot.path, shot.body, shot.headers)
            answer = connection.getresponse()
            answer.read()
        except ConnectionRefusedError:
            tally.statuses["refused"] += 1
            connection = None
            return
        except (OSError, http.client.HTTPException) as error:
            tally.statuses[type(error).__name__] += 1
            connection = None
            continue
        good = answer.status in shot.expected
        tally.statuses[str(answer.status) if good else f"unexpected {answer.status} {shot.path}"] += 1
        tally.seconds.append(time.perf_counter() - began)
        if answer.will_close:
            connection = None
    if connection is not None:
        connection.close()


def load(port: int, shots: Sequence[Shot], clients: int, until: Callable[[], bool]) -> Tally:
    """Run several clients at once, each starting at another position of the list."""
    tallies = [Tally() for _ in range(clients)]
    step = max(1, len(shots) // clients)
    threads = [
        threading.Thread(target=client, args=(port, shots, until, tally, index * step))
        for index, tally in enumerate(tallies)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Tally(sum((t.statuses for t in tallies), Counter()), [s for t in tallies for s in t.seconds])


def lasting(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(np.array(values), share)) if values else float("nan")


def images_in(folder: Path, most: int = 64) -> list[bytes]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    random.Random(0).shuffle(files)
    return [file.read_bytes() for file in files[:most]]


def plain_shots(images: Sequence[bytes]) -> list[Shot]:
    return [Shot("/predict?views=10", image, JPEG) for image in images]


def form_shots(images: Sequence[bytes]) -> list[Shot]:
    return [Shot("/predict", *form(("file", image))) for image in images]


def form(*fields: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'.encode() + body + b"\r\n"
        for name, body in fields
    ]
    return b"".join([*parts, b"--B--\r\n"]), {"Content-Type": "multipart/form-data; boundary=B"}


# Measurements


def bare_engine(bundle: Path, orders: Any, answers: Any) -> None:
    """Answer each order (streams, seconds) with the ten-crop batches per second. Runs in its own process."""
    from transferapp.bundle.format import read_bundle
    from transferapp.bundle.predictor import Predictor

    cores = len(os.sched_getaffinity(0))
    engines = {n: Predictor(read_bundle(bundle), streams=n, threads=cores).engine for n in {1, cores}}
    height, width = read_bundle(bundle).image_size
    crops = np.random.default_rng(0).integers(0, 256, (10, height, width, 3), dtype=np.uint8)

    def work(streams: int, until: Callable[[], bool]) -> int:
        runs = 0
        while not until():
            engines[streams](crops)
            runs += 1
        return runs

    for streams in engines:
        work(streams, lasting(0.5))
    while (order := orders.get()) is not None:
        streams, seconds = order
        began, until = time.perf_counter(), lasting(seconds)
        with ThreadPoolExecutor(streams) as threads:
            runs = sum(threads.map(work, [streams] * streams, [until] * streams))
        answers.put(runs / (time.perf_counter() - began))


def throughput(arguments: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    """Measure the requests per second of the three candidates, round by round."""
    context = multiprocessing.get_context("spawn")
    orders, answers = context.Queue(), context.Queue()
    bare = context.Process(target=bare_engine, args=(arguments.bundle, orders, answers), daemon=True)
    bare.start()
    cores = len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {}

    def note(name: str, rate: float) -> None:
        rates.setdefault(name, []).append(rate)

    def service_rate(served: Served, shots: Sequence[Shot]) -> float:
        began = time.perf_counter()
        tally = load(served.port, shots, arguments.clients, lasting(arguments.seconds))
        assert set(tally.statuses) == {"200"}, tally.statuses
        return tally.statuses["200"] / (time.perf_counter() - began)

    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(transferapp_service(arguments.bundle))
        plain = None if arguments.no_plain else stack.enter_context(plain_service(arguments.bundle))
        for _ in range(arguments.rounds):
            for streams in sorted({1, cores}):
                orders.put((streams, arguments.seconds))
                note(f"bare engine, {streams} at once", answers.get())
            note("service", service_rate(ours, plain_shots(images)))
            if plain is not None:
                note("plain service", service_rate(plain, form_shots(images)))
    orders.put(None)
    bare.join()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(rate for name, rate in medians.items() if name.startswith("bare"))
    ratios = {"service / bare engine": medians["service"] / best}
    if "plain service" in medians:
        ratios["service / plain service"] = medians["service"] / medians["plain service"]
    return {"requests_per_second": medians, "ratios": ratios, "rounds": rates, "clients": arguments.clients}


def probe(port: int, stop: Any, found: Any) -> None:
    """Ask /livez twenty times per second on one connection and record the seconds. Runs in its own process."""
    seconds = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while not stop.wait(0.05):
        began = time.perf_counter()
        connection.request("GET", "/livez")
        assert connection.getresponse().read()
        seconds.append(time.perf_counter() - began)
    found.put(seconds)


def overload(arguments: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    """Measure statuses and the response time of /livez with more clients than the queue holds."""
    context = multiprocessing.get_context("spawn")
    stop, found = context.Event(), context.Queue()
    with transferapp_service(arguments.bundle, TRANSFERAPP_QUEUE_SIZE=str(OVERLOAD_QUEUE)) as served:
        asking = context.Process(target=probe, args=(served.port, stop, found), daemon=True)
        asking.start()
        shots = [Shot(s.path, s.body, s.headers, (200, 503)) for s in plain_shots(images)]
        tally = load(served.port, shots, arguments.clients, lasting(arguments.seconds))
        stop.set()
        livez = found.get()
        asking.join()
    return {
        "statuses": dict(tally.statuses),
        "answered_per_second": tally.statuses["200"] / arguments.seconds,
        "livez_asked": len(livez),
        "livez_seconds": {"p50": percentile(livez, 0.5), "p99": percentile(livez, 0.99), "max": max(livez)},
        "clients": arguments.clients,
        "queue_size": OVERLOAD_QUEUE,
    }


def mixture(images: Sequence[bytes]) -> list[Shot]:
    """Return requests of every kind, each with the statuses that it may get."""
    image, other = images[0], images[1]
    json_header = {"Content-Type": "application/json"}
    encoded = json.dumps({"image": base64.b64encode(image).decode(), "views": 1}).encode()
    kinds = [
        *(Shot("/predict?views=1", p, JPEG) for p in images[:16]),
        *plain_shots(images[:8]),
        *form_shots(images[:4]),
        Shot("/predict?views=50", other, JPEG),
        Shot("/predict?views=1", encoded, json_header),
        Shot("/predict?views=1", *form(("file", image), ("file", b"nothing"), ("file", other))),
        Shot("/explain", image, JPEG),
        Shot("/predict", b"", JPEG, (422,)),
        Shot("/predict", image[: len(image) // 2], JPEG, (422,)),
        Shot("/predict", b"<html></html>", JPEG, (415,)),
        Shot("/predict", image, {"Content-Type": "text/plain"}, (415,)),
        Shot("/predict?views=7", image, JPEG, (422,)),
        Shot("/predict?model=none", image, JPEG, (404,)),
        Shot("/predict", b"x" * 1_000_000, JPEG, (415,)),
        Shot("/predict", b"{", json_header, (400,)),
        Shot("/nothing", image, JPEG, (404,)),
        Shot("/readyz", None, {}, method="GET"),
        Shot("/metrics", None, {}, method="GET"),
        Shot("/openapi.json", None, {}, method="GET"),
    ]
    random.Random(1).shuffle(kinds)
    return kinds


def mixed(arguments: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    """Count unexpected statuses, and compare memory, threads and files before and after."""
    with transferapp_service(arguments.bundle) as served:

        def send(count: int) -> Tally:
            left = iter(range(count))
            lock = threading.Lock()

            def spent() -> bool:
                with lock:
                    return next(left, None) is None

            return load(served.port, mixture(images), arguments.clients, spent)

        send(max(arguments.requests // 10, 100))  # warm-up with every kind of request
        before = served.figures()
        tally = send(arguments.requests)
        time.sleep(1)
        after = served.figures()
    unexpected = {status: n for status, n in tally.statuses.items() if not status.isdigit()}
    return {
        "requests": sum(tally.statuses.values()),
        "statuses": dict(tally.statuses),
        "unexpected": unexpected,
        "before": before,
        "after": after,
        "rss_growth": after["rss_kb"] / before["rss_kb"] - 1,
    }


def sigterm(arguments: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    """Count requests that were accepted and not answered; clients may see answers, and then refused connections."""
    with transferapp_service(arguments.bundle) as served:
        timer = threading.Timer(arguments.seconds, served.process.send_signal, [signal.SIGTERM])
        timer.start()
        tally = load(served.port, plain_shots(images), arguments.clients, lambda: False)
        code = served.process.wait(timeout=60)
    lost = {status: n for status, n in tally.statuses.items() if status not in ("200", "refused")}
    return {"statuses": dict(tally.statuses), "lost": lost, "exit_code": code, "clients": arguments.clients}


DEFAULTS: dict[str, tuple[Callable[[argparse.Namespace, Sequence[bytes]], dict[str, Any]], dict[str, Any]]] = {
    "throughput": (throughput, {"seconds": 10.0, "clients": 8}),
    "overload": (overload, {"seconds": 60.0, "clients": 32}),
    "mixed": (mixed, {"seconds": 0.0, "clients": 8}),
    "sigterm": (sigterm, {"seconds": 5.0, "clients": 8}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("part", choices=list(DEFAULTS))
    parser.add_argument("--seconds", type=float, help="seconds of load, for each candidate and round of throughput")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of throughput")
    parser.add_argument("--clients", type=int)
    parser.add_argument("--requests", type=int, default=5000, help="requests of mixed")
    parser.add_argument("--no-plain", action="store_true", help="omit the plain service, which starts slowly")
    arguments = parser.parse_args()
    part, defaults = DEFAULTS[arguments.part]
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    result = part(arguments, images_in(arguments.images))
    print(json.dumps(result, indent=2))
    write_results(RESULTS / f"serving_{arguments.part}.json", result)


if __name__ == "__main__":
    main()
