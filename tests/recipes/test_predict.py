"""Batch prediction: answers in every format, runs that are killed and go on, and bounded work."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.fitted import command, environment, transferapp
from tests.helpers.scenes import scene
from tests.helpers.tiny_bundle import make_tiny_bundle
from transferapp.bundle.predictor import Prediction, Predictor, Score
from transferapp.data.image_files import ImageFile, list_images
from transferapp.errors import DataError, ImageError, UsageError
from transferapp.recipes import predict as predict_module
from transferapp.recipes.answer_files import COLUMNS, Answer, Journal, write_answers
from transferapp.recipes.predict import BatchSettings, answer, answers, predict_images
from transferapp.recipes.sorting import undo
from transferapp.system.threads import cpu_cores


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty scenes at various depths, and two files that are no images."""
    root = tmp_path_factory.mktemp("images")
    for number in range(40):
        file = root / f"{number % 3}" / f"{number:02}.jpg"
        file.parent.mkdir(exist_ok=True)
        scene((64 + number, 48)).rotate(7 * number).save(file)
    (root / "1" / "broken.jpg").write_bytes((root / "1" / "01.jpg").read_bytes()[:300])
    (root / "text.png").write_text("no image")
    return root


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_answers_are_those_of_the_predictor_in_the_order_of_the_paths(
    bundle: Path, folder: Path, tmp_path: Path
) -> None:
    result = predict_images(bundle, [folder], BatchSettings(out=tmp_path / "answers.csv"))
    rows = read_csv(tmp_path / "answers.csv")
    assert [row["file"] for row in rows] == sorted(map(str, folder.rglob("*.*")))
    predictor = Predictor.load(bundle)
    for row in rows:
        file = Path(row["file"])
        if file.name in ("broken.jpg", "text.png"):
            with pytest.raises(ImageError) as caught:
                predictor.predict(file)
            assert row == {**dict.fromkeys(COLUMNS, ""), "file": str(file), "error": caught.value.code}
        else:
            best = predictor.predict(file).scores[0]
            assert (row["label"], float(row["score"]), row["error"]) == (best.label, round(best.score, 6), "")
    assert (result.num_images, result.errors) == (42, {"truncated": 1, "unsupported_format": 1})
    assert sum(result.labels.values()) == 40
    assert sorted(os.listdir(tmp_path)) in (["answers.csv"], [".answers.csv.lock", "answers.csv"])


