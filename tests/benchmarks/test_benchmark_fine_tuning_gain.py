"""`benchmarks/fine_tuning_gain.py`: the images that both fits train and test on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fine_tuning_gain


def folders(root: Path, *names: str, count: int) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index:02}.png").write_bytes(f"{name} {index}".encode())
    return root


def contents(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.rglob("*.png")}


def test_every_fifth_image_is_for_testing_however_many_are_trained_on(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", "a", "b", count=20)
    fine_tuning_gain.link_with_test(data, tmp_path / "some", 16)
    fine_tuning_gain.link_with_test(data, tmp_path / "all", 0)
    for name in ("some", "all"):
        assert contents(tmp_path / name / "test") == {f"{c} {i}" for c in "ab" for i in (0, 5, 10, 15)}
    assert len(contents(tmp_path / "some" / "train")) == 16
    assert len(contents(tmp_path / "all" / "train")) == 32
    assert not contents(tmp_path / "all" / "train") & contents(tmp_path / "all" / "test")


def test_given_test_images_stay_what_they_are(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", "train/a", "train/b", "test/a", "test/b", count=10)
    fine_tuning_gain.link_with_test(data, tmp_path / "linked", 4)
    assert len(contents(tmp_path / "linked" / "test")) == 20
    assert {text.split("/")[0] for text in contents(tmp_path / "linked" / "train")} == {"train"}
    assert len(list((tmp_path / "linked" / "train" / "a").iterdir())) == 2


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fine_tuning_gain.main(["--data", str(tmp_path / "nowhere"), "--images", "10"])
    assert caught.value.code == 2
    assert "nowhere" in capsys.readouterr().err
