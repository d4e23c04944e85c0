"""The pages of audit and doctor, and what the report says of copies and leaks: whole, escaped, and right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_near_duplicates import photo
from tests.evaluation.test_report import HOSTILE, Page, make_manifest
from transferapp.data.audit_findings import summarize, with_similar_pairs
from transferapp.data.dataset import Dataset, Ignored, Record
from transferapp.evaluation.metrics import measure
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
    assert "2 near copies of other images, in 2 groups." in words
    assert "1 group of copies with more than one label: one of them must be wrong." in words
    assert "2 near copies, 2 labels" in words
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
    assert "Not looked for." in page.words()
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


def leaks(**changes: Any) -> dict[str, Any]:
    honest = measure(np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), np.array([0, 1, 0]), ["ant", "bee"]).to_json()
    overlap = {"split": "test", "others": ["train", "val"], "num_images": 5, "exact": 1, "near": 1, "group": 0}
    return {"overlap": overlap, "num_similar": 0, "similar": [], "honest": honest, **changes}


def test_the_report_says_which_test_images_were_learned_from_and_the_figure_without_them() -> None:
    manifest = make_manifest(leaks=leaks())
    manifest["data"]["findings"] = findings()
    manifest["class_weights"] = {"reason": {"topic": "classes", "text": "set by --class-weights none", "values": {}}}
    words = Page(render_report(manifest, samples=[], mistakes=[], copies={})).words()
    assert "Some of the test images were learned from, or nearly" in words
    assert "2 of 5 test images are among the training and validation images too: 1 byte for byte, 1 as near" in words
    assert "Without these: accuracy 0.667, 2 of 3 images right, 95 % interval 0.21 to 0.94." in words
    assert "that it had never seen" not in words
    assert "test images." in words
    assert "set by --class-weights none" in words
    assert "2 near copies, 2 labels" in words
    assert "Mean recall" in words


def test_a_clean_test_split_is_said_to_be_clean() -> None:
    none = {**leaks()["overlap"], "exact": 0, "near": 0}
    words = Page(render_report(make_manifest(leaks=leaks(overlap=none, honest=None)), samples=[], mistakes=[])).words()
    assert "No test image is a copy, or nearly, of one that was learned from; nor does any look like one" in words
    assert "that it had never seen" in words


def test_sentences_count_in_the_right_number() -> None:
    document = findings(alike=False)
    document.update(
        exact_duplicates=1, near_duplicates=0, num_clusters=1, conflicts=0, imbalance=3.0, counts={"a": 3, "b": 1}
    )
    assert data_sentences(document) == [
        "6 images in 2 classes, 3.0 times as many of a (3) as of b (1)",
        "1 exact copy of other images, in 1 group",
    ]
    one = {**leaks()["overlap"], "near": 0}
    assert leak_sentences(leaks(overlap=one, num_similar=2))[:2] == [
        "1 of 5 test images is among the training and validation images too: 1 byte for byte",
        "2 test images more look like one that was learned from",
    ]
    assert leak_sentences(None) == []
