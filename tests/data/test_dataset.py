"""Datasets: parts, counts, and the fingerprint."""

from __future__ import annotations

import dataclasses

from transferapp.data.dataset import Dataset, Record

DATA = Dataset(
    "images",
    ("cats", "dogs", "none"),
    (
        Record("a", "cats/a.png", 0, "train", "aa"),
        Record("b", "cats/b.png", 0, "test", "bb"),
        Record("c", "dogs/c.png", 1, "train", "cc"),
    ),
)


def test_parts_keep_class_names_and_order() -> None:
    assert [r.name for r in DATA.part("train").records] == ["cats/a.png", "dogs/c.png"]
    assert [r.name for r in DATA.part("train", "test").records] == [r.name for r in DATA.records]
    assert DATA.part("val").class_names == DATA.class_names
    assert len(DATA.part("val")) == 0


def test_counts_are_of_every_class_also_the_empty_ones() -> None:
    assert DATA.counts() == [2, 1, 0]
    assert DATA.labels.tolist() == [0, 0, 1]


def test_the_fingerprint_is_of_content_label_and_split_and_of_nothing_else() -> None:
    def changed(**changes: object) -> str:
        first = dataclasses.replace(DATA.records[0], **changes)
        return DATA.with_records([first, *DATA.records[1:]]).fingerprint()

    print_of = DATA.fingerprint()
    assert len(print_of) == 12
    assert print_of == DATA.with_records(DATA.records[::-1]).fingerprint()
    assert print_of == changed(location="elsewhere", name="renamed.png")
    assert print_of == dataclasses.replace(DATA, origin="moved").fingerprint()
    others = {changed(sha256="xx"), changed(label=1), changed(split="val"), print_of}
    assert len(others) == 4
