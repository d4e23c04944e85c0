"""Write the figures of the benchmarks into docs/lecture.md: cells that begin with `<!-- name -->`, and the ablation's table.

    python benchmarks/lecture_table.py

Reads benchmarks/results/: lecture.json, ablation.json, search.json, quadrants.json, regret.json and scratch-*.json. What has
not been measured says so. Everything else on the page is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.ablation import TEXTILE, interval
from transferapp.system.storage import write_bytes

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "lecture.md"
UNMEASURED = "not measured yet"
_CELL = re.compile(r"<!-- ([a-z0-9_]+) -->[^|\n]*")
_TABLE = re.compile(r"(<!-- ablation -->\n).*?(<!-- end of ablation -->)", re.DOTALL)

Figures = Mapping[str, Any]


def read_results(path: Path) -> dict[str, Any]:
    """What a benchmark has left; empty where it has not run."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return document


def write_results(path: Path, document: Mapping[str, Any]) -> None:
    """Leave figures for the page, and for a run that goes on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())


def write_page(path: Path = PAGE, results: Path = RESULTS) -> None:
    """Put the newest figures into a page."""
    write_bytes(path, filled(path.read_text(encoding="utf-8"), results).encode())


def filled(text: str, results: Path = RESULTS) -> str:
    """A page with the newest figures.

    Raises:
        KeyError: A cell has a name that there is no figure of.
    """
    found = cells(results)
    text = _CELL.sub(lambda cell: f"<!-- {cell[1]} --> {found[cell[1]]} " if cell[1] != "ablation" else cell[0], text)
    table = ablation_table(read_results(results / "ablation.json").get("rows", []))
    return _TABLE.sub(lambda part: f"{part[1]}{table}\n{part[2]}", text)


def cells(results: Path = RESULTS) -> dict[str, str]:
    """The text of every cell, by name."""
    lecture = read_results(results / "lecture.json").get("figures", {})
    ablation = read_results(results / "ablation.json").get("rows", [])
    return {
        **{name: by_set(lecture, text) for name, text in _OWN.items()},
        **{name: ablation_cell(ablation, *row) for name, row in _ABLATION.items()},
        **quadrant_cells(read_results(results / "quadrants.json"), read_results(results / "regret.json"), ablation),
        "scratch": scratch_cell([read_results(path) for path in sorted(results.glob("scratch-*.json"))]),
    }


def about(values: Sequence[float | None], digits: int = 1, sign: bool = False, unit: str = "") -> str:
    """A mean with its 95 % interval over the splits; None is a number that was too large to be waited for."""
    if any(value is None for value in values):
        return "never in 200"
    numbers = np.array(values, dtype=float)
    mean = (
        f"{round(float(numbers.mean()), digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # + 0.0: no minus before a zero
    )
    return f"{mean.replace('-', '−')} ± {interval(numbers):.{digits}f}{unit}"


def by_set(figures: Mapping[str, Figures], text: Callable[[Figures], str]) -> str:
    """The same figure of every set of images, side by side."""
    return ", ".join(f"{name} {text(each)}" for name, each in figures.items()) or UNMEASURED


def gain(better: str, than: str, what: str = "accuracy", points: float = 100.0) -> Callable[[Figures], str]:
    """A paired difference: of accuracies in points, of losses in nats."""

    def text(figures: Figures) -> str:
        ahead, behind = (np.array(figures[f"{name}: {what}"]) for name in (better, than))
        return about(list(points * (ahead - behind)), 1 if points == 100 else 3, sign=True)

    return text


def _both(better: str, than: str) -> Callable[[Figures], str]:
    accuracy, loss = gain(better, than), gain(better, than, "loss", 1.0)
    return lambda figures: f"{accuracy(figures)} points and {loss(figures)} nats"


def _finder(figures: Figures) -> str:
    low, high = min(figures["found rate"]), max(figures["found rate"])
    rates = f"{low:.1g}" if f"{low:.1g}" == f"{high:.1g}" else f"{low:.1g} to {high:.1g}"
    found = about(figures["found objective over the best of the sweep"])
    typical = np.median(figures["median objective of the sweep over its best"])
    return f"suggests {rates}: {found} times the best objective of 13 rates, the median rate {typical:.0f} times"


def _named(figures: Figures) -> str:
    runs = [right for name, values in figures.items() if name.startswith("named ") for right in values]
    return f"{sum(runs)} of {len(runs)}"


def _views(count: int) -> Callable[[Figures], str]:
    def text(figures: Figures) -> str:
        one, many = (np.array(figures[f"views {n}: right"], dtype=float) for n in (1, count))
        error = 1.96 * 100 * (many - one).std(ddof=1) / np.sqrt(len(one))
        points = f"{100 * (many - one).mean():+.1f}".replace("-", "−")
        return f"{points} ± {error:.1f} points"

    return text


def _signal(*names: str) -> Callable[[Figures], str]:
    def text(figures: Figures) -> str:
        return " against ".join(f"{np.mean(figures[f'signal {name}']):.1g} ({name})" for name in names)

    return text


def _excess(schedule: str) -> Callable[[Figures], str]:
    return lambda f: " and ".join(about(f[f"excess {schedule} at {rate}"], 0) for rate in ("0.003", "0.03")) + " %"


def _standardized(figures: Figures) -> str:
    losses = " against ".join(f"{np.mean(figures[f'{name}: loss']):.1g}" for name in ("standardized", "raw"))
    return f"{losses} nats, {gain('standardized', 'raw')(figures)} points"


def _share(name: str) -> Callable[[Figures], str]:
    return lambda f: (
        f"one pass {100 * np.mean(f[f'{name}: one pass']):.0f} %, 200 averaged {100 * np.mean(f[f'{name}: average']):.1f} %"
    )


_RULES = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
_SCHEDULES = ("constant", "step", "cosine", "linear", "inverse_sqrt", "sgdr", "cyclic")

_OWN: dict[str, Callable[[Figures], str]] = {
    **{rule: lambda f, rule=rule: about(f[f"passes {rule}"], 0) for rule in _RULES},  # type: ignore[misc]
    "lbfgs": lambda f: about(f["lbfgs iterations"], 0),
    **{f"schedule_{name}": _excess(name) for name in _SCHEDULES},
    "warm_up": _excess("cosine after warm-up"),
    "finder": _finder,
    "polyak": _both("averaged", "last"),
    "snapshots": _both("all snapshots", "last snapshot"),
    "ensemble_small": _both("both", "lite0"),
    "ensemble_large": _both("both", "lite2"),
    "l2": _both("L2 chosen", "L2 almost none"),
    "standardize": _standardized,
    "dropout_average": _share("dropout"),
    "dropconnect_average": _share("dropconnect"),
    "views_10": _views(10),
    "views_50": _views(50),
    "xavier": _signal("tanh, Xavier", "tanh, N(0, 0.01)"),
    "he": _signal("relu, He", "relu, Xavier"),
    "search_random": _both("random", "grid"),
    "search_wider": _both("random, wider", "grid, wider"),
    "search_fine": _both("coarse to fine", "random"),
    "diagnosis": _named,
}
"""Of lecture.json."""

_ABLATION: dict[str, tuple[str, str, str]] = {
    **{
        name: ("augmentation", row, "center view alone")
        for name, row in {
            "flip": "flip",
            "crops": "crop and scale",
            "jitter": "contrast and brightness",
            "pca": "PCA color",
            "augmentation": "all together",
        }.items()
    },
    "fractional": ("pooling", "fractional max pooling", "average pooling"),
    **{
        name: ("regularizers", f"256 relu, {row}", "256 relu")
        for name, row in {
            "dropout": "dropout 0.5",
            "dropconnect": "DropConnect 0.5",
            "l2_hidden": "L2 0.01",
            "l1": "L1 0.0001",
            "elastic": "elastic net",
            "smoothing": "label smoothing 0.1",
            "mixup": "mixup 0.2",
        }.items()
    },
    "relu": ("heads", "256 relu", "linear, solved"),
    "batch_norm": ("heads", "256 relu, batch norm", "256 relu"),
    **{
        name: ("heads", f"256 {name.replace('_', ' ')}", "256 relu")
        for name in ("leaky_relu", "elu", "tanh", "sigmoid", "maxout")
    },
    "stochastic_depth": ("tails", "last two stages tuned, stochastic depth 0.2", "last two stages tuned"),
    "cutmix": ("tails", "last two stages tuned, CutMix 1", "last two stages tuned"),
}
"""Of ablation.json: study, row, and the row it is compared with."""


def ablation_gains(rows: Sequence[Figures], study: str, name: str, against: str) -> dict[str, str]:
    """Points gained, by set of images: paired by split."""
    of = {(row["data"], row["name"]): np.array(row["accuracies"]) for row in rows if row["study"] == study}
    pairs = {data: (of[data, name], of[data, against]) for data, known in of if known == name if (data, against) in of}
    return {data: about(list(100 * (ahead - behind)), sign=True) for data, (ahead, behind) in pairs.items()}


def ablation_cell(rows: Sequence[Figures], study: str, name: str, against: str) -> str:
    """All sets of images in one cell."""
    gains = ablation_gains(rows, study, name, against)
    return ", ".join(f"{data} {text}" for data, text in gains.items()) or UNMEASURED


def ablation_table(rows: Sequence[Figures]) -> str:
    """Every row of the ablation, in Markdown: a column for each set of images."""
    if not rows:
        return UNMEASURED
    sets = list(dict.fromkeys(row["data"] for row in rows))
    lines = [f"| change | of | {' | '.join(sets)} |", "|---" * (len(sets) + 2) + "|"]
    for study, name, against in dict.fromkeys((row["study"], row["name"], row["against"]) for row in rows):
        if against:
            gains = ablation_gains(rows, study, name, against)
            shown = " | ".join(gains.get(data, "") for data in sets)
            lines.append(f"| {name.removeprefix(against + ', ')} | {against} | {shown} |")
        else:
            of = {row["data"]: f"{row['accuracy']:.3f}" for row in rows if (row["study"], row["name"]) == (study, name)}
            lines.append(f"| **{name}** | | {' | '.join(of.get(data, '') for data in sets)} |")
    return "\n".join(lines)


def quadrant_cells(plans: Figures, regret: Figures, ablation: Sequence[Figures]) -> dict[str, str]:
    """The four quadrants: what keeps to the rule against what does not."""
    found = dict.fromkeys(("small_similar", "small_different", "large_similar", "large_different"), UNMEASURED)
    for folder, plan in plans.items():
        name = "textile" if folder == TEXTILE[1].name else folder
        key = plan["quadrant"].replace(" + ", "_")
        stages = next(c["stages"] for c in plan["candidates"] if c["chosen"])
        earlier = max(stages[:-1], key=lambda stage: stage["gain_over_top"])
        points, error = 100 * earlier["gain_over_top"], 196 * earlier["standard_error"]
        text = f"{name} {points:+.1f} ± {error:.1f}".replace("-", "−")
        if key.startswith("small"):
            found[key] = text if found[key] == UNMEASURED else f"{found[key]}, {text}"
    large = [row for name, rows in regret.items() for row in rows if row["num_train"] >= 1000 if "cifar10" in name]
    if large:
        texts = [
            f"{row['num_train']:,} images {100 * row['gain']:+.1f} ± {196 * row['standard_error']:.1f}" for row in large
        ]
        found["large_different"] = f"CIFAR-10: {', '.join(texts)}".replace("+-", "−")
    similar = ablation_gains(ablation, "tails", "last two stages tuned", "linear, solved").get("dogs")
    if similar:
        found["large_similar"] = f"dogs, for want of a large set: {similar}"
    return found


def scratch_cell(documents: Sequence[Figures]) -> str:
    """Test accuracies from pretrained and from random weights, set by set."""
    texts = []
    for document in documents:
        pretrained, random = (document["starts"][start]["test"] for start in ("pretrained", "random"))
        texts.append(f"{document['data']}, {document['epochs']} epochs: {pretrained:.3f} against {random:.3f}")
    return ", ".join(texts) or UNMEASURED


if __name__ == "__main__":
    write_page()
