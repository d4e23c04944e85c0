"""The lecture's optimizers, as Keras' own classes, with what fine-tuning needs of them: a rate of its own for each variable.

CS231n, "Training Neural Networks II", gives SGD, momentum, Nesterov momentum, AdaGrad, RMSProp, Adam, AdamW and, for full
batches, L-BFGS. Keras has all but the last. What it lacks is a multiplier of the learning rate per variable, by which the head
learns ten times faster than the backbone, and each stage of the backbone slower than the one above it.

The table needs no Keras; building an optimizer imports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transferapp.backbones.keras_internals import per_variable, weight_averages
from transferapp.errors import UsageError

if TYPE_CHECKING:
    import keras
    import numpy as np

POLYAK_DECAY = 0.995
"""The lecture's averaging of the weights at test time: ``x_test = 0.995 * x_test + 0.005 * x`` after every step."""

ADAMW_DECAY = 0.004
"""What Keras' AdamW decays by unless it is told otherwise."""

EPSILON = 1e-7
"""What the lecture adds to the root of the squared gradients, lest a step divide by zero."""


def decay_in_effect(optimizer: str, weight_decay: float) -> float:
    """What an optimizer decays weights by: what was asked for, or its own where that is 0.

    Args:
        optimizer: A key of `OPTIMIZERS`.
        weight_decay: Asked for; 0 for nothing.
    """
    return weight_decay or (ADAMW_DECAY if optimizer == "adamw" else 0.0)


@dataclass(frozen=True)
class OptimizerSpec:
    """What is known of an optimizer before it is built.

    Attributes:
        name: How it is called in a configuration.
        keras_class: Its name in `keras.optimizers`; empty for one that is not built here.
        learning_rate: A first rate to try: the lecture's for Adam, those of the course's own assignment for the others.
        help: One line for people.
        momentum: Share of the last velocity that is kept (`rho`; Adam's beta1); None where there is no velocity.
        decay_rate: Share of the last mean of squared gradients that is kept (Adam's beta2); None where there is no such mean.
    """

    name: str
    keras_class: str
    learning_rate: float
    help: str
    momentum: float | None = None
    decay_rate: float | None = None

    @property
    def adaptive(self) -> bool:
        """Whether each weight's steps are divided by the size of its own gradients."""
        return self.decay_rate is not None or self.name == "adagrad"


_SPECS = (
    OptimizerSpec("sgd", "SGD", 1e-2, "Down the gradient of each batch, and nothing else."),
    OptimizerSpec("momentum", "SGD", 1e-2, "SGD with a velocity that builds up where gradients agree.", momentum=0.9),
    OptimizerSpec("nesterov", "SGD", 1e-2, "Momentum, with the gradient taken where it is about to go.", momentum=0.9),
    OptimizerSpec("adagrad", "Adagrad", 1e-2, "Steps divided by all squared gradients so far; slows down for good."),
    OptimizerSpec("rmsprop", "RMSprop", 1e-2, "AdaGrad that forgets: a running mean of squared gradients.", None, 0.99),
    OptimizerSpec("adam", "Adam", 1e-3, "RMSProp with momentum and bias correction; try 1e-3 or 5e-4.", 0.9, 0.999),
    OptimizerSpec("adamw", "AdamW", 1e-3, "Adam with weight decay beside the gradient, not in it.", 0.9, 0.999),
    OptimizerSpec(
        "lbfgs", "", 1.0, "Full batch and deterministic: solves the convex head alone (transferapp.training.probe)."
    ),
)

OPTIMIZERS: dict[str, OptimizerSpec] = {spec.name: spec for spec in _SPECS}
"""Every optimizer by name. `lbfgs` is listed, for the lecture lists it, but solves the head and trains no network."""


