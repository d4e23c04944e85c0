"""Checkpoints: atomic, the newest readable generation, at most two."""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.fitted import ROOT
from transferapp.errors import ResourceError
from transferapp.training.checkpoint import KEPT, CheckpointStore


def arrays_of(number: int, size: int = 50) -> dict[str, np.ndarray]:
    return {
        "model/0": np.full((size, 3), number, np.float32),
        "optimizer/0": np.array(10 * number, np.int64),
        "empty": np.empty((0, 0), np.float32),
    }


def save(store: CheckpointStore, *numbers: int) -> None:
    for number in numbers:
        store.save(number, arrays_of(number), {"epoch": number})


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run" / "block4")
    assert store.latest() is None
    facts = {"history": [{"loss": 0.5, "lost": math.nan, "huge": math.inf}], "notes": ["größer"], "best": None}
    store.save(3, arrays_of(3), facts)
    found = store.latest()
    assert found is not None
    assert found.number == 3
    assert found.arrays.keys() == arrays_of(3).keys()
    for name, array in arrays_of(3).items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found.arrays[name], array)
    (line,) = found.facts["history"]
    assert math.isnan(line.pop("lost"))
    assert found.facts == {**facts, "history": [{"loss": 0.5, "huge": math.inf}]}


def test_two_generations_are_kept_and_the_newest_counts(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1, 2, 3, 12)
    assert [path.name for path in files(tmp_path)] == ["generation-000003.npz", "generation-000012.npz"]
    assert KEPT == 2
    found = store.latest()
    assert found is not None
    assert found.facts == {"epoch": 12}


def test_whatever_damage_the_newest_takes_the_one_before_it_is_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1, 2)
    newest = tmp_path / "generation-000002.npz"
    whole = newest.read_bytes()
    rng = random.Random(0)
    damaged = [whole[:length] for length in (0, 1, 30, len(whole) // 2, len(whole) - 1)]
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    fallen_back = 0
    for data in damaged:
        newest.write_bytes(data)
        found = store.latest()
        assert found is not None
        expected = arrays_of(found.number)
        for name in expected.keys() & found.arrays.keys():  # a flip in the archive's own dates, say, does no harm
            np.testing.assert_array_equal(found.arrays[name], expected[name])
        if found.number == 1:
            fallen_back += 1
            assert found.arrays.keys() == expected.keys()
    assert fallen_back > len(damaged) / 2


def test_where_nothing_can_be_read_there_is_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1, 2)
    for path in files(tmp_path):
        path.write_bytes(b"PK")
    assert store.latest() is None
    save(store, 1)
    assert store.latest() is not None


def test_pickles_are_not_run(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    bomb = np.empty(1, object)
    bomb[0] = Path
    with (tmp_path / "generation-000002.npz").open("wb") as stream:
        np.savez(stream, facts=np.frombuffer(b"{}", np.uint8), bomb=bomb)
    found = store.latest()
    assert found is not None
    assert found.number == 1


def test_a_place_that_cannot_be_written_is_a_lack_of_resources(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="Could not write"):
        save(CheckpointStore(tmp_path / "file" / "run"), 1)


SAVER = """
import sys
from pathlib import Path
import numpy as np
from transferapp.training.checkpoint import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]))
found = store.latest()
number = found.number if found else 0
while True:
    number += 1
    store.save(number, {str(i): np.full(200_000, number) for i in range(3)}, {"epoch": number})
    print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_the_last_whole_generation_and_in_the_end_no_litter(tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(rng.uniform(0.0, 0.2))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            said = [int(line) for line in process.stdout.read().split()]
        found = CheckpointStore(tmp_path).latest()
        assert found is not None
        assert found.number >= max(said, default=1)
        assert found.facts == {"epoch": found.number}
        for array in found.arrays.values():
            np.testing.assert_array_equal(array, np.full(200_000, found.number))
    save(CheckpointStore(tmp_path), 100_000)
    assert len(files(tmp_path)) == KEPT
