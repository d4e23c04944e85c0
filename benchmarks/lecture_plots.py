"""Plots of docs/lecture.md, drawn with the product's own optimizers, schedules, crops and initial weights.

    python benchmarks/lecture.py --plots

Curves of training and accuracy by stage come from benchmarks/results/; everything else is computed here in seconds. The
image of the ten crops is scikit-image's `chelsea` (CC0).
"""

from __future__ import annotations

import base64
import importlib
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from benchmarks.common import RESULTS, read_results
from benchmarks.svg import Axis, Line, Panel, legend, text, write_svg

IMAGES = Path(__file__).parents[1] / "docs" / "images"
RULES = {
    "sgd": "SGD",
    "momentum": "momentum",
    "nesterov": "Nesterov",
    "adagrad": "AdaGrad",
    "rmsprop": "RMSProp",
    "adam": "Adam",
}
RAVINE_STEPS, SADDLE_STEPS = 60, 60
RAVINE_RATES = {"sgd": 1.6, "momentum": 0.3, "nesterov": 0.3, "adagrad": 1.5, "rmsprop": 0.15, "adam": 0.5}
SADDLE_RATES = {"sgd": 0.06, "momentum": 0.06, "nesterov": 0.06, "adagrad": 0.2, "rmsprop": 0.05, "adam": 0.1}
STEEP = 1.2
"""Curvature of the ravine across; along it the curvature is 0.03."""

EPOCH, EPOCHS = 20, 60
SIGNALS: dict[str, tuple[str, str, float | None]] = {
    "tanh, Xavier": ("tanh", "glorot", None),
    "tanh, N(0, 0.01)": ("tanh", "glorot", 0.01),
    "relu, He": ("relu", "he", None),
    "relu, Xavier": ("relu", "glorot", None),
}
"""Activation, initializer, and the standard deviation that replaces the initializer's."""

Slope = Callable[[np.ndarray], np.ndarray]


def draw(folder: Path = IMAGES, results: Path = RESULTS) -> list[Path]:
    """Draw every plot of the page and return their paths."""
    plots: dict[str, Callable[[Path], None]] = {
        "update-rules": update_rules,
        "schedules": schedules,
        "averaging": averaging,
        "curves": lambda path: training_curves(path, results),
        "ten-crops": ten_crops,
        "signal": signal,
        "random-search": random_search,
        "stages": lambda path: stages(path, results),
        "pretrained": lambda path: pretrained(path, results),
    }
    paths = [folder / f"{name}.svg" for name in plots]
    for path, plot in zip(paths, plots.values(), strict=True):
        plot(path)
    return paths


def descend(rule: str, rate: float, start: tuple[float, float], slope: Slope, steps: int) -> list[tuple[float, float]]:
    """The path of an update rule over a function of two variables, with the given gradient."""
    import keras

    from transferapp.training.optimizers import make_optimizer

    place = keras.Variable(np.array(start, np.float32))
    optimizer, path = make_optimizer(rule, rate), [start]
    for _ in range(steps):
        gradient = slope(np.asarray(place.value)).astype(np.float32)
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [place])
        x, y = np.asarray(place.value).tolist()
        path.append((x, y))
    return path


