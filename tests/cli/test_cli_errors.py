"""User errors: one clear line, the right exit code, no traceback."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.fitted import transferapp
from tests.helpers.tiny_bundle import make_tiny_bundle

USAGE, DATA, BUNDLE, RESOURCES = 2, 3, 4, 5


def complaint(code: int, *words: object, **options: Any) -> str:
    """Run a command that must fail with `code`; its one line."""
    done = transferapp(*words, **options)
    lines = done.stderr.splitlines()
    assert done.returncode == code, done
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith(".")
    return lines[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that cannot be learned from, and files that are no settings."""
    root = tmp_path_factory.mktemp("folders")
    (root / "empty").mkdir()
    (root / "loose").mkdir()
    for place in ("one/cats/a.png", "one/cats/b.png", "loose/a.png", "single/cats/a.png", "single/dogs/b.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (200, 100, 0)).save(root / place)
    for name in ("cats", "dogs"):
        (root / "broken" / name).mkdir(parents=True)
        for index in range(4):
            (root / "broken" / name / f"{index}.jpg").write_bytes(b"<html>not found</html>")
    (root / "foreign").mkdir()
    (root / "foreign" / "thesis.txt").write_text("years of work")
    (root / "unbalanced.yaml").write_text("data: [one, two")
    (root / "list.yaml").write_text("- data\n- out\n")
    (root / "typo.yaml").write_text("dta: images\n")
    (root / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (root / "wrong_type.yaml").write_text("data: one\nval_fraction: much\n")
    return root


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "No such command 'frobnicate'. See `transferapp --help`"),
        (["fit"], "Name a folder of images with --data"),
        (["fit", "--dat", "x"], "No such option '--dat'"),
        (["fit", "--data", "one", "--seed", "lucky"], "'lucky' is not a valid integer"),
        (["fit", "--data", "one", "--size", "huge"], "'huge' is not one of 'auto', 'small', 'large'"),
        (["fit", "--data", "one", "--val-fraction", "1.5"], "val_fraction is out of range"),
        (["fit", "--data", "one", "--train-views", "-1"], "train_views is out of range"),
        (["fit", "--data", "one", "--weights", "w.h5"], "--weights needs a --backbone"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml cannot be read (No such file or directory)"),
        (["fit", "--config", "unbalanced.yaml"], "unbalanced.yaml is not valid YAML"),
        (["fit", "--config", "binary.yaml"], "binary.yaml is not valid YAML"),
        (["fit", "--config", "list.yaml"], "list.yaml is not a mapping"),
        (["fit", "--config", "typo.yaml"], "Unknown setting 'dta'. Expected one of data, label_fixes"),
        (["fit", "--config", "wrong_type.yaml"], "val_fraction is of the wrong type. Expected float, got 'much'"),
        (["plan", "--out", "x"], "No such option '--out'"),
        (["plan", "--data", "one", "--backbone", "resnet49"], "Unknown backbone 'resnet49'"),
        (["predict"], "Missing argument 'BUNDLE'"),
        (["predict", "bundle"], "Missing argument 'PATH...'"),
        (["predict", "bundle", "s3://a/b"], "Images at an address are read with --out only"),
        (["predict", "bundle", "a.jpg", "--ray", "local"], "--ray means nothing without --out or --sort-into"),
        (["evaluate", "bundle"], "Missing option '--data'"),
        (["serve", "bundle", "--port", "99999"], "99999 is not in the range"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_command_line(folders: Path, words: list[str], said: str) -> None:
    assert said in complaint(USAGE, *words, cwd=folders)


@pytest.mark.parametrize("command", ["fit", "plan"])
def test_a_wrong_path(folders: Path, command: str) -> None:
    assert "There is no file or folder nowhere" in complaint(DATA, command, "--data", "nowhere", cwd=folders)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("empty", "empty has no class folders with images"),
        ("loose", "got 1 loose image"),
        ("one", "one has one class only, 'cats'"),
        ("typo.yaml", "typo.yaml is in a format that is not read"),
        ("single", "Class 'cats' in single has 1 usable image"),
        ("broken", "8 of 8 images in broken cannot be read: cats/0.jpg"),
    ],
)
def test_a_folder_that_cannot_be_trained_on(folders: Path, data: str, said: str) -> None:
    assert said in complaint(DATA, "fit", "--data", data, "--out", "never", cwd=folders)
    assert not (folders / "never").exists()


LONG = 300 * "x"


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--data", "one", "--out", LONG],
        ["fit", "--data", "one", "--out", f"models/{LONG}/a"],
        ["search", "--data", "one", "--out", LONG],
        ["plan", "--data", LONG],
        ["predict", LONG, "a.jpg"],
        ["serve", LONG],
    ],
    ids=lambda words: " ".join(word[:20] for word in words),
)
def test_a_name_too_long_for_the_disk(folders: Path, words: list[str]) -> None:
    said = complaint(USAGE, *words, cwd=folders)
    assert "too long" in said
    assert len(said) < 300


