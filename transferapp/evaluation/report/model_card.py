"""Model card of a bundle: a README.md with a YAML header, in the form that model hubs read.

Reference:
    [Mitchell et al., FAccT 2019](https://arxiv.org/abs/1810.03993)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from transferapp.evaluation.report.pages import harmless, page_environment
from transferapp.evaluation.report.wording import (
    counted,
    data_sentences,
    leak_sentences,
    novelty_sentence,
    selected_on_validation,
    sets_sentence,
    uniform_sentence,
)
from transferapp.policy.size import LARGE_PER_CLASS

CLASSES_SHOWN = 20
"""Classes that the card lists by name."""

FEW_TEST_IMAGES = 100
"""Test images below which the card says that the accuracy is uncertain."""

LOW_RECALL = 0.7
"""Recall on the test images below which the card names a class."""

_SPLITS = ("train", "val", "test")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~$&])")


def model_card(manifest: Mapping[str, Any]) -> str:
    """Write the model card.

    Args:
        manifest: Manifest of a fit, a search or an ensemble, with or without checksums.

    Returns:
        Markdown with a YAML header that UTF-8 can encode. The license is left to the owner of the images.
    """
    environment = page_environment().overlay(autoescape=False)
    environment.filters["literal"] = literal
    data, metrics = manifest.get("data"), manifest["metrics"]
    names = manifest["class_names"]
    counts = data["counts"] if data else {}
    body = environment.get_template("model_card.md.j2").render(
        m=manifest,
        plan=manifest.get("plan"),
        members=manifest.get("members"),
        from_imagenet=_from_imagenet(manifest),
        data=data,
        totals=[f"{sum(counts[split].values()):,}" for split in _SPLITS if counts],
        classes=[
            [name, *(f"{counts[split][name]:,}" for split in _SPLITS)] for name in names[:CLASSES_SHOWN] if counts
        ],
        classes_shown=CLASSES_SHOWN,
        sentences=data_sentences(data["findings"]) if data and "findings" in data else [],
        figures=[(split, metrics[split]) for split in ("test", "validation") if metrics.get(split)],
        selected=metrics.get("validation") and selected_on_validation(manifest),
        calibrated=list(filter(None, [novelty_sentence(manifest), sets_sentence(manifest)])),
        limits=_limits(manifest),
    )
    header = yaml.safe_dump(_header(manifest), sort_keys=False, allow_unicode=True, width=120)
    return harmless(f"---\n{header}# license: name one before you publish the bundle\n---\n\n{_tidy(body)}")


def literal(text: str) -> str:
    """Escape a text so that Markdown shows it as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _header(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header: what a hub indexes, with the figures on the test images."""
    header: dict[str, Any] = {
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "transfer-learning", "keras", "openvino", "transferapp"],
    }
    test = manifest["metrics"].get("test")
    if not test:
        return header
    kinds = (
        ("accuracy", "accuracy", "Accuracy"),
        ("recall", "macro_recall", "Mean recall"),
        ("f1", "macro_f1", "Mean F1"),
    )
    metrics = [{"type": kind, "name": name, "value": round(float(test[key]), 4)} for kind, key, name in kinds]
    origin = PurePath(manifest["data"]["origin"].removeprefix("tfds:")).name or "images"
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"name": harmless(origin), "type": "imagefolder", "split": "test"},
        "metrics": metrics,
    }
    return {**header, "model-index": [{"name": harmless(manifest["name"]), "results": [result]}]}


def _limits(manifest: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the classifier is used for something."""
    leaks = manifest.get("leaks")
    limits = list(filter(None, [" ".join(leak_sentences(leaks)), uniform_sentence(leaks)]))
    test = manifest["metrics"].get("test")
    if not test:
        limits.append("There is no figure on images that had no part in its making.")
    elif test["num_images"] < FEW_TEST_IMAGES:
        low, high = test["accuracy_interval"]
        images = counted(test["num_images"], "test image")
        limits.append(f"The accuracy rests on {images}: its 95 % interval is {low:.2f} to {high:.2f}.")
    if test:
        judged = {name: figures["recall"] for name, figures in test["per_class"].items() if figures["num_images"]}
        weak = sorted((recall, name) for name, recall in judged.items() if recall < LOW_RECALL)
        if weak:
            listed = ", ".join(f"{name} ({recall:.0%})" for recall, name in weak[:5])
            rest = f" and {counted(len(weak) - 5, 'more class')}" if len(weak) > 5 else ""
            limits.append(
                f"Fewer than {LOW_RECALL:.0%} of the test images of these classes are recognized: {listed}{rest}."
            )
    train = manifest["data"]["counts"]["train"] if manifest.get("data") else {}
    rare = [name for name, count in train.items() if count < LARGE_PER_CLASS]
    if rare:
        listed = ", ".join(rare[:5]) + (f" and {len(rare) - 5:,} more" if len(rare) > 5 else "")
        limits.append(f"Trained on fewer than {LARGE_PER_CLASS} images: {listed}.")
    limits.append("Other cameras, backgrounds or times than those of the training images may lower the accuracy.")
    if _from_imagenet(manifest):
        limits.append("The backbone was trained on photos of the web and carries the biases of ImageNet.")
    return limits


def _from_imagenet(manifest: Mapping[str, Any]) -> bool:
    """Return whether the backbone is known to have been pretrained on ImageNet."""
    backbone, config = manifest.get("backbone"), manifest.get("config") or {}
    if not isinstance(backbone, Mapping) or config.get("scratch"):
        return False
    return backbone.get("source") in ("embedded", "application") and not config.get("weights")


def _tidy(text: str) -> str:
    """Return Markdown without blanks at the ends of lines and without two blank lines in a row."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n"
