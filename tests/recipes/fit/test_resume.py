"""What an unfinished fit leaves behind: the same command goes on with it, another one is told the difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from transferapp.errors import DataError, ResourceError
from transferapp.recipes.fit.resume import RunFolder

IDENTITY = {"data": "a1b2c3", "epochs": 8, "optimizer": "adam", "sizes": (128, 128)}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "dogs"


def begun(target: Path, identity: dict[str, object] | None = None) -> RunFolder:
    run = RunFolder(target)
    run.begin(identity or IDENTITY)
    return run


def test_it_lies_hidden_beside_the_bundle_and_appears_when_it_is_begun(target: Path) -> None:
    run = RunFolder(target)
    assert run.path == target.parent / ".dogs.run"
    assert not run.unfinished
    assert run.begin(IDENTITY) is False
    assert run.unfinished
    assert RunFolder(target).begin(IDENTITY) is True
    run.discard()
    assert not run.path.exists()
    assert RunFolder(target).begin(IDENTITY) is False


def test_what_was_decided_stays_decided(target: Path) -> None:
    run = begun(target)
    assert not run.decided("block4/epochs")
    assert run.decide("block4/epochs", 5) == 5
    assert run.decide("block4/epochs", 8) == 5
    assert run.decide("rate", (0.1, "found")) == [0.1, "found"], "as it will be found again"
    resumed = RunFolder(target)
    assert resumed.begin(IDENTITY)
    assert resumed.decided("block4/epochs")
    assert resumed.decide("block4/epochs", 2) == 5
    assert resumed.decide("rate", None) == [0.1, "found"]
    assert resumed.decide("new", "value") == "value"


def test_what_is_decided_already_is_not_made_again(target: Path) -> None:
    run = RunFolder(target)
    run.begin({})
    made: list[int] = []
    for _ in range(2):
        assert run.decide_by("views", lambda: made.append(1) or (3, "room")) == [3, "room"]
    assert made == [1]
    run.decide("nothing", None)
    assert run.decide_by("nothing", lambda: made.append(2)) is None, "that too was a decision"
    assert made == [1]


def test_a_part_keeps_its_own_decisions_and_weights_in_the_same_run(target: Path) -> None:
    run = begun(target)
    run.decide("block4/plan", 1)
    part = run.within("small")
    assert part.path == run.path / "small"
    assert not part.decided("block4/plan")
    assert part.decide("block4/plan", 2) == 2
    assert run.decide("block4/plan", None) == 1
    assert part.within("smaller").decide("block4/plan", 3) == 3
    part.checkpoints("block4").save(1, {"w": np.zeros(1)}, {})
    assert run.checkpoints("block4").latest() is None
    resumed = RunFolder(target)
    assert resumed.begin(IDENTITY)
    assert resumed.within("small").decide("block4/plan", None) == 2
    assert resumed.within("small").checkpoints("block4").latest() is not None
    assert resumed.decide("block4/plan", None) == 1
    resumed.discard()
    assert not part.path.exists()


def test_each_difference_is_named_and_nothing_is_lost(target: Path) -> None:
    begun(target).checkpoints("block4").save(1, {"w": np.zeros(1)}, {})
    other = {**IDENTITY, "data": "d4e5f6", "epochs": 4, "schedule": "sgdr"}
    with pytest.raises(DataError) as caught:
        RunFolder(target).begin(other)
    for difference in ("data was 'a1b2c3' and is 'd4e5f6'", "epochs was 8 and is 4", "schedule was None and is 'sgdr'"):
        assert difference in caught.value.what
    assert "optimizer" not in caught.value.what
    assert caught.value.exit_code == 3
    assert "--fresh" in str(caught.value)
    again = RunFolder(target)
    assert again.begin(IDENTITY)
    assert again.checkpoints("block4").latest() is not None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"identity": {}}', '{"identity": 3, "decisions": {}}', "\0\xff"]
)
def test_a_damaged_state_is_forgotten_with_all_that_hangs_on_it(target: Path, text: str) -> None:
    run = begun(target)
    run.decide("epochs", 5)
    run.checkpoints("block4").save(1, {"w": np.zeros(1)}, {})
    (run.path / "run.json").write_text(text, encoding="latin-1")
    again = RunFolder(target)
    assert again.begin(IDENTITY) is False
    assert not again.decided("epochs")
    assert again.checkpoints("block4").latest() is None
    assert RunFolder(target).begin(IDENTITY) is True


def test_generations_of_parts_are_kept_apart(target: Path) -> None:
    run = begun(target)
    run.checkpoints("block4").save(1, {"w": np.zeros(1)}, {})
    assert run.checkpoints("input").latest() is None


def test_a_place_that_cannot_be_written_is_a_lack_of_resources(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        RunFolder(tmp_path / "file" / "dogs").begin(IDENTITY)
