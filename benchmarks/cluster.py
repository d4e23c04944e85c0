"""What a Ray cluster gives and costs: answers a second by workers, tasks a second, and Ray Serve against `transferapp serve`.

    python benchmarks/cluster.py BUNDLE IMAGES [--images N] [--rounds N] [--seconds S]

BUNDLE is a bundle, IMAGES a folder of images. The cluster has nodes of one CPU on this machine; candidates take turns.

`answers`: images a second with one crop, of one and two threads, and of one and two workers of the cluster. `tasks`: tasks a
second that do nothing, which is the most that one process can give out. `serving`: requests a second with ten crops, by two
clients a core, of `transferapp serve` and of one replica of Ray Serve. Results go to benchmarks/results/cluster.json. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])  # for workers

from benchmarks.common import RESULTS, free_port, write_results
from benchmarks.serving import images_in, lasting, load, plain_shots, transferapp_service
from transferapp.bundle.predictor import Predictor
from transferapp.data.image_files import ImageFile, list_images
from transferapp.recipes.predict import answer
from transferapp.system.cluster import connected, parallel
from transferapp.system.threads import cpu_cores

GROUP = 16
WARM_UP = 4 * GROUP
TASKS = 5_000


@contextlib.contextmanager
def nodes(count: int, cpus: int = 1) -> Iterator[None]:
    """Connect to a cluster of so many nodes with so many CPUs each, beside this process's own without any."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 200_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    for _ in range(count):
        cluster.add_node(num_cpus=cpus, **small)
    try:
        with connected(cluster.address):
            yield
    finally:
        cluster.shutdown()


def rate(work: Callable[[Any], Any], items: list[Any], threads: int, group: int, ahead: int = GROUP) -> float:
    """Return items a second, after a warm-up of `WARM_UP` items on every worker."""
    done, started = 0, 0.0
    for done, _ in enumerate(parallel(work, items, threads=threads, ahead=ahead, group=group), start=1):
        if done == WARM_UP:
            started = time.perf_counter()
    return (done - WARM_UP) / (time.perf_counter() - started)


def answers(bundle: Path, images: list[ImageFile], rounds: int) -> dict[str, list[float]]:
    """Measure images a second with one crop, by threads and workers."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for count in (1, 2):
            predictor = Predictor.load(bundle, streams=count, threads=count)
            work = partial(answer, predictor, 1)
            found.setdefault(f"threads: {count}", []).append(round(rate(work, images, count, GROUP), 2))
            with nodes(count):
                found.setdefault(f"workers: {count}", []).append(round(rate(work, images, count, GROUP), 2))
    return found


def tasks() -> float:
    """Measure tasks a second that return at once, with many at once in hand, as on a large cluster."""
    with nodes(1, cpus=16):
        return round(rate(abs, list(range(TASKS)), 1, 1))


@contextlib.contextmanager
def ray_serve(bundle: Path) -> Iterator[int]:
    """Run one replica, and return its port."""
    from ray import serve

    os.environ["TRANSFERAPP_MODELS"], os.environ["TRANSFERAPP_LOG_LEVEL"] = str(bundle.resolve()), "warning"
    port = free_port()
    with connected("local"):
        from service.ray_serve import app

        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app, route_prefix="/", name="transferapp")
        yield port
        serve.shutdown()


def serving(bundle: Path, folder: Path, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Measure requests a second with ten crops."""
    shots, clients = plain_shots(images_in(folder)), 2 * cpu_cores()
    found: dict[str, list[float]] = {"transferapp serve": [], "Ray Serve": []}
    with transferapp_service(bundle) as alone, ray_serve(bundle) as port:
        for candidate, at in [("transferapp serve", alone.port), ("Ray Serve", port)] * (rounds + 1):
            tally = load(at, shots, clients, lasting(seconds))
            if set(tally.statuses) != {"200"}:
                sys.exit(f"{candidate}: {dict(tally.statuses)}")
            found[candidate].append(round(len(tally.seconds) / seconds, 2))
    return {candidate: rates[1:] for candidate, rates in found.items()}  # the first ones warm up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path, metavar="IMAGES")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    images = list(list_images([given.folder]))[: given.images]
    found: dict[str, Any] = {"images": len(images), "cores": cpu_cores(), "tasks_per_second": tasks()}
    found["images_per_second"] = answers(given.bundle, images, given.rounds)
    found["requests_per_second"] = serving(given.bundle, given.folder, given.rounds, given.seconds)
    for name in ("images_per_second", "requests_per_second"):
        print(name, {candidate: statistics.median(rates) for candidate, rates in found[name].items()})
    print("tasks_per_second", found["tasks_per_second"])
    write_results(RESULTS / "cluster.json", found)


if __name__ == "__main__":
    main()
