"""What is pretraining worth? Accuracy against epochs from pretrained and from random weights, on the same images.

Runs the real commands, `transferapp fit --tune all --rule-only` and the same with `--scratch`, one after the other, and reads
the history out of their bundles. Both train the whole network on the same views with the same optimizer and schedule; only the
weights that they start from differ, and that the random ones have no solved head to start from.

    python benchmarks/scratch.py --data DIR [--epochs E] [--image-size S] [--limit N]

`--limit` takes so many of the images, the same share of every class and of train and test. Prints a table; the figures go to
benchmarks/results/scratch-NAME.json, and a plot beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

RESULTS = Path(__file__).parent / "results"
STARTS = {"pretrained": ("--tune", "all"), "random": ("--scratch",)}
"""The options of `transferapp fit` by which each begins where its name says."""


@dataclass(frozen=True)
class Curve:
    """How one fit went.

    Attributes:
        train, validation: Accuracy after each epoch, beginning with the first; of raw and averaged weights the better.
        test: Of the bundle, on its test images; None where there are none.
        seconds: All epochs together, validation included.
    """

    train: tuple[float, ...]
    validation: tuple[float, ...]
    test: float | None
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="class folders, alone or within train/ and test/")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the images (%(default)s)")
    parser.add_argument("--image-size", type=int, default=64, help="side of the network's input (%(default)s)")
    parser.add_argument("--limit", type=int, default=200, help="images to use at most; 0 for all (%(default)s)")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="%(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for figures and plot")
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        parser.error(f"there is no folder {options.data}")
    name = options.data.resolve().name
    with tempfile.TemporaryDirectory() as scratch:
        images = options.data
        if options.limit:
            images = Path(scratch, name)
            link(options.data, images, options.limit)
        curves, num_classes = fits(images, options, Path(scratch, "models"))
    print_table(curves)
    document = {
        "data": name,
        "backbone": options.backbone,
        "image_size": options.image_size,
        "epochs": options.epochs,
        "limit": options.limit or None,
        "num_classes": num_classes,
        "starts": {start: asdict(curve) for start, curve in curves.items()},
        "epochs_to_match": epochs_to_match(curves["random"], curves["pretrained"]),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"scratch-{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    plotted = {start: curve.validation for start, curve in curves.items()}
    svg = plot(plotted, f"{name}: {options.backbone} from pretrained and from random weights", 1 / num_classes)
    (options.out / f"scratch-{name}.svg").write_text(svg, encoding="utf-8")


def link(data: Path, folder: Path, limit: int) -> None:
    """Link `limit` of the images below `data` into the same folders below `folder`, evenly spread over each of them."""
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(path for path in data.rglob("*") if path.is_file() and not path.name.startswith(".")):
        by_folder.setdefault(path.parent, []).append(path)
    total = sum(map(len, by_folder.values()))
    for files in by_folder.values():
        count = min(len(files), max(2, round(limit * len(files) / total)))  # two: one to train on, one to judge by
        step = len(files) / count
        for index in range(count):
            source = files[int(index * step)]
            target = folder / source.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())


def fits(images: Path, options: argparse.Namespace, models: Path) -> tuple[dict[str, Curve], int]:
    """Both fits: their curves by start, and the number of classes."""
    curves, num_classes = {}, 0
    for start, words in STARTS.items():
        bundle = models / start
        command = [sys.executable, "-m", "transferapp", "fit", "--data", str(images), "--out", str(bundle), *words]
        command += ["--rule-only", "--budget", "none", "--backbone", options.backbone, "--json"]
        command += ["--epochs", str(options.epochs), "--image-size", str(options.image_size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        manifest: dict[str, Any] = json.loads(done.stdout)
        num_classes = len(manifest["class_names"])
        curves[start] = read_curve((bundle / "history.csv").read_text(encoding="utf-8"), manifest)
    return curves, num_classes


def read_curve(history: str, manifest: Mapping[str, Any]) -> Curve:
    """What a bundle's history.csv says of its training.

    Args:
        history: The file's text. With `--rule-only` and one proposal there is one contender in it.
        manifest: What `transferapp fit --json` has printed.
    """
    rows = list(csv.DictReader(history.splitlines()))
    if not rows or "epoch" not in rows[0]:
        raise SystemExit("Nothing was fine-tuned: there are too few images to keep some for validation.")
    test = manifest["metrics"]["test"]
    return Curve(
        train=tuple(float(row["accuracy"]) for row in rows),
        validation=tuple(max(float(row["val_accuracy"]), float(row["averaged_val_accuracy"] or 0)) for row in rows),
        test=test["accuracy"] if test else None,
        seconds=sum(float(row["seconds"]) for row in rows),
    )


def epochs_to_match(slow: Curve, fast: Curve) -> list[int | None]:
    """For the best accuracy that `fast` has reached by each epoch: the epoch, from 1, in which `slow` reached it, if any."""
    best, found = 0.0, []
    for accuracy in fast.validation:
        best = max(best, accuracy)
        found.append(next((number for number, other in enumerate(slow.validation, 1) if other >= best), None))
    return found


def print_table(curves: Mapping[str, Curve]) -> None:
    pretrained, random = curves["pretrained"], curves["random"]
    matched = epochs_to_match(random, pretrained)
    print(f"{'epoch':>5} {'pretrained':>11} {'random':>7}   random weights reach what pretrained ones have reached")
    for index in range(max(len(pretrained.validation), len(random.validation))):
        shown = [f"{c.validation[index]:.3f}" if index < len(c.validation) else "" for c in (pretrained, random)]
        when = matched[index] if index < len(matched) else None
        said = f"in epoch {when}" if when else "never" if index < len(matched) else ""
        print(f"{index + 1:5} {shown[0]:>11} {shown[1]:>7}   {said}")
    tests = [f"{c.test:.3f}" if c.test is not None else "-" for c in (pretrained, random)]
    print(f"{'test':>5} {tests[0]:>11} {tests[1]:>7}")


WIDTH, HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 104, 48, 52
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 } .title { font-size: 15px; font-weight: 600 } .small { fill: #666 }
.grid { stroke: #ddd } .guess { stroke: #888; stroke-dasharray: 4 4 } .line { fill: none; stroke-width: 2.5 }
.a { stroke: #1663a6 } .b { stroke: #b4531b } circle.a { fill: #1663a6 } circle.b { fill: #b4531b }
text.a { fill: #1663a6; stroke: none } text.b { fill: #b4531b; stroke: none } .paper { fill: #fff }
"""


