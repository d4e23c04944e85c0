"""Audit findings: sizes, duplicates, oddities, overlaps between splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.data.test_near_duplicates import photo
from transferapp.data.audit import (
    CLUSTERS_LISTED,
    MEMBERS_LISTED,
    audit,
    check_usable,
    overlap_kinds,
    overlap_with,
    summarize,
    with_similar_pairs,
)
from transferapp.data.dataset import Dataset, Record, Split
from transferapp.data.folder import read_folder
from transferapp.data.near_duplicates import with_clusters
from transferapp.errors import DataError
from transferapp.evaluation.report.wording import data_sentences


def record(name: str, label: int = 0, split: Split | None = None, **facts: str) -> Record:
    return Record(name, name, label, split, **{"sha256": name, **facts})  # type: ignore[arg-type]


def dataset(*records: Record, given: tuple[Split, ...] = ()) -> Dataset:
    return Dataset("here", ("ant", "bee"), records, given_splits=given)


def test_a_folder_with_everything_wrong_is_told_in_numbers_and_names(tmp_path: Path) -> None:
    for index in range(6):
        (tmp_path / ("ant" if index < 4 else "bee")).mkdir(exist_ok=True)
        photo(index).save(tmp_path / ("ant" if index < 4 else "bee") / f"{index}.png")
    (tmp_path / "bee" / "twin.png").write_bytes((tmp_path / "ant" / "0.png").read_bytes())
    photo(4).convert("CMYK").save(tmp_path / "bee" / "cmyk.jpg", quality=95)
    photo(9).save(tmp_path / "ant" / "really a png.jpg", "PNG")
    photo(8, side=20).save(tmp_path / "ant" / "tiny.png")
    photo(7, side=160).resize((400, 40)).save(tmp_path / "ant" / "strip.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "ant" / "blank.png")
    (tmp_path / "ant" / "empty.png").write_bytes(b"")
    source = read_folder(str(tmp_path))
    found = summarize(with_clusters(audit(source, refuse=False)))
    assert (found.num_images, found.num_ignored) == (12, 1)
    assert found.counts == {"ant": 8, "bee": 4}
    assert found.imbalance == 2
    assert found.sizes == {"smallest": [20, 20], "median": [160, 160], "largest": [160, 160]}
    assert found.forms == {"PNG": 11, "JPEG": 1}
    odd = {item.code: item.examples for item in found.odd}
    assert odd == {
        "converted_from_cmyk": ("bee/cmyk.jpg",),
        "misnamed": ("ant/really a png.jpg",),
        "tiny": ("ant/tiny.png",),
        "elongated": ("ant/strip.png",),
        "featureless": ("ant/blank.png",),
    }
    assert (found.exact_duplicates, found.near_duplicates, found.conflicts, found.num_clusters) == (1, 1, 1, 2)
    first, second = found.clusters
    assert (first.kind, first.num_labels) == ("exact", 2)
    assert [member.name for member in first.members] == ["ant/0.png", "bee/twin.png"]
    assert (second.kind, second.num_labels, second.num_images) == ("near", 1, 2)
    document = json.loads(json.dumps(found.to_json()))
    assert document["odd"][0]["reason"]
    assert document["similar"] is None


def test_what_a_fit_would_refuse_can_be_audited_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "bee").mkdir()
    photo(0).save(tmp_path / "ant" / "0.png")
    for index in range(3):
        (tmp_path / "bee" / f"{index}.jpg").write_bytes(b"<html>")
    source = read_folder(str(tmp_path))
    audited = with_clusters(audit(source, refuse=False))
    found = summarize(audited)
    assert (found.num_images, found.num_ignored, found.counts) == (1, 3, {"ant": 1, "bee": 0})
    with pytest.raises(DataError, match="3 of 4 images"):
        check_usable(source, audited)


def test_nothing_usable_has_no_sizes(tmp_path: Path) -> None:
    found = summarize(dataset())
    assert (found.sizes, found.num_images, found.clusters) == (None, 0, ())


def test_images_of_one_split_that_are_in_another_are_told_apart_by_how() -> None:
    data = dataset(
        record("a", split="train"),
        record("b", split="train", cluster="b"),
        record("c", split="val", group="patient"),
        record("a again", split="test", sha256="a"),
        record("b mirrored", split="test", cluster="b"),
        record("c later", split="test", group="patient"),
        record("d", split="test"),
        given=("train", "val", "test"),
    )
    assert overlap_kinds(data, "test", ("train", "val")) == ["exact", "near", "group", None]
    assert overlap_kinds(data, "test", ("train",)) == ["exact", "near", None, None]
    shared = overlap_with(data, "test", ("train", "val"))
    assert (shared.num_images, shared.exact, shared.near, shared.group, shared.total) == (4, 1, 1, 1, 3)
    val, test = summarize(data).overlaps
    assert (val.split, val.others, val.total) == ("val", ("train",), 0)
    assert (test.split, test.others, test.total) == ("test", ("train", "val"), 3)
    assert summarize(dataset(*data.records)).overlaps == ()


def test_contradictions_come_first_and_lists_are_cut() -> None:
    clusters = [record(f"{k}-{i}", cluster=f"{k}") for k in range(CLUSTERS_LISTED + 5) for i in range(2)]
    clusters += [record(f"many {i}", cluster="many") for i in range(MEMBERS_LISTED + 8)]
    clusters += [record("x", 0, cluster="odd"), record("y", 1, cluster="odd")]
    found = summarize(dataset(*clusters))
    assert found.num_clusters == CLUSTERS_LISTED + 7
    assert len(found.clusters) == CLUSTERS_LISTED
    assert found.clusters[0].num_labels == 2
    assert found.clusters[1].num_images == MEMBERS_LISTED + 8
    assert len(found.clusters[1].members) == MEMBERS_LISTED


def test_look_alikes_of_one_cluster_are_known_already() -> None:
    data = dataset(record("a", cluster="k"), record("b", cluster="k"), record("c", 1))
    found = with_similar_pairs(summarize(data), data, [(0, 1, 0.99), (1, 2, 0.91)])
    assert found.num_similar == 1
    assert found.similar is not None
    (pair,) = found.similar
    assert (pair.first.name, pair.second.name, pair.second.label, pair.cosine) == ("b", "c", "bee", 0.91)


def test_classes_that_may_be_one_are_named() -> None:
    names = ("Bee", "ant", "bee", "bee ", "busy_bee", "Busy Bee", "wasp")
    findings = summarize(Dataset("data", names, ()))
    assert findings.spellings == (("Bee", "bee", "bee "), ("busy_bee", "Busy Bee"))
    said = " ".join(data_sentences(findings.to_json()))
    assert "The classes 'Bee', 'bee' and 'bee ' differ by case and blanks alone" in said


@pytest.mark.parametrize(
    ("names", "nested"),
    [
        (["a/x/1.png", "a/y/2.png", "b/x/3.png", "b/y/4.png"], ("x", "y")),
        (["a/10/1.png", "a/9/z/2.png", "b/10/3.png", "b/9/4.png"], ("9", "10")),
        (["a/x/1.png", "a/y/2.png", "b/x/3.png"], ()),
        (["a/x/1.png", "b/x/3.png"], ()),
        (["a/x/1.png", "a/y/2.png", "b/x/3.png", "b/y/4.png", "b/5.png"], ()),
        (["a/1.png", "b/2.png"], ()),
        (["train/a/1.png", "train/b/2.png", "test/a/1.png", "test/b/2.png"], ()),
    ],
)
def test_folders_that_all_classes_have_in_them_are_named(names: list[str], nested: tuple[str, ...]) -> None:
    records = tuple(Record(name, name, int("b/" in name), sha256=name) for name in names)
    findings = summarize(Dataset("data", ("a", "b"), records))
    assert findings.nested == nested
    said = " ".join(data_sentences(findings.to_json()))
    assert ("All classes have the same folders in them" in said) == bool(nested)


def test_images_beside_their_masks_are_named() -> None:
    findings = summarize(Dataset("data", ("images", "masks"), ()))
    assert "'images' and 'masks' look like images and what is known of them" in " ".join(
        data_sentences(findings.to_json())
    )
    assert summarize(Dataset("data", ("cat", "dog"), ())).annotations == ()
