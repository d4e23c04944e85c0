"""Pages of audit and label doctor, and duplicates and overlap in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.test_near_duplicates import photo
from tests.evaluation.test_report import HOSTILE, Page
from tests.helpers.manifests import leaks, make_manifest
from transferapp.data.audit import summarize, with_similar_pairs
from transferapp.data.dataset import Dataset, Ignored, Record
from transferapp.evaluation.report.audit_report import labels_shown, render_audit, render_doctor
from transferapp.evaluation.report.fit_report import render_report
from transferapp.evaluation.report.pages import CLUSTERS_SHOWN, MEMBERS_SHOWN, names_shown, thumbnail, thumbnails
from transferapp.evaluation.report.wording import data_sentences, leak_sentences

URI = thumbnail(photo(0))


def findings(*, alike: bool = True, class_names: tuple[str, str] = ("ant", "bee")) -> dict[str, Any]:
    records = [
        Record(
            Path(f"{i}"), f"{class_names[i % 2]}/{i}.jpg", i % 2, sha256=f"{i}", size=(640, 480), form="JPEG", **facts
        )
        for i, facts in enumerate(
            [
                {"cluster": "a"},
                {"cluster": "a"},
                {"cluster": "b", "notes": ("converted_from_cmyk",)},
                {},
                {"cluster": "b"},
                {},
            ]
        )
    ]
    data = Dataset("here", class_names, tuple(records), (Ignored("x.jpg", "empty_file", "The image is empty."),))
    found = summarize(data)
    return (with_similar_pairs(found, data, [(3, 5, 0.93)]) if alike else found).to_json()


IGNORED = [{"name": "x.jpg", "code": "empty_file", "reason": "The image is empty."}]


def test_the_audit_page_shows_copies_what_was_left_out_and_what_is_odd() -> None:
    document = findings()
    names = names_shown(document)
    page = Page(render_audit("/images/insects", document, IGNORED, dict.fromkeys(names, URI)))
    words = page.words()
    assert "insects 6 images can be used, 1 file cannot." in words
    assert "2 near-duplicates, in 2 groups." in words
    assert "1 group of duplicates has more than one label" in words
    assert "2 near-duplicates, 2 labels" in words
    assert "cosine 0.93" in words
    assert "the image was in CMYK" in words
    assert page.row("x.jpg") == ["x.jpg", "The image is empty."]
    assert page.row("ant")[1] == "3"
    assert len(page.named("img")) == 6
    assert len(page.named("li", "conflict")) == 1
    assert "would refuse" not in words


def test_the_audit_page_says_why_a_fit_would_refuse() -> None:
    page = Page(render_audit("x", findings(alike=False), IGNORED, {}, "Class 'ant' has 1 usable image."))
    assert "A fit would refuse this set: Class 'ant' has 1 usable image." in page.words()
    assert page.named("img") == []


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_page_obeys_names(hostile: str) -> None:
    document = findings(class_names=(hostile, "bee"))
    ignored = [{"name": hostile, "code": "unreadable", "reason": hostile}]
    row = {"path": hostile, "given_label": hostile, "suggested_label": hostile, "confidence": 0.9, "suspected": True}
    diagnosis = {
        "data": hostile, "num_images": 9, "num_suspected": 1, "accuracy": 0.9, "backbone": "b", "stage": "top",
        "images": [row],
    }  # fmt: skip
    for html in (
        render_audit(hostile, document, ignored, {}, hostile),
        render_doctor(diagnosis, {hostile: URI}, hostile),
    ):
        page = Page(html)
        assert page.named("script") == []
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
        assert all((a.get("src") or "").startswith("data:image/jpeg;base64,") for a in page.named("img"))
        (policy,) = [a for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
        assert (policy["content"] or "").startswith("default-src 'none'; img-src data:; style-src 'sha256-")
        html.encode()


def test_the_doctors_page_shows_suspects_and_then_the_rest() -> None:
    images = [
        {"path": f"{i}.jpg", "given_label": "ant", "suggested_label": "bee", "confidence": 0.9, "suspected": i < 2}
        for i in range(5)
    ]
    diagnosis = {
        "data": "insects", "num_images": 50, "num_suspected": 2, "accuracy": 0.9, "backbone": "lite", "stage": "top",
        "images": images,
    }  # fmt: skip
    assert labels_shown(diagnosis) == [f"{i}.jpg" for i in range(5)]
    page = Page(render_doctor(diagnosis, dict.fromkeys(labels_shown(diagnosis), URI), "labels.csv"))
    assert "2 of 50 labels look wrong." in page.words()
    assert len(page.named("img")) == 5
    assert page.words().index("Suspected") < page.words().index("1.jpg") < page.words().index("Next in the list")


def test_only_some_images_of_many_copies_are_shown(tmp_path: Path) -> None:
    records = [
        Record("x", f"{k}-{i}", 0, sha256=f"{k}-{i}", cluster=f"{k}")
        for k in range(CLUSTERS_SHOWN + 3)
        for i in range(MEMBERS_SHOWN + 2)
    ]
    document = summarize(Dataset("here", ("a", "b"), tuple(records))).to_json()
    assert len(names_shown(document)) == CLUSTERS_SHOWN * MEMBERS_SHOWN
    words = Page(render_audit("x", document, [], {})).words()
    assert "and 2 more" in words
    assert "And 3 groups more; the JSON lists 27." in words


def test_thumbnails_of_what_is_gone_are_left_out(tmp_path: Path) -> None:
    photo(1).save(tmp_path / "a.png")
    records = [Record(str(tmp_path / name), name, 0) for name in ("a.png", "gone.png")]
    assert list(thumbnails(records, ["a.png", "gone.png", "unknown.png"])) == ["a.png"]


# In the report


def test_the_report_shows_the_overlap_of_test_and_training_images() -> None:
    manifest = make_manifest(leaks=leaks())
    manifest["data"]["findings"] = findings()
    manifest["class_weights"] = {"reason": {"topic": "classes", "text": "set by --class-weights none", "values": {}}}
    words = Page(render_report(manifest, samples=[], mistakes=[], copies={})).words()
    for sentence in leak_sentences(leaks()):
        assert sentence in words
    assert "held out" not in words
    assert "set by --class-weights none" in words
    assert "2 near-duplicates, 2 labels" in words


def test_without_overlap_test_images_are_held_out() -> None:
    none = {**leaks()["overlap"], "exact": 0, "near": 0}
    words = Page(render_report(make_manifest(leaks=leaks(overlap=none, honest=None)), samples=[], mistakes=[])).words()
    assert "No test image is a duplicate" in words
    assert "held out" in words


def test_sentences_use_singular_and_plural_and_name_numbers() -> None:
    document = findings(alike=False)
    document.update(
        exact_duplicates=1, near_duplicates=0, num_clusters=1, conflicts=0, imbalance=3.0, counts={"a": 3, "b": 1}
    )
    size, duplicates = data_sentences(document)
    assert "6 images in 2 classes" in size
    assert "a (3), has 3.0 times" in size
    assert "1 exact duplicate, in 1 group" in duplicates
    document.update(exact_duplicates=0, num_clusters=0, conflicts=2, num_similar=2)
    assert "no duplicates" in data_sentences(document)[1]
    assert "2 groups of duplicates have" in data_sentences(document)[2]
    one = {**leaks()["overlap"], "near": 0}
    overlap, similar, without = leak_sentences(leaks(overlap=one, num_similar=2))
    assert "1 of 5 test images is also among" in overlap
    assert "2 more test images look" in similar
    assert "0.667 (95 % interval 0.21 to 0.94): 2 of 3 images" in without
    assert len(leak_sentences(leaks(honest=None))) == 2
    assert leak_sentences(None) == []