def update_rules(path: Path) -> None:
    """Paths through a ravine and off a saddle point."""
    ravine = Panel("A ravine: steep across, flat along", Axis(-10, 2), Axis(-2.6, 2.6), 0, 0, 400, 300)
    saddle = Panel("A saddle point: down to the left and right", Axis(-2.2, 2.2), Axis(-1.65, 1.65), 400, 0, 400, 300)
    level = np.linspace(0, 2 * math.pi, 60)
    rings = [
        ravine.path([(r * math.cos(a) / 0.03**0.5, r * math.sin(a) / STEEP**0.5) for a in level], "contour")
        for r in (0.1, 0.34)
    ]
    # Wider rings leave the panel: they are drawn as pairs of arcs.
    rings += [
        ravine.path(
            [
                (x, sign * math.sqrt((r * r - 0.03 * x * x) / STEEP))
                for x in np.linspace(-10, 2, 60)
                if r * r > 0.03 * x * x
            ],
            "contour",
        )
        for r in (0.8, 1.3, 1.8, 2.3)
        for sign in (-1, 1)
    ]
    hyperbolas = [
        saddle.path([(s * math.sqrt(c + y * y), y) for y in np.linspace(-1.6, 1.6, 40) if c + y * y < 4.8], "contour")
        for c in (0.2, 1.0, 2.2)
        for s in (-1, 1)
    ] + [
        saddle.path([(x, s * math.sqrt(c + x * x)) for x in np.linspace(-1.6, 1.6, 40) if c + x * x < 2.7], "contour")
        for c in (0.2, 1.0, 2.2)
        for s in (-1, 1)
    ]
    paths: dict[Panel, list[Line]] = {ravine: [], saddle: []}
    for color, (rule, name) in zip((0, 1, 2, 3, 4, 6), RULES.items(), strict=True):
        down = descend(rule, RAVINE_RATES[rule], (-9, 1.2), lambda p: p * np.array([0.03, STEEP]), RAVINE_STEPS)
        paths[ravine].append(Line(name, down, color))
        off = descend(rule, SADDLE_RATES[rule], (0.01, 1.4), lambda p: p * np.array([-1.0, 1.0]), SADDLE_STEPS)
        inside = next((i for i, (x, _) in enumerate(off) if abs(x) > 2.2), len(off))
        paths[saddle].append(Line(name, off[: inside + 1], color))
    marks = [ravine.draw(paths[ravine], rings), saddle.draw(paths[saddle], hyperbolas), legend(paths[ravine], 815, 60)]
    write_svg(path, (920, 300), "Paths of six update rules through a ravine and off a saddle point", marks)