def test_all_formats_say_the_same(bundle: Path, folder: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    for suffix in (".csv", ".jsonl", ".parquet"):
        predict_images(bundle, [folder], BatchSettings(out=tmp_path / f"a{suffix}", views=1))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == lines
    texts = [{name: "" if value is None else str(value) for name, value in line.items()} for line in lines]
    assert texts == read_csv(tmp_path / "a.csv")
    assert all(tuple(line) == COLUMNS for line in lines)


def test_every_field_of_a_prediction_is_in_the_answers(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet

    def predicted(*_arguments: Any, **_options: Any) -> Prediction:
        scores = (Score('a,"b', 0.12345678),)
        return Prediction(scores, 1, "PNG", (9, 9), (), {}, novelty=0.03, known=False, prediction_set=('a,"b', "c"))

    monkeypatch.setattr(Predictor, "predict", predicted)
    name = os.fsdecode(b"\xff;1.png")
    found = answer(Predictor.load(bundle), 1, ImageFile(name, "1.png"))
    assert (found.novelty, found.known, found.prediction_set) == (0.03, False, ('a,"b', "c"))
    for suffix in ("csv", "jsonl", "parquet"):
        write_answers([found], tmp_path / f"a.{suffix}")
    expected = {
        "file": "\\udcff;1.png",
        "label": 'a,"b',
        "score": 0.123457,
        "novelty": 0.03,
        "known": False,
        "prediction_set": ['a,"b', "c"],
        "error": None,
    }
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == [expected]
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {**expected, "file": name}
    (row,) = read_csv(tmp_path / "a.csv")
    assert row["known"] == "false"
    assert json.loads(row["prediction_set"]) == expected["prediction_set"]
    assert (row["file"], row["label"], row["score"]) == (expected["file"], 'a,"b', "0.123457")


def test_tables_and_archives_and_files_stand_together(bundle: Path, folder: Path, tmp_path: Path) -> None:
    image = folder / "0" / "00.jpg"
    (tmp_path / "list.csv").write_text(f"path,when\n{image},Monday\nmissing.jpg,Monday\n")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(image, "x/00.jpg")
    paths = [tmp_path / "list.csv", tmp_path / "in.zip", image]
    result = predict_images(bundle, paths, BatchSettings(out=tmp_path / "answers.csv", views=1))
    rows = read_csv(tmp_path / "answers.csv")
    assert [row["file"] for row in rows] == [str(image), "missing.jpg", f"{tmp_path}/in.zip/x/00.jpg", str(image)]
    assert [row["error"] for row in rows] == ["", "missing_file", "", ""]
    assert len({(row["label"], row["score"]) for row in rows if not row["error"]}) == 1
    assert result.errors == {"missing_file": 1}


# Places for the answers


def test_what_is_no_file_of_answers_is_left_alone(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\na.jpg,cat\n")
    (tmp_path / "x.parquet").write_text("no table")
    (tmp_path / "folder.csv").mkdir()
    for name in ("labels.csv", "x.parquet", "folder.csv", "answers.txt", "answers", "nowhere/answers.csv"):
        with pytest.raises(UsageError):
            predict_images(bundle, [folder], BatchSettings(out=tmp_path / name))
    assert (tmp_path / "labels.csv").read_text() == "file,label\na.jpg,cat\n"
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(UsageError):
        predict_images(bundle, [folder], BatchSettings())
    with pytest.raises(UsageError):
        predict_images(bundle, [folder], BatchSettings(sort_into=tmp_path / "labels.csv"))


def test_earlier_answers_are_replaced_when_the_new_ones_are_whole(bundle: Path, folder: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"a.{suffix}"
        write_answers([Answer("old.jpg", "red", 0.9)], out)
        with pytest.raises(DataError):
            predict_images(bundle, [folder, tmp_path / "empty.zip", _empty(tmp_path)], BatchSettings(out=out, views=1))
        assert b"old.jpg" in out.read_bytes()
        predict_images(bundle, [folder / "0"], BatchSettings(out=out, views=1))
        assert b"old.jpg" not in out.read_bytes()


def _empty(root: Path) -> Path:
    (root / "empty").mkdir(exist_ok=True)
    return root / "empty"


# Killed runs


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the journal die in the middle of the line after so many answers."""
    add = Journal.add
    written = []

    def dying(self: Journal, given: Answer) -> None:
        if len(written) == count:
            assert self._stream is not None
            self._stream.write(b'{"file": "half')
            self._stream.flush()
            raise Killed
        written.append(given)
        add(self, given)

    monkeypatch.setattr(Journal, "add", dying)


def count_answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are classified from now on."""
    asked: list[str] = []

    def counted(predictor: Predictor, views: int, image: ImageFile) -> Answer:
        asked.append(image.name)
        return answer(predictor, views, image)

    monkeypatch.setattr(predict_module, "answer", counted)
    return asked


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("count", [0, 1, 17, 41])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    bundle: Path, folder: Path, tmp_path: Path, suffix: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (BatchSettings(out=tmp_path / f"{name}.{suffix}", views=1) for name in ("whole", "killed"))
    predict_images(bundle, [folder], whole)
    with monkeypatch.context() as patch:
        kill_after(patch, count)
        with pytest.raises(Killed):
            predict_images(bundle, [folder], killed)
    assert killed.out is not None
    assert whole.out is not None
    assert not killed.out.exists()
    asked = count_answers(monkeypatch)
    result = predict_images(bundle, [folder], killed)
    assert result.num_resumed == count
    assert len(asked) == 42 - count
    assert killed.out.read_bytes() == whole.out.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_a_journal_cut_anywhere_is_continued(bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    images = list(list_images([folder / "0"]))
    given = [Answer(image.name, "red", 0.5, location=image.location) for image in images]
    journal = tmp_path / "a.csv.part"
    with Journal(journal, {"bundle": "x"}) as whole:
        whole.resume(iter(images))
        for each in given:
            whole.add(each)
    data = journal.read_bytes()
    for cut in range(0, len(data), 11):
        journal.write_bytes(data[:cut] + b"\0\0" * (cut % 3))
        with Journal(journal, {"bundle": "x"}) as cut_one:
            kept, rest = cut_one.resume(iter(images))
            for image in rest:
                cut_one.add(given[images.index(image)])
            assert kept <= data[:cut].count(b"\n")
            assert list(cut_one.answers()) == given
    assert not out.exists()


def test_images_that_changed_since_the_kill_are_classified_again(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "in"
    images.mkdir()
    for number in range(8):
        Image.new("RGB", (60, 60), "red").save(images / f"{number}.png")
        os.utime(images / f"{number}.png", (1e9, 1e9))
    settings = BatchSettings(out=tmp_path / "a.csv", views=1)
    with monkeypatch.context() as patch:
        kill_after(patch, 6)
        with pytest.raises(Killed):
            predict_images(bundle, [images], settings)
    Image.new("RGB", (60, 60), "blue").save(images / "3.png")
    os.utime(images / "3.png", (time.time() + 5,) * 2)
    (images / "4.png").unlink()
    Image.new("RGB", (60, 60), "lime").save(images / "35.png")
    result = predict_images(bundle, [images], settings)
    assert result.num_resumed == 3
    assert [(Path(row["file"]).stem, row["label"]) for row in read_csv(tmp_path / "a.csv")] == [
        ("0", "red"),
        ("1", "red"),
        ("2", "red"),
        ("3", "blue"),
        ("35", "green"),
        ("5", "red"),
        ("6", "red"),
        ("7", "red"),
    ]


def test_a_file_that_took_the_place_of_another_since_the_kill_is_classified_again(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "in"
    images.mkdir()
    for number, folder in enumerate([images] * 4 + [tmp_path]):
        Image.new("RGB", (60, 60), "red" if number < 4 else "blue").save(folder / f"{number}.png")
        os.utime(folder / f"{number}.png", (1e9, 1e9))
    settings = BatchSettings(out=tmp_path / "a.csv", views=1)
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            predict_images(bundle, [images], settings)
    time.sleep(0.02)  # more than a tick of the clock of files
    (tmp_path / "4.png").replace(images / "1.png")
    assert predict_images(bundle, [images], settings).num_resumed == 1
    assert [row["label"] for row in read_csv(tmp_path / "a.csv")] == ["red", "blue", "red", "red"]


def test_a_killed_run_on_an_archive_goes_on_unless_it_is_another(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))
    archive, settings = tmp_path / "images.zip", BatchSettings(out=tmp_path / "a.csv", views=1)
    for color in ("blue", "red"):
        _copy_tree(folder, tmp_path / color)
        Image.new("RGB", (60, 60), color).save(tmp_path / color / "text.png")
        shutil.make_archive(str(tmp_path / color), "zip", tmp_path / color)
        shutil.copy(tmp_path / f"{color}.zip", archive)
        expected = predict_images(bundle, [archive], settings).labels
    with monkeypatch.context() as patch:
        kill_after(patch, 12)
        with pytest.raises(Killed):
            predict_images(bundle, [archive], settings)
    shutil.rmtree(tmp_path / "cache")
    with monkeypatch.context() as patch:
        kill_after(patch, 6)
        with pytest.raises(Killed):
            predict_images(bundle, [archive], settings)
    result = predict_images(bundle, [archive], settings)
    assert (result.num_resumed, result.labels) == (18, expected)
    with monkeypatch.context() as patch:
        kill_after(patch, 12)
        with pytest.raises(Killed):
            predict_images(bundle, [archive], settings)
    shutil.copy(tmp_path / "blue.zip", archive)
    assert predict_images(bundle, [archive], settings).num_resumed == 0


def test_an_unfinished_run_of_another_kind_is_not_mixed_in(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.csv"
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed):
            predict_images(bundle, [folder], BatchSettings(out=out, views=1))
    other = make_tiny_bundle(tmp_path / "other", ("a", "b", "c"))
    for path, paths, settings in (
        (other, [folder], BatchSettings(out=out, views=1)),
        (bundle, [folder / "0"], BatchSettings(out=out, views=1)),
        (bundle, [folder], BatchSettings(out=out, views=10)),
    ):
        with pytest.raises(DataError) as caught:
            predict_images(path, paths, settings)
        assert caught.value.code == "run_differs"
    (tmp_path / "a.csv.part").unlink()
    assert predict_images(other, [folder], BatchSettings(out=out, views=1)).num_resumed == 0


def test_two_runs_do_not_write_to_one_place(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BatchSettings(out=tmp_path / "a.csv", views=1)
    second: list[BaseException] = []

    def other_run(*arguments: Any) -> Answer:
        if not second:
            try:
                predict_images(bundle, [folder], settings)
            except DataError as error:
                second.append(error)
        return answer(*arguments)

    monkeypatch.setattr(predict_module, "answer", other_run)
    predict_images(bundle, [folder], settings)
    assert second


def sorted_tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*g") if path.is_file()}


@pytest.mark.parametrize("method", ["move", "copy"])
def test_a_kill_while_sorting_keeps_all_answers(
    bundle: Path, folder: Path, tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = {}
    for name, kill in (("whole", False), ("killed", True)):
        images, into, out = (tmp_path / name / part for part in ("in", "sorted", "a.csv"))
        _copy_tree(folder, images)
        before = sorted_tree(images)
        settings = BatchSettings(out=out, sort_into=into, method=method, views=1)
        if kill:
            with monkeypatch.context() as patch:
                _die_while_sorting(patch, 20)
                with pytest.raises(Killed):
                    predict_images(bundle, [images], settings)
            asked = count_answers(monkeypatch)
            predict_images(bundle, [images], settings)
            assert asked == []
        else:
            predict_images(bundle, [images], settings)
        rows = [{**row, "file": os.path.relpath(row["file"], images)} for row in read_csv(out)]
        trees[name] = sorted_tree(into), sorted_tree(images), rows
        undo(into)
        assert sorted_tree(images) == before
        assert not into.exists() or not sorted_tree(into)
    assert trees["whole"] == trees["killed"]


def test_what_was_killed_and_then_undone_begins_with_the_images_as_they_are(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, into, out = (tmp_path / part for part in ("in", "sorted", "a.csv"))
    _copy_tree(folder, images)
    settings = BatchSettings(out=out, sort_into=into, views=1)
    with monkeypatch.context() as patch:
        _die_while_sorting(patch, 20)
        with pytest.raises(Killed):
            predict_images(bundle, [images], settings)
    undo(into)
    first, *rest = sorted(images.rglob("*.*g"))
    first.write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    rest[0].with_name("zz new.png").write_bytes(rest[-1].read_bytes())
    predict_images(bundle, [images], settings)
    rows = {row["file"]: row["error"] for row in read_csv(out)}
    assert rows[str(first)]
    assert str(rest[0].with_name("zz new.png")) in rows
    assert sorted_tree(images) == {}


def _copy_tree(source: Path, target: Path) -> None:
    for file in source.rglob("*.*"):
        copied = target / file.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(file.read_bytes())


def _die_while_sorting(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    from transferapp.recipes import sorting

    done = []
    for name in ("_move", "_copy"):
        function = getattr(sorting, name)

        def dying(source: Path, target: Path, function: Any = function) -> None:
            if len(done) == count:
                raise Killed
            done.append(source)
            function(source, target)

        monkeypatch.setattr(sorting, name, dying)


def test_the_folder_of_sorted_images_may_be_among_the_images(bundle: Path, folder: Path, tmp_path: Path) -> None:
    _copy_tree(folder, tmp_path / "in")
    into = tmp_path / "in" / "sorted"
    settings = BatchSettings(sort_into=into, views=1)
    first = predict_images(bundle, [tmp_path / "in"], settings)
    assert first.num_images == sum(first.folders.values()) == 42
    assert first.folders["unreadable"] == 2
    assert {name: first.folders.get(name, 0) for name in ("unsure", "unknown")} == {
        name: first.doubts.get(name, 0) for name in ("unsure", "unknown")
    }
    assert first.doubts["unsure"] > 0
    assert {path.name for path in into.iterdir() if path.is_dir()} == set(first.folders)
    with pytest.raises(DataError, match="has no images"):
        predict_images(bundle, [tmp_path / "in"], settings)
    undo(into)
    assert sorted_tree(tmp_path / "in") == sorted_tree(folder)


@pytest.mark.slow
def test_a_real_kill(bundle: Path, folder: Path, tmp_path: Path) -> None:
    """SIGKILL at a moment that the test does not choose, over and over, until a run gets through."""
    images = tmp_path / "in"
    for number in range(6):
        _copy_tree(folder, images / f"{number:02}")
    words = ("predict", bundle, images, "--out", tmp_path / "killed.csv", "--views", "50")
    kills = 0
    for _ in range(30):
        process = subprocess.Popen(command(*words), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        journal = tmp_path / "killed.csv.part"
        size = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > size + 8_000):
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode == 3:
            break
    assert kills >= 2
    done = transferapp(*words[:3], "--out", tmp_path / "whole.csv", "--views", "50")
    assert done.returncode == 3
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert len(read_csv(tmp_path / "whole.csv")) == 6 * 42


# Bounded work


def test_images_are_taken_as_they_are_needed(bundle: Path, folder: Path) -> None:
    taken = []

    def endless() -> Iterator[ImageFile]:
        while True:
            taken.append(1)
            yield ImageFile("1.jpg", str(folder / "0" / "00.jpg"))

    made = answers(Predictor.load(bundle, streams=2), endless(), 1)
    for _ in range(100):
        next(made)
    assert len(taken) <= 100 + 16 * cpu_cores()
    made.close()  # type: ignore[attr-defined]
