"""Figures of docs/lecture.md: one mean with its 95 % interval for each idea, from benchmarks/results/.

    python benchmarks/lecture.py --gains

Means are over all splits of all data sets of a benchmark, which share their splits between what is compared; the intervals
are Student's t over the paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, interval, read_results

Sets = Mapping[str, Mapping[str, Any]]
"""Figures by data set and name, one for each split."""

_RULES = ("SGD", "momentum", "Nesterov momentum", "AdaGrad", "RMSProp", "Adam", "AdamW")
_SCHEDULES = ("constant", "step", "cosine", "linear", "inverse_sqrt", "sgdr", "cyclic")
_ABLATION: dict[str, tuple[str, str, str]] = {
    "flips": ("augmentation", "flip", "center view alone"),
    "random crops and scales": ("augmentation", "crop and scale", "center view alone"),
    "contrast and brightness": ("augmentation", "contrast and brightness", "center view alone"),
    "PCA color": ("augmentation", "PCA color", "center view alone"),
    "all of them": ("augmentation", "all together", "center view alone"),
    "fractional max pooling": ("pooling", "fractional max pooling", "average pooling"),
    "L2": ("regularizers", "256 relu, L2 0.01", "256 relu"),
    "L1": ("regularizers", "256 relu, L1 0.0001", "256 relu"),
    "elastic net": ("regularizers", "256 relu, elastic net", "256 relu"),
    "dropout": ("regularizers", "256 relu, dropout 0.5", "256 relu"),
    "DropConnect": ("regularizers", "256 relu, DropConnect 0.5", "256 relu"),
    "label smoothing": ("regularizers", "256 relu, label smoothing 0.1", "256 relu"),
    "mixup": ("regularizers", "256 relu, mixup 0.2", "256 relu"),
    "CutMix": ("tails", "last two stages tuned, CutMix 1", "last two stages tuned"),
    "stochastic depth": ("tails", "last two stages tuned, stochastic depth 0.2", "last two stages tuned"),
    "batch normalization": ("heads", "256 relu, batch norm", "256 relu"),
    "leaky ReLU": ("heads", "256 leaky relu", "256 relu"),
    "ELU": ("heads", "256 elu", "256 relu"),
    "tanh": ("heads", "256 tanh", "256 relu"),
    "sigmoid": ("heads", "256 sigmoid", "256 relu"),
    "maxout": ("heads", "256 maxout", "256 relu"),
    "a hidden layer with ReLU": ("heads", "256 relu", "linear, solved"),
}
"""By idea: the study of ablation.json, the row, and the row it is compared with."""


def gains(results: Path = RESULTS) -> dict[str, str]:
    """The figure of every idea, by its name on the page."""
    lecture: Sets = read_results(results / "lecture.json")["figures"]
    rows: list[dict[str, Any]] = read_results(results / "ablation.json")["rows"]
    found = {rule: _passes(lecture, "nesterov" if rule.startswith("Nesterov") else rule.lower()) for rule in _RULES}
    found["L-BFGS"] = mean(pooled(lecture, "lbfgs iterations"), 0)
    found |= {name: _excess(lecture, name) for name in _SCHEDULES}
    found["warm-up, then cosine"] = _excess(lecture, "cosine after warm-up")
    found["range test"] = mean(pooled(lecture, "found objective over the best of the sweep"), 2) + " times"
    found["ensemble of Lite0 and Lite2, against Lite0"] = _points(lecture, "both", "lite0")
    found["ensemble of Lite0 and Lite2, against Lite2"] = _points(lecture, "both", "lite2")
    found["snapshot ensemble"] = _points(lecture, "all snapshots", "last snapshot")
    found["Polyak averaging"] = _points(lecture, "averaged", "last")
    found["L2 of the linear classifier"] = _nats(lecture, "L2 chosen", "L2 almost none")
    found["standardized features"] = _points(lecture, "standardized", "raw")
    found |= {idea: points(_ablation(rows, *where)) for idea, where in _ABLATION.items()}
    found["ten crops"], found["ten crops at five scales"] = _views(lecture, 10), _views(lecture, 50)
    found["Xavier"] = _signal(lecture, "tanh, Xavier", "tanh, N(0, 0.01)")
    found["He"] = _signal(lecture, "relu, He", "relu, Xavier")
    found["random search against a grid, four settings"] = _points(lecture, "random, wider", "grid, wider")
    found["coarse to fine against one phase"] = _points(lecture, "coarse to fine", "random")
    named = np.concatenate([pooled(lecture, name) for name in lecture["dogs"] if name.startswith("named ")])
    found["reading of the curves"] = f"{int(named.sum())} of {len(named)} faults found"
    return found | _transfer(results, rows)


def pooled(sets: Sets, name: str) -> np.ndarray:
    """The figures of all splits of all sets; NaN for a number too large to wait for."""
    return np.array([np.nan if v is None else v for figures in sets.values() for v in figures[name]], dtype=float)


def mean(values: np.ndarray, digits: int = 1, sign: bool = False) -> str:
    """A mean with its 95 % interval."""
    number = round(float(values.mean()), digits) + 0.0  # + 0.0 turns −0.0 into 0.0
    return f"{number:{'+' if sign else ''}.{digits}f} ± {interval(values):.{digits}f}".replace("-", "−")


def points(differences: np.ndarray) -> str:
    """A mean difference of accuracies, in points."""
    return mean(100 * differences, 1, sign=True)


def _points(sets: Sets, better: str, than: str) -> str:
    return points(pooled(sets, f"{better}: accuracy") - pooled(sets, f"{than}: accuracy"))


def _nats(sets: Sets, better: str, than: str) -> str:
    return mean(pooled(sets, f"{better}: loss") - pooled(sets, f"{than}: loss"), 2, sign=True) + " nats of loss"


def _passes(sets: Sets, rule: str) -> str:
    values = pooled(sets, f"passes {rule}")
    over = int(np.isnan(values).sum())
    return f"over 200 in {over} of {len(values)} runs" if over else mean(values, 0)


def _excess(sets: Sets, schedule: str) -> str:
    """Per cent above the optimum at the usual rate, and the median at ten times that rate."""
    usual, high = (pooled(sets, f"excess {schedule} at {rate}") for rate in ("0.003", "0.03"))
    return f"{mean(usual, 0)} %; {np.median(high):.0f} % at ten times the rate"


def _views(sets: Sets, count: int) -> str:
    return points(pooled(sets, f"views {count}: right") - pooled(sets, "views 1: right"))


def _signal(sets: Sets, kept: str, lost: str) -> str:
    good, bad = (float(pooled(sets, f"signal {name}").mean()) for name in (kept, lost))
    return f"{good:.2g} of 1 left, not {bad:.0e}"


def _ablation(rows: Sequence[Mapping[str, Any]], study: str, name: str, against: str) -> np.ndarray:
    """Paired differences of accuracy, over all sets that have both rows."""
    of = {(row["data"], row["name"]): np.array(row["accuracies"]) for row in rows if row["study"] == study}
    pairs = [(of[data, name], of[data, against]) for data, row in of if row == name if (data, against) in of]
    return np.concatenate([ahead - behind for ahead, behind in pairs])


def _transfer(results: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The four quadrants: the rule's choice against the other one, and pretrained against random weights."""
    plans, regret = read_results(results / "quadrants.json"), read_results(results / "fine_tuning_gain.json")

    def best_earlier(name: str) -> str:
        stages = next(c["stages"] for c in plans[name]["backbones"] if c["chosen"])
        stage = max(stages[:-1], key=lambda stage: stage["gain_over_top"])
        return _signed(stage["gain_over_top"], stage["standard_error"])

    large = max(
        (row for name, found in regret.items() if "cifar10" in name for row in found), key=lambda r: r["num_train"]
    )
    scratch = read_results(results / "scratch-cifar10.json")["starts"]
    worth = 100 * (scratch["pretrained"]["test"] - scratch["random"]["test"])
    return {
        "small and similar: the last stage": f"{best_earlier('dogs')} with an earlier one (dogs)",
        "small and different: an earlier stage": f"{best_earlier('aerial')} (aerial)",
        "large and similar: tune the last stages": points(_tuned_dogs(rows)) + " (dogs, a small set)",
        "large and different: tune everything": _signed(large["gain"], large["standard_error"]) + " (CIFAR-10)",
        "pretrained against random weights": f"+{worth:.0f} (CIFAR-10)",
    }


def _tuned_dogs(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return _ablation([row for row in rows if row["data"] == "dogs"], "tails", "last two stages tuned", "linear, solved")


def _signed(gain: float, standard_error: float) -> str:
    return f"{100 * gain:+.1f} ± {196 * standard_error:.1f}".replace("-", "−")
