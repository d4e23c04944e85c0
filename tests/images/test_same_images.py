"""The same sixty images as class folders, table, archive and tensorflow-datasets give the same model."""

from __future__ import annotations

import csv
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fitted import BACKBONE, DRAWINGS, draw_folders, fitted, transferapp


def as_table(folders: Path, root: Path) -> Path:
    """A table in a random order, of files whose names say nothing, in a folder of their own."""
    (root / "images").mkdir(parents=True)
    rows = []
    for number, file in enumerate(sorted(folders.rglob("*.png"), key=hash_of)):
        (root / "images" / f"{number:03}.png").write_bytes(file.read_bytes())
        rows.append((f"{number:03}", file.parent.name))
    with (root / "drawings.csv").open("w", newline="") as stream:
        csv.writer(stream, delimiter=";").writerows([("image_id", "Class Name"), *rows])
    return root / "drawings.csv"


def hash_of(file: Path) -> int:
    return int.from_bytes(file.read_bytes()[-40:-12])


def as_zip(folders: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for file in sorted(folders.rglob("*.png")):
            archive.write(file, Path("some folder") / file.relative_to(folders))
    return to


def as_tar(folders: Path, to: Path) -> Path:
    with tarfile.open(to, "w:gz") as archive:
        archive.add(as_table(folders, to.parent / "to pack").parent, "packed")
    return to


def as_tfds(folders: Path, data_dir: Path) -> None:
    import tensorflow_datasets as tfds

    def info(self: Any) -> Any:
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=sorted(DRAWINGS))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def examples() -> Iterator[tuple[str, dict[str, Any]]]:
        for file in folders.rglob("*.png"):
            yield file.name, {"image": file, "label": file.parent.name}

    body = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, _: {"train": examples()},
        "_generate_examples": None,
        "__module__": __name__,
        "pkg_dir_path": data_dir,
    }
    with tfds.core.registered.skip_registration():
        builder = type("Drawings", (tfds.core.GeneratorBasedBuilder,), body)(data_dir=data_dir)
    builder.download_and_prepare()


@pytest.mark.slow
def test_every_kind_of_source_gives_the_same_bundle(tmp_path: Path) -> None:
    folders = draw_folders(tmp_path / "folders", per_class=20)
    as_tfds(folders, tmp_path / "tfds")
    sources = {
        "folders": (folders,),
        "table": (as_table(folders, tmp_path / "table"),),
        "zip": (as_zip(folders, tmp_path / "drawings.zip"),),
        "tar": (as_tar(folders, tmp_path / "drawings.tgz"),),
        "tfds": ("tfds:drawings:1.0.0", "--data-dir", tmp_path / "tfds"),
    }
    manifests = {}
    for name, data in sources.items():
        out = tmp_path / "models" / name
        words = ("--out", out, "--backbone", BACKBONE, "--tune", "none", "--train-views", "1")
        done = transferapp("fit", "--data", *data, *words)
        assert done.returncode == 0, done.stderr
        manifests[name] = json.loads((out / "bundle.json").read_text())
    first = manifests["folders"]
    assert sum(sum(counts.values()) for counts in first["data"]["counts"].values()) == 60
    for name, manifest in manifests.items():
        assert manifest["class_names"] == sorted(DRAWINGS), name
        assert manifest["metrics"] == first["metrics"], name
        for entry in ("fingerprint", "counts", "ignored", "given_splits"):
            assert manifest["data"][entry] == first["data"][entry], (name, entry)
        assert manifest["data"]["origin"] == str(sources[name][0])


@pytest.mark.slow
def test_a_bundle_is_measured_on_any_kind_of_source(tmp_path: Path) -> None:
    folders = draw_folders(tmp_path / "folders", per_class=4, seed=9)
    table = as_table(folders, tmp_path / "table")
    answers = [
        transferapp("evaluate", fitted().bundle, "--data", *data, "--json", "--views", "1")
        for data in (
            (folders,),
            (table, "--label-column", "class name"),
            (as_zip(folders, tmp_path / "drawings.zip"),),
        )
    ]
    assert [answer.returncode for answer in answers] == [0, 0, 0], [answer.stderr for answer in answers]
    figures = [json.loads(answer.stdout) for answer in answers]
    assert figures[0]["num_images"] == 12
    assert figures[1] == figures[0]
    assert figures[2] == figures[0]