def plot(curves: Mapping[str, Sequence[float]], title: str, guess: float) -> str:
    """A line for each curve, named at its end: accuracy from 0 to 1 against epochs from 1, as a stand-alone SVG.

    Args:
        curves: One or two, by name; each at least one accuracy long.
        title: What is written above.
        guess: Accuracy of guessing, drawn as a dashed line.
    """
    last = max(map(len, curves.values()))

    def x(epoch: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * ((epoch - 1) / (last - 1) if last > 1 else 0.5), 1)

    def y(accuracy: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * accuracy, 1)

    marks = [Markup('<rect class="paper" width="{}" height="{}"/>').format(WIDTH, HEIGHT)]
    marks.append(Markup('<text class="title" x="{}" y="26">{}</text>').format(_LEFT, title))
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        marks.append(_rule("grid", y(share)))
        marks.append(_label(_LEFT - 8, y(share) + 4, f"{share:.1f}", "small", "end"))
    step = max(1, -(-last // 10))
    for epoch in range(1, last + 1, step):
        marks.append(_label(x(epoch), HEIGHT - _BOTTOM + 20, str(epoch), "small", "middle"))
    marks.append(_label((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 10, "epoch", "small", "middle"))
    marks.append(_rule("guess", y(guess)))
    marks.append(_label(WIDTH - _RIGHT + 8, y(guess) + 4, "guessing", "small", "start"))
    ends = _apart([y(curve[-1]) for curve in curves.values()])
    for (name, curve), at, kind in zip(curves.items(), ends, "ab", strict=False):
        points = [(x(epoch), y(accuracy)) for epoch, accuracy in enumerate(curve, 1)]
        path = " ".join(f"{left},{top}" for left, top in points)
        marks.append(Markup('<polyline class="line {}" points="{}"/>').format(kind, path))
        marks += [Markup('<circle class="{}" cx="{}" cy="{}" r="3"/>').format(kind, *point) for point in points]
        marks.append(_label(points[-1][0] + 8, at + 4, name, kind, "start"))
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" '
        'aria-label="{2}"><style>{3}</style>{4}</svg>\n'
    ).format(WIDTH, HEIGHT, title, _STYLE, Markup("").join(marks))


def _rule(kind: str, top: float) -> Markup:
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(kind, _LEFT, WIDTH - _RIGHT, top, top)


def _label(left: float, top: float, text: str, kind: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, left, top, anchor, text)


def _apart(places: list[float], least: float = 16.0) -> list[float]:
    """Places of two labels, pushed apart where they would touch."""
    if len(places) < 2 or abs(places[0] - places[1]) >= least:
        return places
    middle, half = sum(places) / 2, least / 2
    return [middle - half, middle + half] if places[0] <= places[1] else [middle + half, middle - half]


if __name__ == "__main__":
    main()