def schedules(path: Path) -> None:
    """The rate of every schedule over 60 epochs, one panel each."""
    from transferapp.training.schedules import SCHEDULES, make_schedule

    total, marks = EPOCH * EPOCHS, []
    shown = [*((name, 0) for name in SCHEDULES), ("cosine", total // 20)]
    for index, (name, warmup) in enumerate(shown):
        cycles = 3 if SCHEDULES[name].cyclic else 1
        schedule = make_schedule(name, 1.0, total, warmup_steps=warmup, steps_per_epoch=EPOCH, cycles=cycles)
        steps = range(0, total, 10)
        points = [(step / EPOCH, float(schedule(step))) for step in steps]
        panel = Panel(
            f"warm-up, then {name}" if warmup else name,
            Axis(0, EPOCHS, [(0, "0"), (30, "30"), (EPOCHS, "60")], "epoch" if index > 3 else ""),
            Axis(0, 1.05, [(0, "0"), (1, "1")]),
            index % 4 * 225,
            index // 4 * 160,
            225,
            160,
        )
        marks.append(panel.draw([Line(name, points, 0)]))
    write_svg(
        path, (900, 320), "The learning rate over the epochs of a run, by schedule, as a share of the highest", marks
    )


def averaging(path: Path) -> None:
    """Distance from the optimum of raw and averaged weights, with noisy gradients at a constant rate."""
    import keras

    from transferapp.training.optimizers import POLYAK_DECAY, averaged_weights, make_optimizer

    rng = np.random.default_rng(0)
    place = keras.Variable(np.full(50, 3.0, np.float32))
    optimizer = make_optimizer("sgd", 0.05, average=POLYAK_DECAY)
    raw, averaged = [], []
    for step in range(1500):
        gradient = (np.asarray(place.value) + rng.normal(0, 1.5, 50)).astype(np.float32)
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [place])
        if step % 8 == 0:
            raw.append((step, float(np.linalg.norm(np.asarray(place.value)))))
            averaged.append((step, float(np.linalg.norm(averaged_weights(optimizer)[0]))))
    panel = Panel(
        "Distance from the optimum at a constant rate",
        Axis(0, 1500, [(0, "0"), (500, "500"), (1000, "1,000"), (1500, "1,500")], "step"),
        Axis(0.3, 30, [(0.3, "0.3"), (1, "1"), (3, "3"), (10, "10"), (30, "30")], logarithmic=True),
        0,
        0,
        560,
        260,
    )
    lines = [Line("raw weights", raw, 1), Line("Polyak average", averaged, 0)]
    write_svg(
        path,
        (720, 260),
        "Raw weights jump about the optimum; their average comes nearer",
        [panel.draw(lines), legend(lines, 580, 60)],
    )


def training_curves(path: Path, results: Path) -> None:
    """Training against validation accuracy of fine-tuning on CIFAR-10."""
    document = read_results(results / "scratch-cifar10.json")
    start = document["starts"]["pretrained"]
    lines = [
        Line(f"{name} images", list(enumerate(start[key], 1)), color, dots=True)
        for color, (name, key) in enumerate((("validation", "validation"), ("training", "train")))
    ]
    panel = Panel(
        "CIFAR-10, 2,000 images: the gap of over-fitting", _epochs(len(start["train"])), _accuracy(0.6), 0, 0, 560, 260
    )
    write_svg(
        path,
        (720, 260),
        "Training accuracy rises to 98 %, validation accuracy stays at 79 %",
        [panel.draw(lines), legend(lines, 580, 60)],
    )


def ten_crops(path: Path) -> None:
    """The boxes of the ten crops on an image, and the crops as the network sees them."""
    from transferapp.images.views import ten_crops as boxes_of

    data: Any = importlib.import_module("skimage.data")  # it has no types
    image = Image.fromarray(data.chelsea())
    width, height = image.size
    scale = 360 / width
    small = image.resize((360, round(height * scale)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=72)
    encoded = base64.b64encode(stream.getvalue()).decode()
    views = boxes_of(small.size, (224, 224))
    marks = [
        Markup('<defs><image id="i" width="{}" height="{}" href="data:image/jpeg;base64,{}"/></defs>').format(
            *small.size, encoded
        ),
        text(12, 17, "Four corners and the center", "title"),
        Markup('<use href="#i" x="12" y="28"/>'),
        text(396, 17, "Ten crops: the same five, and their mirrors", "title"),
    ]
    side = 92
    for index, view in enumerate(views):
        left, top, right, bottom = view.box
        if not view.mirror:
            marks.append(
                Markup('<rect class="line c{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                    index, left + 12, top + 28, right - left, bottom - top
                )
            )
        x, y = 396 + index % 5 * (side + 8), 36 + index // 5 * (side + 20)
        flip = f"translate({2 * x + side} 0) scale(-1 1)" if view.mirror else "translate(0 0)"
        marks.append(
            Markup(
                '<g transform="{}"><svg x="{}" y="{}" width="{}" height="{}" viewBox="{:.1f} {:.1f} {:.1f} {:.1f}">'
                '<use href="#i"/></svg><rect class="line c{}" x="{}" y="{}" width="{}" height="{}"/></g>'
            ).format(flip, x, y, side, side, left, top, right - left, bottom - top, index % 5, x, y, side, side)
        )
    write_svg(path, (910, 280), "Boxes of the ten crops on an image of a cat, and the ten crops", marks)


def signal(path: Path) -> None:
    """Standard deviation of the activations, layer by layer, before any training."""
    lines = []
    for color, (name, deviations) in enumerate(signals().items()):
        lines.append(Line(name, list(enumerate(deviations, 1)), color, dots=True))
    layers = Axis(1, 10, [(1, "1"), (5, "5"), (10, "10")], "hidden layer")
    ticks = [(10.0**-k, f"1e-{k}" if k else "1") for k in (0, 2, 4, 6, 8)]
    panel = Panel(
        "Spread of the activations before training", layers, Axis(1e-8, 1, ticks, logarithmic=True), 0, 0, 560, 260
    )
    write_svg(
        path,
        (720, 260),
        "Xavier keeps tanh alive over ten layers, He keeps ReLU alive",
        [panel.draw(lines), legend(lines, 580, 60)],
    )


def signals(depth: int = 10, width: int = 256) -> dict[str, list[float]]:
    """Standard deviation in each hidden layer of a new head on normal features, by activation and initializer."""
    import keras

    from transferapp.training.head_spec import Head, HeadSpec
    from transferapp.training.heads import check_signal
    from transferapp.training.tail import lone_head

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(512, width)).astype(np.float32)
    found = {}
    for name, (activation, initializer, deviation) in SIGNALS.items():
        spec = HeadSpec(hidden=(width,) * depth, activation=activation, initializer=initializer)
        model = lone_head(Head(spec, np.zeros(width, np.float32), np.ones(width, np.float32), 10), (width,), 0).model
        if deviation is not None:
            for layer in model.layers:
                if isinstance(layer, keras.layers.Dense):
                    layer.kernel.assign(rng.normal(0, deviation, layer.kernel.shape))
        found[name] = [layer.std for layer in check_signal(model, rows)]
    return found


def random_search(path: Path) -> None:
    """Nine trials of a grid and nine at random, where one of two settings matters."""
    rng = np.random.default_rng(3)
    grid = [((i + 0.5) / 3, (j + 0.5) / 3) for i in range(3) for j in range(3)]
    random = [((i + rng.random()) / 9, rng.random()) for i in range(9)]

    def score(x: float) -> float:
        return math.exp(-((x - 0.66) ** 2) / 0.012) + 0.15 * x

    marks: list[Markup] = []
    for left, (title, trials) in zip(
        (0, 360), (("Grid: three rates tried", grid), ("Random: nine rates tried", random)), strict=True
    ):
        above = Panel(title, Axis(0, 1), Axis(0, 1.25, label="accuracy"), left, 0, 350, 120)
        below = Panel(
            "", Axis(0, 1, label="setting that matters"), Axis(0, 1, label="one that does not"), left, 100, 350, 200
        )
        curve = [(x, score(x)) for x in np.linspace(0, 1, 80).tolist()]
        marks += [above.draw([Line("score", curve, 7)]), below.draw([])]
        frame = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
        marks.append(below.path(frame, "contour"))
        for x, y in trials:
            for panel, at in ((above, score(x)), (below, y)):
                marks.append(Markup('<circle class="line c0" cx="{:g}" cy="{:g}" r="4"/>').format(*panel.at(x, at)))
    write_svg(
        path,
        (720, 300),
        "Nine random trials try nine values of the setting that matters, a grid of nine tries three",
        marks,
    )


def stages(path: Path, results: Path) -> None:
    """Cross-validated accuracy of a linear classifier on each stage of the backbone."""
    lines = []
    for color, (name, plan) in enumerate(read_results(results / "quadrants.json").items()):
        candidate = next(c for c in plan["backbones"] if c["backbone"] == "efficientnet_lite0")
        points = [(number, stage["accuracy"]) for number, stage in enumerate(candidate["stages"], 1)]
        label = f"{'textile' if name == 'simulated' else name}, D {plan['divergence']:.2f}"
        lines.append(Line(label, points, color, dots=True))
    last = len(lines[0].points)
    ticks = [(1.0, "first"), (float(last), "last")]
    panel = Panel("A linear classifier on each stage", Axis(1, last, ticks, "stage"), _accuracy(0.2), 0, 0, 560, 280)
    write_svg(
        path,
        (720, 280),
        "Similar sets gain up to the last stage, different ones peak earlier",
        [panel.draw(lines), legend(lines, 580, 60)],
    )


def pretrained(path: Path, results: Path) -> None:
    """Validation accuracy from pretrained and from random weights."""
    marks: list[Markup] = []
    for left, name in zip((0, 360), ("cifar10", "dogs"), strict=True):
        document = read_results(results / f"scratch-{name}.json")
        starts = document["starts"]
        lines = [
            Line(f"{start} weights", list(enumerate(starts[start]["validation"], 1)), color, dots=True)
            for color, start in enumerate(("pretrained", "random"))
        ]
        epochs = max(len(line.points) for line in lines)
        panel = Panel(
            {"cifar10": "CIFAR-10, 3,000 images", "dogs": "dogs, 450 images"}[name],
            _epochs(epochs),
            _accuracy(0),
            left,
            0,
            360,
            260,
        )
        marks.append(panel.draw(lines))
    marks.append(legend(lines, 735, 60))
    write_svg(path, (890, 260), "Pretrained weights are ahead from the first epoch, on CIFAR-10 and on dogs", marks)


def _epochs(last: int) -> Axis:
    middle = (1 + last) // 2
    return Axis(1, last, [(1, "1"), (middle, str(middle)), (last, str(last))], "epoch")


def _accuracy(low: float) -> Axis:
    ticks = [(round(0.2 * n, 1), f"{20 * n} %") for n in range(6) if 0.2 * n >= low - 1e-9]
    return Axis(low, 1.0, ticks)
