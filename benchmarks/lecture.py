"""A figure for each idea of the lecture "Training Neural Networks II", on cached features of the frozen backbone.

    python benchmarks/lecture.py --data DIR [DIR ...] [--seeds 5] [--images 400]
    python benchmarks/lecture.py --plots
    python benchmarks/lecture.py --gains

For every seed the images are split anew, three quarters for training and one held out, and everything that is compared sees
the same split. Update rules and schedules are compared on a convex problem, the linear classifier, whose optimum full-batch
L-BFGS knows.

Figures go to benchmarks/results/lecture.json after each folder; a run that was interrupted resumes, unless `--fresh`. `--plots`
draws the plots of docs/lecture.md and `--gains` prints the figures of its tables, both from benchmarks/results/.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.common import RESULTS, Split, read_images, read_results, splits, write_results
from benchmarks.lecture_gains import gains
from benchmarks.lecture_plots import SIGNALS, draw
from benchmarks.trials import GridPhase, batches, make_update
from transferapp.backbones.feature_store import CENTER, FeatureStore
from transferapp.backbones.registry import backbone_spec
from transferapp.images.views import MULTI_SCALE_SHORT_SIDES, VIEW_COUNTS, render_batch, short_side_to_decode, views_for
from transferapp.policy.budget import usual_epochs
from transferapp.recipes.search.trials import Features, HeadSettings, Problem, judged
from transferapp.system.threads import cpu_cores
from transferapp.training.curves import Curves, diagnose
from transferapp.training.head_spec import Head, HeadSpec
from transferapp.training.learning_rate_finder import range_test
from transferapp.training.optimizers import ADAMW_DECAY, OPTIMIZERS
from transferapp.training.probe import LinearProbe, cross_validate, fit_probe, log_softmax
from transferapp.training.schedules import SCHEDULES
from transferapp.training.settings import TrainingJob, TrainingSettings

BACKBONE, OTHER_BACKBONE = "efficientnet_lite0", "efficientnet_lite2"
BATCH = 64
NEAR, MOST_PASSES = 0.1, 200
"""An update rule has converged when the objective is within a tenth of the optimum; it gets at most `MOST_PASSES` passes."""

SCHEDULED_PASSES, SCHEDULED_RATES = 40, (3e-3, 3e-2)
"""Passes and rate of a fit with Adam on few images, and ten times that rate."""

SHORT = 10
"""Passes of a short run."""

CYCLES = 4
TRIALS = 16
WIDER = ("weight_decay=1e-6..1e-1", "label_smoothing=0..0.3")
"""Settings searched beside rate and L2, which matter less."""

DRAWS = 200
TIMED_IMAGES = 8
DEEP, WIDTH = 10, 256
FAULTS: dict[str, tuple[str, float, float | None, int, int]] = {
    "rate_too_high": ("sgd", 10.0, None, 0, 0),
    "rate_too_low": ("sgd", 1e-5, None, 0, 0),
    "under_fitting": ("momentum", 0.1, None, 0, 2),
    "over_fitting": ("momentum", 1e-2, 1e-6, 2, 0),
}
"""Faults brought about on purpose: update rule, rate, L2 (None: cross-validated), images per class and features (0: all)."""

FAULTY_PASSES = 24


@dataclass(frozen=True)
class Task:
    """The linear classifier of one split, with its optimum.

    Attributes:
        rows, held_rows: float32, shape (n, features + 1): standardized as the optimum has them, and a column of ones.
        labels, held_labels: int, shape (n,).
        num_classes: Width of the output.
        l2: The cross-validated strength.
        optimum: The solution of L-BFGS.
        split: The images.
    """

    rows: np.ndarray
    held_rows: np.ndarray
    labels: np.ndarray
    held_labels: np.ndarray
    num_classes: int
    l2: float
    optimum: LinearProbe
    split: Split

    def objective(self, weights: np.ndarray, l2: float | None = None) -> float:
        """Mean loss in nats plus penalty, on all training images."""
        loss = judged(self.rows @ weights, self.labels)[1]
        return loss + (self.l2 if l2 is None else l2) / 2 * float(np.square(weights[:-1], dtype=np.float64).sum())

    @functools.cached_property
    def best(self) -> float:
        """The objective at the optimum."""
        return self.objective(np.concatenate([self.optimum.kernel, self.optimum.bias[None]]))

    def held_out(self, weights: np.ndarray) -> tuple[float, float]:
        """Return (accuracy, loss in nats) on the held-out images."""
        return judged(self.held_rows @ weights, self.held_labels)


def make_task(features: np.ndarray, labels: np.ndarray, split: Split) -> Task:
    """Solve the classifier of a split; features are of the center view, shape (n, features)."""
    num_classes = int(labels.max()) + 1
    own, own_labels = features[split.train], labels[split.train]
    l2 = cross_validate(own, own_labels, num_classes, seed=split.seed).l2
    optimum = fit_probe(own, own_labels, num_classes, l2)

    def rows(chosen: np.ndarray) -> np.ndarray:
        return with_ones((features[chosen] - optimum.mean) / optimum.std)

    held = labels[split.held_out]
    return Task(rows(split.train), rows(split.held_out), own_labels, held, num_classes, l2, optimum, split)


def with_ones(rows: np.ndarray) -> np.ndarray:
    """Append a column of ones, so that the bias is a row of the kernel."""
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1).astype(np.float32)


def descend(task: Task, optimizer: str, rates: np.ndarray | float, l2: float | None = None) -> Iterator[np.ndarray]:
    """Train from zero by mini-batches: yields the weights, always the same array, after every pass over the images.

    Args:
        task: The images and labels.
        optimizer: A key of `OPTIMIZERS`.
        rates: One for each step, or a single one for a run without end.
        l2: Strength of the penalty; None for the task's.
    """
    strength = np.float32(task.l2 if l2 is None else l2)
    weights = np.zeros((task.rows.shape[1], task.num_classes), np.float32)
    update, step, epoch = make_update(optimizer), 0, 0
    with np.errstate(over="ignore", invalid="ignore"):
        while isinstance(rates, float) or step < len(rates):
            for chosen, _ in batches(len(task.rows), 1, BATCH, epoch, task.split.seed):
                rate = rates if isinstance(rates, float) else rates[step]
                if optimizer == "adamw":
                    weights *= np.float32(1 - rate * ADAMW_DECAY)
                update(weights, slope(task, weights, chosen, strength), float(rate))
                step += 1
            epoch += 1
            yield weights


def slope(task: Task, weights: np.ndarray, chosen: np.ndarray, l2: np.float32) -> np.ndarray:
    """Gradient of the objective on some of the images, as float32."""
    x = task.rows[chosen]
    error = x @ weights
    error = np.exp(error - error.max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(chosen)), task.labels[chosen]] -= 1
    gradient: np.ndarray = x.T @ error / np.float32(len(chosen))
    gradient[:-1] += l2 * weights[:-1]
    return gradient


def after(passes: int, run: Iterator[np.ndarray]) -> np.ndarray:
    """Return the weights after `passes` passes."""
    for _, weights in zip(range(passes), run, strict=False):
        last = weights
    return last


Figures = dict[str, Any]
"""By name: a number, or a list with one for each seed; None for a run that did not converge."""


def update_rules(task: Task) -> Figures:
    """Passes over the images until the objective is near the optimum, each rule at its default rate."""
    figures: Figures = {"lbfgs iterations": task.optimum.iterations}
    for name, spec in OPTIMIZERS.items():
        if spec.keras_class:
            run = zip(range(1, MOST_PASSES + 1), descend(task, name, spec.learning_rate), strict=False)
            near = (number for number, weights in run if task.objective(weights) < (1 + NEAR) * task.best)
            figures[f"passes {name}"] = next(near, None)
    return figures


def schedules(task: Task) -> Figures:
    """Per cent by which the objective exceeds the optimum after a run of Adam, by schedule and highest rate."""
    from transferapp.training.schedules import make_schedule

    figures: Figures = {}
    epoch = -(-len(task.rows) // BATCH)
    total = SCHEDULED_PASSES * epoch
    for name, warmup in [*((name, 0) for name in SCHEDULES), ("cosine", total // 20)]:
        cycles = 2 if SCHEDULES[name].cyclic else 1
        schedule = make_schedule(name, 1.0, total, warmup_steps=warmup, steps_per_epoch=epoch, cycles=cycles)
        shape = np.array([float(schedule(step)) for step in range(total)])
        for rate in SCHEDULED_RATES:
            weights = after(SCHEDULED_PASSES, descend(task, "adam", rate * shape))
            key = f"excess {name}{' after warm-up' if warmup else ''} at {rate:g}"
            figures[key] = 100 * (task.objective(weights) / task.best - 1)
    return figures


def rate_finder(task: Task) -> Figures:
    """The rate that the range test suggests for Adam, compared with a sweep over six decades."""
    weights = np.zeros((task.rows.shape[1], task.num_classes), np.float32)
    update = make_update("adam")
    order = [c for epoch in range(60) for c, _ in batches(len(task.rows), 1, BATCH, epoch, task.split.seed)]
    steps = iter(order)

    def step(rate: float) -> float:
        chosen = next(steps)
        loss = judged(task.rows[chosen] @ weights, task.labels[chosen])[1]
        loss += task.l2 / 2 * float(np.square(weights[:-1], dtype=np.float64).sum())
        update(weights, slope(task, weights, chosen, np.float32(task.l2)), rate)
        return loss

    found = range_test(step).suggestion

    def loss_at(rate: float) -> float:
        return task.objective(after(SHORT, descend(task, "adam", float(rate))))

    losses = {float(rate): loss_at(rate) for rate in np.geomspace(1e-6, 1, 13)}
    best = min(losses, key=losses.__getitem__)
    good = [rate for rate, loss in losses.items() if loss < 2 * losses[best]]
    return {
        "found rate": found,
        "best rate": best,
        "found objective over the best of the sweep": loss_at(found) / losses[best],
        "median objective of the sweep over its best": float(np.median(list(losses.values()))) / losses[best],
        "rates of the sweep within twice the best": len(good),
    }


def preprocessing(task: Task, features: np.ndarray) -> Figures:
    """Training loss and held-out accuracy after a few passes of momentum, on standardized and on raw features."""
    raw = with_ones(features)
    plain = replace(task, rows=raw[task.split.train], held_rows=raw[task.split.held_out])
    figures: Figures = {}
    for name, each in (("standardized", task), ("raw", plain)):
        weights = after(SHORT, descend(each, "momentum", OPTIMIZERS["momentum"].learning_rate))
        figures[f"{name}: loss"] = judged(each.rows @ weights, each.labels)[1]
        figures[f"{name}: accuracy"] = each.held_out(weights)[0]
    return figures


def penalties(task: Task) -> Figures:
    """Held-out accuracy of the linear classifier with the cross-validated L2 and with almost none."""
    features = task.rows[:, :-1]
    weak = fit_probe(features, task.labels, task.num_classes, 1e-6)
    chosen = fit_probe(features, task.labels, task.num_classes, task.l2)
    figures: Figures = {}
    for name, probe in (("chosen", chosen), ("almost none", weak)):
        accuracy, loss = judged(probe.logits(task.held_rows[:, :-1]), task.held_labels)
        figures |= {f"L2 {name}: accuracy": accuracy, f"L2 {name}: loss": loss}
    return figures


def diagnosis(task: Task) -> Figures:
    """Whether the diagnosis of the curves names each fault brought about on purpose: 1 or 0."""
    figures: Figures = {}
    for code, (optimizer, rate, l2, per_class, width) in FAULTS.items():
        part = task
        if per_class:
            few = np.concatenate(
                [np.flatnonzero(task.labels == label)[:per_class] for label in range(task.num_classes)]
            )
            part = replace(task, rows=task.rows[few], labels=task.labels[few])
        if width:
            columns = [*range(width), -1]
            part = replace(part, rows=part.rows[:, columns], held_rows=part.held_rows[:, columns])
        losses: list[tuple[float, float]] = []
        held: list[tuple[float, float]] = []
        for _, weights in zip(range(FAULTY_PASSES), descend(part, optimizer, rate, l2), strict=False):
            accuracy, _ = judged(part.rows @ weights, part.labels)
            losses.append((accuracy, part.objective(weights, l2)))
            held.append(part.held_out(weights))
        (accuracy_curve, loss_curve), (val_accuracy, val_loss) = zip(*losses, strict=True), zip(*held, strict=True)
        found = diagnose(Curves(loss_curve, accuracy_curve, val_loss, val_accuracy, (rate,) * len(losses)))
        figures[f"named {code}"] = int(code in [finding.code for finding in found])
    return figures


def searches(task: Task, features: np.ndarray, labels: np.ndarray) -> Figures:
    """Held-out accuracy and loss of the best of equally many trials, by kind of search."""
    from transferapp.recipes.search.space import make_search, parse_space
    from transferapp.recipes.search.trials import FINE_EPOCHS, HeadTrainer, Journal, run_phase, run_trials
    from transferapp.system.progress import Silent

    train, val = task.split.train[::2], task.split.train[1::2]
    own, judges = (Features(features[part][:, None], labels[part]) for part in (train, val))
    problem = Problem(own, judges, task.num_classes, task.split.seed)
    figures: Figures = {}
    base, trainer = HeadSettings(HeadSpec(), epochs=FINE_EPOCHS), HeadTrainer(problem)
    tester = HeadTrainer(replace(problem, val=Features(features[task.split.held_out][:, None], task.held_labels)))
    kinds: dict[str, dict[str, Any]] = {
        "random": {"coarse": 0},
        "grid": {"coarse": 0, "grid": True},
        "coarse to fine": {},
        "random, wider": {"coarse": 0, "over": WIDER},
        "grid, wider": {"coarse": 0, "grid": True, "over": WIDER},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, options in kinds.items():
            journal = Journal(Path(folder, f"{name}.jsonl"))
            if options.pop("grid", False):
                phase = GridPhase("grid", parse_space(options.get("over", ())), TRIALS, 0, base, problem.seed)
                last = list(run_phase(phase, problem, trainer, journal))
            else:
                asked = make_search(trials=TRIALS, **options)
                found = run_trials(asked, base, problem, trainer, journal, Silent())
                last = list(found.trials[found.phases[-1].first :])
            # The software takes the most accurate, of which there are many on so few images; by loss there is one.
            params = min(last, key=lambda trial: trial.outcome.loss).params
            accuracy, loss = judged(tester.train(base.with_params(params)).logits, task.held_labels)
            figures |= {f"{name}: accuracy": accuracy, f"{name}: loss": loss}
    return figures


def trained(task: Task, features: np.ndarray, **settings: Any) -> tuple[Any, Any, list[Any]]:
    """Train a head with a hidden layer on center views as a fit does; return the session, its model and its snapshots."""
    from transferapp.training.batches import CachedBatches
    from transferapp.training.session import Session
    from transferapp.training.tail import lone_head

    head = Head(HeadSpec(hidden=(WIDTH,)), task.optimum.mean, task.optimum.std, task.num_classes)
    model = lone_head(head, features.shape[1:], task.split.seed).model
    asked = TrainingSettings(epochs=usual_epochs(len(task.labels), BATCH), **settings)

    def make(batch_size: int) -> Any:
        positions, seed = task.split.train[:, None], task.split.seed
        return CachedBatches(features, positions, task.labels, features.shape[1:], batch_size=batch_size, seed=seed)

    session = Session(TrainingJob(model, make, asked, {}, BATCH), None)
    images, kept = make(BATCH), []
    for epoch in range(asked.epochs):
        images.epoch = epoch
        for index in range(len(images)):
            model.train_on_batch(*images[index])
        if epoch + 1 in session.snapshot_epochs:
            kept.append(session.weights())
    return session, model, kept


def head_scores(task: Task, features: np.ndarray, model: Any) -> np.ndarray:
    """Return the probabilities of the held-out images."""
    scores: np.ndarray = np.exp(log_softmax(np.asarray(model(features[task.split.held_out], training=False))))
    return scores


def judged_scores(task: Task, scores: dict[str, np.ndarray]) -> Figures:
    """Accuracy and loss in nats of several sets of probabilities of the held-out images."""
    figures: Figures = {}
    for name, each in scores.items():
        accuracy, loss = judged(np.log(each + 1e-12), task.held_labels)
        figures |= {f"{name}: accuracy": accuracy, f"{name}: loss": loss}
    return figures


def averaging(task: Task, features: np.ndarray) -> Figures:
    """Held-out figures of the last weights of a hidden layer at a constant rate, and of their Polyak average."""
    session, model, _ = trained(task, features, schedule="constant")
    last = head_scores(task, features, model)
    session.assign(session.weights(averaged=True))
    return judged_scores(task, {"last": last, "averaged": head_scores(task, features, model)})


def snapshots(task: Task, features: np.ndarray) -> Figures:
    """Held-out figures of the last snapshot of a run with warm restarts, and of the average of all."""
    session, model, kept = trained(task, features, schedule="sgdr", cycles=CYCLES, average=0.0)
    scores = []
    for weights in kept:
        session.assign(weights)
        scores.append(head_scores(task, features, model))
    return judged_scores(task, {"last snapshot": scores[-1], "all snapshots": np.mean(scores, axis=0)})


def ensembles(task: Task, other: Task) -> Figures:
    """Held-out figures of the classifiers on two backbones, and of their probabilities averaged."""
    logits = [t.held_rows @ np.concatenate([t.optimum.kernel, t.optimum.bias[None]]) for t in (task, other)]
    scores = [np.exp(log_softmax(each)) for each in logits]
    return judged_scores(task, {"lite0": scores[0], "lite2": scores[1], "both": (scores[0] + scores[1]) / 2})


def expectation(task: Task) -> Figures:
    """Distance of training passes of the solved head from its prediction: of one, and of the average of many.

    As a share of the standard deviation of the logits, for inverted dropout and DropConnect of one half.
    """
    from transferapp.training.tail import lone_head

    figures: Figures = {}
    held = task.held_rows[:, :-1] * task.optimum.std + task.optimum.mean
    for name, spec in (("dropout", HeadSpec(dropout=0.5)), ("dropconnect", HeadSpec(dropconnect=0.5))):
        head = Head.of(task.optimum, spec)
        model = lone_head(head, (held.shape[1],), task.split.seed).model
        prediction = np.asarray(model(held, training=False))
        total, first = np.zeros(prediction.shape), None
        for _ in range(DRAWS):
            drawn = np.asarray(model(held, training=True))
            first = drawn if first is None else first
            total += drawn
        spread = float(prediction.std())
        figures[f"{name}: one pass"] = float(np.sqrt(np.mean((first - prediction) ** 2))) / spread
        figures[f"{name}: average"] = float(np.sqrt(np.mean((total / DRAWS - prediction) ** 2))) / spread
    return figures


def initializers(task: Task) -> Figures:
    """Standard deviation in the tenth hidden layer before training; in the features it is 1."""
    import keras

    from transferapp.training.heads import check_signal
    from transferapp.training.tail import lone_head

    figures: Figures = {}
    rows = task.rows[:, :-1]
    width = rows.shape[1]
    mean, std = np.zeros(width, np.float32), np.ones(width, np.float32)
    for name, (activation, initializer, deviation) in SIGNALS.items():
        spec = HeadSpec(hidden=(WIDTH,) * DEEP, activation=activation, initializer=initializer)
        model = lone_head(Head(spec, mean, std, task.num_classes), (width,), task.split.seed).model
        if deviation is not None:
            rng = np.random.default_rng(task.split.seed)
            for layer in model.layers:
                if isinstance(layer, keras.layers.Dense):
                    layer.kernel.assign(rng.normal(0, deviation, layer.kernel.shape))
        figures[f"signal {name}"] = check_signal(model, rows)[-1].std
    return figures


def views(task: Task, trunk: Any, records: Sequence[Any]) -> Figures:
    """Held-out images of one split by 1, 10 and 50 views: whether each is right, and milliseconds an image."""
    size = trunk.image_size
    needed = short_side_to_decode(MULTI_SCALE_SHORT_SIDES[-1], size)
    columns = trunk.row_slices[trunk.top.index]

    def read_image(position: int) -> Any:
        return records[position].decode(needed).image

    def score(image: Any, count: int) -> np.ndarray:
        crops = render_batch(image, views_for(count, image.size, size), size)
        return np.asarray(np.exp(log_softmax(task.optimum.logits(trunk.rows(crops)[:, columns]))).mean(axis=0))

    figures: Figures = {}
    shown = [read_image(position) for position in task.split.held_out[:TIMED_IMAGES]]
    for count in VIEW_COUNTS:
        started = time.perf_counter()
        for image in shown:
            score(image, count)
        figures[f"views {count}: milliseconds"] = 1000 * (time.perf_counter() - started) / len(shown)
    with ThreadPoolExecutor(cpu_cores()) as pool:
        found = list(
            pool.map(lambda p: [score(image, n) for image in [read_image(p)] for n in VIEW_COUNTS], task.split.held_out)
        )
    for count, scores in zip(VIEW_COUNTS, zip(*found, strict=True), strict=True):
        right = np.stack(scores).argmax(axis=1) == task.held_labels
        figures[f"views {count}: right"] = right.astype(int).tolist()
    return figures


def measured(data: str, options: argparse.Namespace) -> Figures:
    """Measure one folder; figures of splits are lists with one entry for each seed."""
    name, records, classes = read_images(data, options.images)
    print(f"\n{name}: {len(records)} images, {len(classes)} classes", flush=True)
    labels = np.array([record.label for record in records])
    trunks = [load(backbone) for backbone in (BACKBONE, OTHER_BACKBONE)]
    features, others = (top_features(trunk, records) for trunk in trunks)
    figures: Figures = {}
    for split in splits(labels, options.seeds):
        task, other = (make_task(each, labels, split) for each in (features, others))
        studies: dict[str, Callable[[], Figures]] = {
            "update rules": lambda task=task: update_rules(task),  # type: ignore[misc]
            "schedules": lambda task=task: schedules(task),  # type: ignore[misc]
            "rate finder": lambda task=task: rate_finder(task),  # type: ignore[misc]
            "preprocessing": lambda task=task: preprocessing(task, features),  # type: ignore[misc]
            "penalties": lambda task=task: penalties(task),  # type: ignore[misc]
            "diagnosis": lambda task=task: diagnosis(task),  # type: ignore[misc]
            "searches": lambda task=task: searches(task, features, labels),  # type: ignore[misc]
            "averaging": lambda task=task: averaging(task, features),  # type: ignore[misc]
            "snapshots": lambda task=task: snapshots(task, features),  # type: ignore[misc]
            "ensembles": lambda task=task, other=other: ensembles(task, other),  # type: ignore[misc]
            "expectation": lambda task=task: expectation(task),  # type: ignore[misc]
            "initializers": lambda task=task: initializers(task),  # type: ignore[misc]
        }
        for study, work in studies.items():
            started = time.perf_counter()
            with threadpool_limits(1, "blas"):  # the products are too small for threads to pay
                found = work()
            for key, value in found.items():
                figures.setdefault(key, []).append(value)
            print(f"  split {split.seed}: {study}, {time.perf_counter() - started:.1f} s", flush=True)
        if split.seed == 0:
            started = time.perf_counter()
            figures |= views(task, trunks[0], records)
            print(f"  split {split.seed}: views, {time.perf_counter() - started:.1f} s", flush=True)
    return figures


def load(backbone: str) -> Any:
    """Load a trunk on OpenVINO, from the cache if it was converted before."""
    from transferapp.backbones.loading import load_backbone
    from transferapp.backbones.trunk import load_trunk

    spec = backbone_spec(backbone)
    return load_trunk(spec, lambda: load_backbone(spec), image_size=spec.image_size, streams=cpu_cores())


def top_features(trunk: Any, records: Sequence[Any]) -> np.ndarray:
    """Top-stage averages of the center view of each image: float32, shape (n, channels)."""
    rows = FeatureStore(trunk, workers=cpu_cores()).collect(records, [CENTER])[:, 0]
    return np.ascontiguousarray(rows[:, trunk.row_slices[trunk.top.index]], np.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", nargs="+", help="folders to measure, or the word textile")
    what.add_argument("--plots", action="store_true", help="draw the plots of docs/lecture.md")
    what.add_argument("--gains", action="store_true", help="print the figures of docs/lecture.md")
    parser.add_argument("--seeds", type=int, default=5, help="splits, 2 or more (%(default)s)")
    parser.add_argument("--images", type=int, default=400, help="of each folder at most (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming")
    parser.add_argument("--out", type=Path, default=RESULTS / "lecture.json", help="where the figures go")
    options = parser.parse_args(arguments)
    if options.plots:
        print(*draw(), sep="\n")
        return
    if options.gains:
        print(*(f"{idea:<48} {figure}" for idea, figure in gains().items()), sep="\n")
        return
    if options.seeds < 2:
        parser.error("an interval needs two seeds or more")
    asked = {"seeds": options.seeds, "images": options.images}
    document: dict[str, Any] = {"options": asked, "seconds": {}, "figures": {}}
    if not options.fresh and (before := read_results(options.out)).get("options") == asked:
        document = before
    for data in options.data:
        name = Path(data).resolve().name
        if name in document["figures"]:
            print(f"\n{name}: already measured")
            continue
        started = time.perf_counter()
        document["figures"][name] = measured(data, options)
        document["seconds"][name] = round(time.perf_counter() - started, 1)
        write_results(options.out, document)


if __name__ == "__main__":
    main()
