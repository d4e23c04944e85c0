"""Work on a Ray cluster: the same results as in threads, also when workers and nodes are killed.

The cluster is a real one of three nodes on this machine: the process of the test is on one without CPUs, two have a CPU each.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.numeric_trunk import numeric_trunk, paint_hues
from tests.helpers.tiny_bundle import make_tiny_bundle
from transferapp.backbones.feature_store import CENTER, FeatureStore, random_view_name
from transferapp.data.audit import audit
from transferapp.data.sources import open_source
from transferapp.errors import DataError, ResourceError, UsageError
from transferapp.recipes.predict import BatchSettings, predict_images
from transferapp.system.cluster import connected, parallel

ROOT = Path(__file__).parents[2]
MEMORY = 80_000_000
"""Bytes of each node's object store."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), before)))  # for the workers
    fast = {"health_check_period_ms": 500, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
    head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False, "_system_config": fast}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1, object_store_memory=MEMORY)
    try:
        yield made
    finally:
        made.shutdown()
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def second_node(cluster: Any) -> Iterator[Callable[[], None]]:
    """Add a node, connect, and return a function that kills the node."""
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    cluster.wait_for_nodes()
    alive = True

    def kill() -> None:
        nonlocal alive
        alive = False
        cluster.remove_node(node, allow_graceful=False)

    with connected(cluster.address):
        yield kill
    if alive:
        cluster.remove_node(node)


@pytest.mark.slow
def test_results_are_those_of_threads_and_from_two_nodes(second_node: object, tmp_path: Path) -> None:
    import ray

    def work(number: int) -> int:
        time.sleep(0.02)
        (tmp_path / ray.get_runtime_context().get_node_id()).touch()
        return number**2

    assert list(parallel(work, iter(range(60)), threads=1, group=4)) == [number**2 for number in range(60)]
    assert len(list(tmp_path.iterdir())) == 2
    assert list(parallel(work, [], threads=1)) == []


@pytest.mark.slow
def test_errors_arrive_as_they_are(second_node: object) -> None:
    def work(number: int) -> None:
        if number == 3:
            raise DataError("The image is damaged", code="damaged", hint="Take another")
        if number == 7:
            raise ZeroDivisionError("no such luck")

    with pytest.raises(DataError, match="damaged") as caught:
        list(parallel(work, range(5), threads=1))
    assert (caught.value.code, caught.value.hint, type(caught.value)) == ("damaged", "Take another", DataError)
    with pytest.raises(ZeroDivisionError, match="no such luck"):
        list(parallel(work, [7], threads=1))


@pytest.mark.slow
def test_a_killed_node_loses_nothing_and_only_what_it_had_in_hand_runs_again(
    second_node: Callable[[], None], tmp_path: Path
) -> None:
    log, group = tmp_path / "log", 4

    def work(number: int) -> int:
        with log.open("a") as stream:
            stream.write(f"{number}\n")
        time.sleep(0.05)
        return number**2

    results = []
    for result in parallel(work, range(160), threads=1, group=group):
        results.append(result)
        if len(results) == 40:
            second_node()
    assert results == [number**2 for number in range(160)]
    runs = Counter(log.read_text().split())
    assert len(runs) == 160
    assert sum(runs.values()) - 160 <= 2 * group  # the group that ran there, and one that had ended unseen


