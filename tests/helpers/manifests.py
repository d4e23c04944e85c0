"""Manifests as a fit writes them, for tests of the card and the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from transferapp.evaluation.metrics import Metrics, measure
from transferapp.evaluation.robustness import robustness
from transferapp.images.changes import CONDITIONS
from transferapp.images.views import Geometry
from transferapp.policy.choose import MixtureScore
from transferapp.policy.geometry import judge_geometry
from transferapp.policy.plan import FineTuning, Overrides, make_plan
from transferapp.policy.reasons import Reason
from transferapp.policy.similarity import StageScore, judge_similarity
from transferapp.policy.size import choose_input_size, measure_size

CLASSES = ("ant", "bee", "wasp")
STAGES = (("block4", -0.55, (28, 28, 40)), ("block14", -0.12, (7, 7, 192)), ("top", 0.0, (7, 7, 1280)))
EPOCHS = (
    {"loss": 1.0, "accuracy": 0.5, "val_loss": 0.9, "val_accuracy": 0.6, "averaged": (1.0, 0.5)},
    {"loss": 0.6, "accuracy": 0.7, "val_loss": 0.5, "val_accuracy": 0.8, "averaged": (0.6, 0.7)},
    {"loss": 0.4, "accuracy": 0.9, "val_loss": 0.7, "val_accuracy": 0.7, "averaged": (0.4, 0.8)},
)


def reason(topic: str, text: str) -> dict[str, Any]:
    return Reason(topic, text).to_json()


def plan(
    num_classes: int = 3,
    divergence: float = 0.24,
    *,
    top: float = 0.933,
    mixture: MixtureScore | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """The plan of a set with 36 training images per class."""
    scores = [StageScore(name, top + gain, 0.4, gain, 0.014 if gain else 0.0) for name, gain, _ in STAGES]
    made = make_plan(
        measure_size([36] * num_classes),
        judge_similarity(divergence, scores),
        scores,
        backbone="efficientnet_lite0",
        input_size=choose_input_size([(640, 480)], (224, 224)),
        overrides=Overrides(**overrides),
        tuning=FineTuning(epochs=8, batch_size=16),
        mixture=mixture,
    )
    return made.to_json()


def backbone(name: str, accuracy: float = 0.933, milliseconds: float = 30.0, *, chosen: bool = False) -> dict[str, Any]:
    """A backbone that was tried."""
    return {
        "backbone": name,
        "cut": "top",
        "mixture": {},
        "accuracy": accuracy,
        "loss": 0.21,
        "milliseconds": milliseconds,
        "chosen": chosen,
        "passed_over": False,
        "stages": [
            {
                "stage": stage,
                "shape": list(shape),
                "accuracy": accuracy + gain,
                "loss": 0.4,
                "gain_over_top": gain,
                "standard_error": 0.014 if gain else 0.0,
            }
            for stage, gain, shape in STAGES
        ],
    }


def history(*, averaged: bool = True) -> list[dict[str, Any]]:
    """Three epochs, of which the last but one is the best by the raw weights and the last by the averaged ones."""
    return [
        {
            **{name: value for name, value in epoch.items() if name != "averaged"},
            "epoch": number,
            "learning_rate": 1e-3,
            "averaged_val_loss": epoch["averaged"][0] if averaged else None,  # type: ignore[index]
            "averaged_val_accuracy": epoch["averaged"][1] if averaged else None,  # type: ignore[index]
            "seconds": 2.0,
        }
        for number, epoch in enumerate(EPOCHS, start=1)
    ]


def candidate(name: str, **changes: Any) -> dict[str, Any]:
    """A candidate that was fine-tuned for three epochs."""
    return {
        "name": name,
        "cut": "block10",
        "accuracy": 0.8,
        "loss": 0.4,
        "seconds": 61.4,
        "planned_epochs": 8,
        "epochs": 3,
        "learning_rate": 1e-3,
        "backbone_learning_rate": 1e-4,
        "reason": "+3.0 points against the linear classifier (epoch 3)",
        "chosen": False,
        "head_only": False,
        "history": history(),
        "findings": [
            {
                "code": "over_fitting",
                "sentence": "Training accuracy ends at 90.0%.",
                "evidence": {"gap": 0.123, "best_epoch": 2.0},
                "advice": "Train fewer layers.",
            }
        ],
        **changes,
    }


def linear(**changes: Any) -> dict[str, Any]:
    """The linear classifier as a candidate."""
    nothing: dict[str, Any] = {
        "planned_epochs": 0,
        "epochs": 0,
        "seconds": 0.0,
        "history": [],
        "findings": [],
        "reason": "",
    }
    return candidate("linear classifier", **{"cut": "top", **nothing, **changes})


def left_out() -> dict[str, Any]:
    """A candidate that was not trained."""
    nothing: dict[str, Any] = {
        "accuracy": None,
        "loss": None,
        "epochs": 0,
        "seconds": 0.0,
        "history": [],
        "findings": [],
    }
    text = "left out: there was time for 2 epochs, and fewer than 3 are not worth starting"
    return candidate("whole network", cut="input", planned_epochs=2, reason=text, **nothing)


def metrics_of(labels: Sequence[int], predicted: Sequence[int], class_names: Sequence[str]) -> Metrics:
    """Metrics of predictions that each have 70 % on the predicted class."""
    rest = 0.3 / (len(class_names) - 1)
    probabilities = np.full((len(labels), len(class_names)), rest)
    probabilities[np.arange(len(labels)), np.array(predicted)] = 0.7
    return measure(probabilities, np.array(labels), class_names)


def some_metrics(class_names: Sequence[str], per_class: int = 15, wrong: int = 9) -> Metrics:
    """Metrics with `wrong` images, spread over the classes, predicted as the next class."""
    count = len(class_names)
    labels = np.repeat(np.arange(count), per_class)
    predicted = labels.copy()
    at = np.linspace(0, len(labels) - 1, wrong).round().astype(int)
    predicted[at] = (predicted[at] + 1) % count
    return metrics_of(labels.tolist(), predicted.tolist(), class_names)


def parity(precision: str, difference: float) -> dict[str, Any]:
    return {
        "precision": precision,
        "num_images": 32,
        "max_difference": difference,
        "mean_difference": difference / 10,
        "agreement": 1.0,
    }


def crops(**changes: Any) -> dict[str, Any]:
    """The measured gain of ten crops."""
    tried = [
        {"views": 1, "accuracy": 0.9, "loss": 0.3, "gain": None, "standard_error": None, "milliseconds": 3.0},
        {"views": 10, "accuracy": 0.925, "loss": 0.2, "gain": 0.025, "standard_error": 0.017, "milliseconds": 30.0},
    ]
    reasons = [reason("crops", "On 27 validation images, averaging changes accuracy by +2.5 ± 1.7 points.")]
    return {"views": 10, "tried": tried, "num_images": 27, "reasons": reasons, **changes}


def leaks(**changes: Any) -> dict[str, Any]:
    """Two of five test images that are training images too, and the accuracy on the others."""
    without = measure(np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), np.array([0, 1, 0]), ["ant", "bee"]).to_json()
    overlap = {"split": "test", "others": ["train", "val"], "num_images": 5, "exact": 1, "near": 1, "group": 0}
    return {"overlap": overlap, "num_similar": 0, "similar": [], "honest": without, **changes}


def mixed_manifest() -> dict[str, Any]:
    """A manifest of a small set that is different from ImageNet, whose linear classifier reads a mixture of stages."""
    mixture = MixtureScore(0.95, 0.17, 0.04, 0.01, {"block4": 0.12, "block14": 0.48, "top (mean)": 0.6})
    chosen = {**backbone("efficientnet_lite0", 0.95, chosen=True), "mixture": dict(mixture.weights)}
    return make_manifest(plan=plan(divergence=0.8, mixture=mixture), backbones=[chosen])


def long_manifest() -> dict[str, Any]:
    """A manifest of long images, which the network sees whole."""
    losses: dict[Geometry, np.ndarray] = {
        name: np.repeat([low, high], 54)
        for name, low, high in (("crop", 0.6, 1.0), ("resize", 0.5, 0.92), ("pad", 0.4, 0.6))
    }
    correct = {name: np.arange(108) < count for name, count in zip(losses, (70, 76, 92), strict=True)}
    finding = judge_geometry("auto", 0.82, losses, correct, np.arange(108))
    manifest = make_manifest(geometry=finding.to_json())
    manifest["input"]["geometry"] = finding.geometry
    manifest["plan"]["reasons"].insert(0, finding.reason.to_json())
    return manifest


def forecast_json() -> dict[str, Any]:
    def point(num_images: float, accuracy: float, half: float) -> dict[str, float]:
        return {"num_images": num_images, "accuracy": accuracy, "low": accuracy - half, "high": accuracy + half}

    return {
        "measured": [point(22, 0.74, 0.05), point(43, 0.82, 0.04), point(61, 0.86, 0.04), point(86, 0.88, 0.03)],
        "curve": [point(22, 0.74, 0.04), point(135, 0.9, 0.03), point(540, 0.94, 0.05)],
        "doubled": point(270, 0.922, 0.04),
        "gain": [0.022, 0.004, 0.035],
        "more": 30,
        "classes": [
            {"name": "wasp", "gain": 0.009, "low": 0.002, "high": 0.014},
            {"name": "bee", "gain": 0.004, "low": 0.001, "high": 0.008},
            {"name": "ant", "gain": 0.001, "low": 0.0, "high": 0.003},
        ],
    }


def robustness_json() -> dict[str, Any]:
    correct = np.arange(45) < 36
    changed = [np.arange(45) < 36 - 2 * index for index in range(len(CONDITIONS))]
    return robustness(correct, changed, np.arange(45)).to_json()


def make_manifest(class_names: Sequence[str] = CLASSES, **changes: Any) -> dict[str, Any]:
    """A manifest without fine-tuning; `changes` replace its top-level entries."""
    manifest: dict[str, Any] = {
        "name": "insects",
        "created": "2026-03-05T14:02:11+00:00",
        "class_names": list(class_names),
        "input": {"image_size": [224, 224], "default_views": 10},
        "backbone": {
            "name": "efficientnet_lite0",
            "source": "embedded",
            "parameters": 4.7,
            "cut": "top",
            "cut_shape": [7, 7, 1280],
            "image_size": [224, 224],
        },
        "head": {"kind": "linear", "l2": 0.00316, "iterations": 65, "temperature": 0.82, "train_views": 2},
        "plan": plan(len(class_names)),
        "backbones": [backbone("efficientnet_lite0", chosen=True), backbone("efficientnet_lite2", 0.937, 66.0)],
        "views_tried": [
            {"views": 0, "accuracy": 0.933, "loss": 0.21, "gain": None, "standard_error": None},
            {"views": 2, "accuracy": 0.94, "loss": 0.18, "gain": 0.03, "standard_error": 0.01},
            {"views": 4, "accuracy": 0.94, "loss": 0.181, "gain": -0.001, "standard_error": 0.01},
        ],
        "views_reason": "4 random views an image change the cross-validated loss by +0.001: no gain",
        "test_views": crops(),
        "data": {
            "origin": "images/insects",
            "fingerprint": "0123456789ab",
            "counts": {split: dict.fromkeys(class_names, n) for split, n in (("train", 36), ("val", 9), ("test", 15))},
            "ignored": [],
            "given_splits": [],
        },
        "metrics": {
            "validation": some_metrics(class_names, 9, 4).to_json(),
            "test": some_metrics(class_names).to_json(),
        },
        "novelty": {
            "num_images": 135,
            "num_held_out": 135,
            "num_test": 45,
            "num_refused": 3,
            "refused_interval": [0.0229, 0.1787],
            "neighbors": 5,
            "share": 0.05,
        },
        "prediction_sets": {
            "coverage": 0.9,
            "threshold": 0.62,
            "num_held_out": 108,
            "coverage_interval": [0.8425, 0.9485],
            "mean_size": 1.244,
            "num_test": 45,
            "num_covered": 42,
            "covered_interval": [0.8214, 0.9771],
        },
        "robustness": robustness_json(),
        "forecast": forecast_json(),
        "parity": {"f32": parity("f32", 1.2e-7), "bf16": parity("bf16", 0.0016)},
        "precision": {"served": "bf16"},
        "config": {"data": "images/insects", "out": "", "size": "auto", "similarity": "auto", "seed": 0},
        "hardware": {"sentence": "2 CPU cores, no GPU: training computes in float32"},
        "versions": {"transferapp": "0.1.0", "keras": "3.15.1"},
        "seconds": {"measure": 8.1, "solve": 0.5},
    }
    return {**manifest, **changes}


def tuned_manifest(**changes: Any) -> dict[str, Any]:
    """A manifest in which fine-tuning ships."""
    candidates = [linear(), candidate("last two stages", chosen=True), left_out()]
    return make_manifest(candidates=candidates, plan=plan(size="large"), **changes)
