"""The model card of a bundle: its YAML header, its figures, and names that Markdown would read as something else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.golden import check_golden
from tests.helpers.manifests import leaks, long_manifest, make_manifest, mixed_manifest, some_metrics, tuned_manifest
from transferapp.evaluation.report.model_card import CLASSES_SHOWN, FEW_TEST_IMAGES, LOW_RECALL, model_card


def header(card: str) -> dict[str, Any]:
    """Return the YAML header."""
    start, text, body = card.split("---\n", 2)
    assert start == ""
    assert body.startswith("\n# ")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def section(card: str, heading: str) -> str:
    """Return the text below a heading."""
    return card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def ensemble_manifest() -> dict[str, Any]:
    """A manifest as `ensemble` writes it."""
    whole = make_manifest()
    return {
        **{key: whole[key] for key in ("name", "created", "class_names", "input", "parity", "precision", "versions")},
        "members": [{"name": "insects-a", "version": "0" * 12}, {"name": "insects-b", "version": "1" * 12}],
        "metrics": {"validation": None, "test": None},
    }


def test_the_header_holds_the_figures_on_the_test_images() -> None:
    manifest = make_manifest()
    found = header(model_card(manifest))
    assert (found["library_name"], found["pipeline_tag"]) == ("keras", "image-classification")
    ((model,), (result,)) = found["model-index"], found["model-index"][0]["results"]
    assert model["name"] == "insects"
    assert result["dataset"] == {"name": "insects", "type": "imagefolder", "split": "test"}
    figures = {metric["type"]: metric["value"] for metric in result["metrics"]}
    test = manifest["metrics"]["test"]
    expected = {"accuracy": test["accuracy"], "recall": test["macro_recall"], "f1": test["macro_f1"]}
    assert figures == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("manifest", [ensemble_manifest(), make_manifest(metrics={"validation": None, "test": None})])
def test_without_test_images_no_figure_is_claimed(manifest: dict[str, Any]) -> None:
    card = model_card(manifest)
    assert "model-index" not in header(card)
    assert not re.search(r"\d\.\d{3}", section(card, "Evaluation"))


def test_names_are_shown_as_they_are() -> None:
    names = ("a|b", "*bold*", "<script>", "tab\tand\nline", "caf\udce9", "---", "key: [value")
    manifest = {**make_manifest(names), "name": "# - 'x': \"y\" {z}"}
    card = model_card(manifest)
    card.encode("utf-8")
    assert header(card)["model-index"][0]["name"] == manifest["name"]
    rows = [line for line in section(card, "Training data").splitlines() if line.startswith("|")][3:]
    assert len(rows) == len(names)
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "<script>" not in card
    assert "*bold*" not in card


def test_limits_follow_from_the_figures() -> None:
    few, many = (
        make_manifest(metrics={"validation": None, "test": some_metrics(("ant", "bee", "wasp"), n, 6).to_json()})
        for n in (15, 60)
    )
    assert few["metrics"]["test"]["num_images"] < FEW_TEST_IMAGES <= many["metrics"]["test"]["num_images"]
    interval = "{:.2f} to {:.2f}"
    assert interval.format(*few["metrics"]["test"]["accuracy_interval"]) in section(model_card(few), "Limits")
    assert interval.format(*many["metrics"]["test"]["accuracy_interval"]) not in section(model_card(many), "Limits")
    weak = make_manifest()
    recalls = {name: figures["recall"] for name, figures in weak["metrics"]["test"]["per_class"].items()}
    assert min(recalls.values()) >= LOW_RECALL
    weak["metrics"]["test"]["per_class"]["bee"]["recall"] = LOW_RECALL - 0.01
    assert "bee" in section(model_card(weak), "Limits")
    assert "bee" not in section(model_card(make_manifest()), "Limits")


def test_imagenet_is_named_only_where_the_backbone_comes_from_it() -> None:
    own = make_manifest()
    own["backbone"] = {**own["backbone"], "source": "file"}
    scratch = make_manifest()
    scratch["config"] = {**scratch["config"], "scratch": True}
    assert "ImageNet" in model_card(make_manifest())
    for manifest in (own, scratch, ensemble_manifest()):
        assert "ImageNet" not in model_card(manifest)


def test_many_classes_are_counted_instead_of_listed() -> None:
    names = tuple(f"class {number}" for number in range(CLASSES_SHOWN + 7))
    card = model_card(make_manifest(names))
    assert names[CLASSES_SHOWN - 1] in card
    assert names[CLASSES_SHOWN] not in section(card, "Training data")


def test_the_whole_text() -> None:
    cards = {
        "linear classifier": make_manifest(),
        "fine-tuned": tuned_manifest(leaks=leaks()),
        "mixture of stages": mixed_manifest(),
        "long images": long_manifest(),
        "without held-out images": make_manifest(metrics={"validation": None, "test": None}),
        "ensemble": ensemble_manifest(),
    }
    text = "\n\n".join(f"=== {name}\n\n{model_card(manifest)}" for name, manifest in cards.items())
    check_golden(Path(__file__).parent / "golden" / "model_card.txt", text)