class DyingOnce:
    """An engine whose process is killed at its fifth batch, unless one was killed before."""

    name, precision = "numpy", "f32"

    def __init__(self, engine: Any, log: Path) -> None:
        self._engine, self._log, self._batches = engine, log, 0

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self._batches += 1
        if self._batches == 5 and not (self._log / "killed").exists():
            (self._log / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with (self._log / "views").open("a") as stream:
            stream.write("." * len(batch))
        return np.asarray(self._engine(batch))


@pytest.mark.slow
def test_features_are_those_of_threads_when_a_worker_is_killed(
    second_node: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    images = paint_hues(tmp_path / "images", {"red": 60, "green": 60})
    records = audit(open_source(str(images))).records
    views = [CENTER, random_view_name(0, 0)]
    trunk = numeric_trunk("numeric")
    dying = dataclasses.replace(trunk, engine=DyingOnce(trunk.engine, tmp_path))
    FeatureStore(dying, folder=tmp_path / "cluster", note=print).collect(records, views)
    monkeypatch.setattr("transferapp.system.cluster._connected", False)
    FeatureStore(trunk, folder=tmp_path / "threads").collect(records, views)
    assert (tmp_path / "killed").exists()
    for name in ("rows.float32", "keys.bin"):
        assert (tmp_path / "cluster" / name).read_bytes() == (tmp_path / "threads" / name).read_bytes()
    computed = len((tmp_path / "views").read_text())
    assert 240 <= computed <= 240 + 4 * 8  # what the killed task had done


@pytest.mark.slow
def test_the_audit_is_that_of_threads(second_node: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = paint_hues(tmp_path / "images", {"red": 40, "green": 40})
    (images / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    source = open_source(str(images))
    found = audit(source)
    monkeypatch.setattr("transferapp.system.cluster._connected", False)
    assert found == audit(source)
    assert len(found.ignored) == 1


@pytest.mark.slow
def test_a_batch_prediction_is_that_of_one_machine(
    second_node: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, images = make_tiny_bundle(tmp_path / "tiny"), paint_hues(tmp_path / "images", {"red": 40, "green": 40})
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = predict_images(bundle, [images], BatchSettings(tmp_path / "cluster.parquet", views=1))
    assert (done.num_images, done.num_errors) == (81, 1)
    monkeypatch.setattr("transferapp.system.cluster._connected", False)
    predict_images(bundle, [images], BatchSettings(tmp_path / "threads.parquet", views=1))
    assert (tmp_path / "cluster.parquet").read_bytes() == (tmp_path / "threads.parquet").read_bytes()


class Guessing:
    """A trainer that trains nothing; the process of its third trial is killed once."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def train(self, settings: Any) -> Any:
        from transferapp.recipes.search.trials import TrainedHead

        with (self._log / "trials").open("a") as stream:
            stream.write(f"{settings.learning_rate}\n")
        if len((self._log / "trials").read_text().split()) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        logits = np.random.default_rng(int(1e9 * settings.learning_rate)).normal(size=(40, 4)).astype(np.float32)
        return TrainedHead(None, logits, settings.epochs, exploded=False)  # type: ignore[arg-type]


@pytest.mark.slow
def test_trials_are_those_of_one_machine_also_when_a_worker_is_killed(
    second_node: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers.search_problems import clusters
    from transferapp.recipes.search.space import make_search
    from transferapp.recipes.search.trials import HeadSettings, HeadSpec, HeadTrainer, Journal, Phase, run_phase

    space = make_search((), trials=12, coarse=4).space
    problem = clusters()

    def outcomes(trainer: Any, count: int, name: str) -> list[tuple[Any, ...]]:
        phase = Phase("coarse", space, count, 0, HeadSettings(HeadSpec(), epochs=2), 0)
        trials = list(run_phase(phase, problem, trainer, Journal(tmp_path / name)))
        assert len((tmp_path / name).read_text().splitlines()) == count
        return [(trial.index, trial.params, trial.outcome.accuracy, trial.outcome.loss) for trial in trials]

    killed, trained = outcomes(Guessing(tmp_path), 12, "killed"), outcomes(HeadTrainer(problem), 4, "trained")
    assert len((tmp_path / "trials").read_text().split()) == 13  # one ran again
    monkeypatch.setattr("transferapp.system.cluster._connected", False)
    assert killed == outcomes(Guessing(tmp_path), 12, "alone")
    assert trained == outcomes(HeadTrainer(problem), 4, "trained alone")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"transferapp\[ray\]"), connected("local"):
        pass
    with connected(""):
        assert list(parallel(str, range(3), threads=2)) == ["0", "1", "2"]


@pytest.mark.slow
def test_no_cluster_at_the_address() -> None:
    pytest.importorskip("ray")
    with pytest.raises(ResourceError, match=r"no Ray cluster at 127\.0\.0\.1:1 "), connected("127.0.0.1:1"):
        pass


@pytest.mark.parametrize("name", ["fit.txt", "serve.txt"])
def test_the_plain_installation_has_no_ray(name: str) -> None:
    locked = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    assert re.search(r"^numpy==", locked, re.MULTILINE)
    assert not re.search(r"^ray\b", locked, re.MULTILINE)