def test_a_link_to_itself(folders: Path) -> None:
    (folders / "loop").symlink_to("loop")
    assert "There is no file or folder loop" in complaint(DATA, "fit", "--data", "loop", cwd=folders)
    assert "leads to itself" in complaint(BUNDLE, "fit", "--data", "one", "--out", "loop", cwd=folders)


def test_what_is_no_bundle_is_never_overwritten(folders: Path) -> None:
    said = complaint(BUNDLE, "fit", "--data", "one", "--out", "foreign", cwd=folders)
    assert "foreign exists and is not a bundle, so it is left alone. Name another folder with --out." in said
    assert (folders / "foreign" / "thesis.txt").read_text() == "years of work"


def test_a_place_below_a_file(folders: Path) -> None:
    said = complaint(RESOURCES, "fit", "--data", "one", "--out", "foreign/thesis.txt/bundle", cwd=folders)
    assert "Could not write foreign/thesis.txt/bundle" in said


_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1


def _obey_permissions() -> None:
    """Give up root's right to write where permissions forbid it: the next program that is started lacks it."""
    ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="rights of root are given up as Linux does it")
@pytest.mark.parametrize("out", ["bundle", "models/bundle"])
def test_a_place_without_the_right_to_write(folders: Path, tmp_path: Path, out: str) -> None:
    place = tmp_path / "read only"
    place.mkdir()
    place.chmod(0o555)
    words = ("fit", "--data", folders / "one", "--out", place / out)
    said = complaint(RESOURCES, *words, preexec_fn=_obey_permissions)
    assert "Permission denied" in said
    assert str(place) in said


@pytest.mark.parametrize(
    ("bundle", "said"),
    [
        ("nowhere", "No bundle was found at nowhere. Expected a folder that `transferapp fit --out` wrote."),
        ("foreign", "foreign is not a bundle: it has no bundle.json"),
    ],
)
def test_a_path_that_is_no_bundle(folders: Path, bundle: str, said: str) -> None:
    assert said in complaint(BUNDLE, "predict", bundle, "one/cats/a.png", cwd=folders)


def test_nothing_to_evaluate(folders: Path) -> None:
    assert "No bundle was found" in complaint(BUNDLE, "evaluate", "nowhere", "--data", "one", cwd=folders)


def test_a_bundle_whose_network_was_altered(folders: Path, tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle")
    weights = bundle / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    said = complaint(BUNDLE, "predict", bundle, folders / "one/cats/a.png")
    assert "model.bin is not the file that was written (its checksum differs)" in said


def test_a_bundle_that_was_cut_off(folders: Path, tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle")
    manifest = bundle / "bundle.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    assert "bundle.json cannot be read" in complaint(BUNDLE, "predict", bundle, folders / "one/cats/a.png")


def test_nothing_to_serve(folders: Path) -> None:
    assert "No bundle was found in foreign" in complaint(BUNDLE, "serve", "foreign", "--port", "0", cwd=folders)


def test_views_and_classes_that_cannot_be(tiny: Path, colors: Path) -> None:
    image = colors / "red" / "0.png"
    assert "Expected one of" in complaint(USAGE, "predict", tiny, image, "--views", "7")
    assert "top_k is out of range" in complaint(USAGE, "predict", tiny, image, "--top-k", "0")


def test_images_of_a_class_that_the_bundle_does_not_know(tiny: Path, folders: Path) -> None:
    said = complaint(DATA, "evaluate", tiny, "--data", folders / "one")
    assert "a class that the bundle does not know: 'cats'" in said
    assert "red" in said


@pytest.mark.parametrize("as_json", [False, True])
def test_a_image_that_cannot_be_used_does_not_stop_the_others(
    tiny: Path, colors: Path, folders: Path, as_json: bool
) -> None:
    bad = [folders / "broken/cats/0.jpg", folders / "nowhere.png", folders / "broken/cats/1.jpg"]
    good = colors / "green" / "0.png"
    done = transferapp("predict", tiny, *bad, good, "--views", "1", *(["--json"] if as_json else []))
    assert done.returncode == DATA
    lines = done.stderr.splitlines()
    assert [str(path) in line for path, line in zip(bad, lines, strict=True)] == [True] * 3
    assert all(line.startswith("Error: ") for line in lines)
    if as_json:
        documents = [json.loads(line) for line in done.stdout.splitlines()]
        assert [document["file"] for document in documents] == [str(path) for path in (*bad, good)]
        assert [document.get("error", {}).get("code") for document in documents] == [
            "unsupported_format",
            "unreadable",
            "unsupported_format",
            None,
        ]
        assert documents[-1]["predictions"][0]["label"] == "green"
    else:
        assert str(good) in done.stdout
        assert str(bad[0]) not in done.stdout


def test_debug_shows_the_traceback_and_keeps_the_exit_code(folders: Path) -> None:
    done = transferapp("plan", "--data", "nowhere", "--debug", cwd=folders)
    assert done.returncode == DATA
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: There is no file or folder nowhere")