def make_optimizer(
    name: str,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    *,
    momentum: float | None = None,
    decay_rate: float | None = None,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    multipliers: Mapping[str, float] | None = None,
    average: float | None = None,
) -> keras.Optimizer:
    """Build an optimizer that follows the lecture's update rule.

    Two places where Keras words a rule differently, and what that comes to: its momentum carries the rate inside the velocity
    (``v = rho * v - rate * dx``), the same for a constant rate, a smoother passage where a schedule changes it; its Adam adds
    epsilon before the bias correction, not after (section 2 of Kingma & Ba, 2015), so epsilon counts 32 times as much in the
    first step, 10 times in the tenth, and once in the end: all of it far below any gradient that matters.

    Args:
        name: A key of `OPTIMIZERS`, other than `lbfgs`.
        learning_rate: Positive, or a schedule (see `transferapp.training.schedules`).
        momentum: In [0, 1): rho, or Adam's beta1. None for the spec's.
        decay_rate: In [0, 1): of RMSProp, or Adam's beta2. None for the spec's.
        weight_decay: Each step also takes ``rate * weight_decay * x`` off the weights x, beside the gradient and not in it
            (Loshchilov & Hutter, 2019); in SGD that is L2 regularization. Not negative. None for none, and for Keras' 0.004
            in `adamw`. Variables can be exempted by the optimizer's own `exclude_from_weight_decay`, before it is built.
        clip_norm: Positive: gradients are scaled down together where the norm of all of them exceeds this (Pascanu et al.,
            2013). None for no limit.
        multipliers: From a variable's path to what its learning rate is multiplied by; not negative; 1 for those not named.
            Its weight decay is multiplied likewise, for both are proportional to the rate. 0 holds a variable still.
        average: In (0, 1): Polyak averaging, Keras' `use_ema` with this momentum; see `POLYAK_DECAY` and `averaged_weights`.
            Keras does not start the average at zero or at the initial weights, but at the weights after the first step, which
            it knows by `iterations` being 0: whoever sets that by hand has to restore the other variables as well. The
            raw weights are left as they are, at the end of `fit` too, where Keras' own optimizers would overwrite them with
            the average unasked: which of the two is better is for the validation images to say.

    Returns:
        A Keras optimizer. Its state is saved and restored by its variables (`save_own_variables`, `load_own_variables`). With
        `multipliers` or `average` it is of a class that Keras cannot rebuild from a configuration: save models without it.

    Raises:
        UsageError: The name is unknown, the optimizer has no such setting, or a number is out of range. Later, when the
            optimizer is built: a multiplier names no variable that is trained.
    """
    spec = _buildable(name)
    settings: dict[str, Any] = _class_settings(
        spec, _own("momentum", momentum, spec, spec.momentum), _own("decay_rate", decay_rate, spec, spec.decay_rate)
    )
    if weight_decay is not None:
        settings["weight_decay"] = _in_range("weight_decay", weight_decay, low=0.0)
    if clip_norm is not None:
        settings["global_clipnorm"] = _in_range("clip_norm", clip_norm, low=0.0, open_low=True)
    if average is not None:
        momentum_of_average = _in_range("average", average, low=0.0, high=1.0, open_low=True)
        settings |= {"use_ema": True, "ema_momentum": momentum_of_average, "ema_overwrite_frequency": None}
    checked = {path: _in_range(f"the multiplier of {path}", m, low=0.0) for path, m in (multipliers or {}).items()}
    if not callable(learning_rate):
        learning_rate = _in_range("learning_rate", learning_rate, low=0.0, open_low=True)

    import keras

    base = getattr(keras.optimizers, spec.keras_class)
    if not checked and average is None:
        return base(learning_rate, **settings)
    optimizer = per_variable(base)(learning_rate, **settings)
    optimizer.multipliers = checked
    return optimizer


def averaged_weights(optimizer: keras.Optimizer) -> list[np.ndarray]:
    """The Polyak average of each trained variable, in the order of the model's `trainable_variables`.

    Args:
        optimizer: From `make_optimizer` with `average`, after at least one step; a `LossScaleOptimizer` around it will do.

    Raises:
        UsageError: It keeps no average, or has not been built yet.
    """
    import keras

    inner = getattr(optimizer, "inner_optimizer", optimizer)
    averages = weight_averages(inner)
    if averages is None:
        raise UsageError(
            "This optimizer holds no average of the weights", expected="one made with average=0.995, after a step"
        )
    return [keras.ops.convert_to_numpy(average) for average in averages]


def _buildable(name: str) -> OptimizerSpec:
    spec = OPTIMIZERS.get(name)
    networks = ", ".join(known.name for known in _SPECS if known.keras_class)
    if spec is None:
        raise UsageError(f"Unknown optimizer {name!r}", expected=f"one of {networks}")
    if not spec.keras_class:
        raise UsageError(
            "L-BFGS does not train networks on batches: it needs the whole gradient, without noise",
            expected=f"one of {networks}",
            hint="It solves the convex head, in full batch, whenever the plan cuts at the top",
        )
    return spec


def _class_settings(spec: OptimizerSpec, momentum: float | None, decay_rate: float | None) -> dict[str, Any]:
    """The arguments by which Keras' class follows the lecture's rule."""
    match spec.name:
        case "momentum":
            return {"momentum": momentum}
        case "nesterov":
            return {"momentum": momentum, "nesterov": True}
        # Keras adds epsilon under the root: sqrt(g2 + e) where the lecture has sqrt(g2) + 1e-7. With e = 1e-14 the two agree
        # at no gradient and at any large one, and differ by a factor of sqrt(2) at most, where the root itself is 1e-7.
        # Keras' own 1e-7 would be 3e-4 outside the root, as large as the gradients of a fine-tuned layer.
        case "adagrad":
            return {"initial_accumulator_value": 0.0, "epsilon": EPSILON**2}
        case "rmsprop":
            return {"rho": decay_rate, "epsilon": EPSILON**2}
        case "adam" | "adamw":
            return {"beta_1": momentum, "beta_2": decay_rate, "epsilon": EPSILON}
    return {}


def _own(setting: str, value: float | None, spec: OptimizerSpec, default: float | None) -> float | None:
    """A setting that only some optimizers have: the value given, or the spec's."""
    if value is None:
        return default
    if default is None:
        having = ", ".join(known.name for known in _SPECS if getattr(known, setting) is not None)
        raise UsageError(f"{spec.name} has no {setting}", hint=f"These have: {having}")
    return _in_range(setting, value, low=0.0, high=1.0)


def _in_range(setting: str, value: float, *, low: float, high: float = math.inf, open_low: bool = False) -> float:
    """The number as a float, if it is finite, below `high`, and not below `low` (above it, if `open_low`)."""
    number = float(value)
    if not math.isfinite(number) or number >= high or number < low or (open_low and number == low):
        bounds = f"{'more than' if open_low else 'at least'} {low:g}"
        if math.isfinite(high):
            bounds += f" and less than {high:g}"
        raise UsageError(f"{setting} is out of range", expected=bounds, got=f"{number:g}")
    return number
