"""Optimizers of the lecture by name, built as Keras' own classes with a learning-rate multiplier per variable.

CS231n, "Training Neural Networks II", gives SGD, momentum, Nesterov momentum, AdaGrad, RMSProp, Adam, AdamW and, for full
batches, L-BFGS. Keras has all but the last, but no multiplier per variable, by which the head trains ten times faster than the
backbone and each stage slower than the one above it. Importing this module imports no Keras; building an optimizer does.
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
"""Default weight decay of Keras' AdamW."""

EPSILON = 1e-7
"""Added to the root of the squared gradients, against division by zero."""


def decay_in_effect(optimizer: str, weight_decay: float) -> float:
    """Return the weight decay of an optimizer: the one asked for, or the optimizer's default where that is 0.

    Args:
        optimizer: A key of `OPTIMIZERS`.
        weight_decay: The decay asked for; 0 for none.
    """
    return weight_decay or (ADAMW_DECAY if optimizer == "adamw" else 0.0)


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer by name.

    Attributes:
        name: Name in a configuration.
        keras_class: Name in `keras.optimizers`; empty for L-BFGS, which is not built here.
        learning_rate: A first rate to try: the lecture's for Adam, those of the course's own assignment for the others.
        help: One line for people.
        momentum: Share of the last velocity that remains (`rho`; Adam's beta1); None where there is no velocity.
        decay_rate: Share of the last mean of squared gradients that remains (Adam's beta2); None where there is no such mean.
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

    @property
    def keras_arguments(self) -> dict[str, Any]:
        """Arguments by which Keras' class follows the lecture's rule."""
        match self.name:
            case "momentum":
                return {"momentum": self.momentum}
            case "nesterov":
                return {"momentum": self.momentum, "nesterov": True}
            # Keras adds epsilon under the root: sqrt(g2 + e) where the lecture has sqrt(g2) + 1e-7. With e = 1e-14 the two
            # agree at no gradient and at any large one, and differ by a factor of sqrt(2) at most, where the root itself is
            # 1e-7. Keras' default of 1e-7 would be 3e-4 outside the root, as large as the gradients of a fine-tuned layer.
            case "adagrad":
                return {"initial_accumulator_value": 0.0, "epsilon": EPSILON**2}
            case "rmsprop":
                return {"rho": self.decay_rate, "epsilon": EPSILON**2}
            case "adam" | "adamw":
                return {"beta_1": self.momentum, "beta_2": self.decay_rate, "epsilon": EPSILON}
        return {}


_SPECS = (
    OptimizerSpec("sgd", "SGD", 1e-2, "Down the gradient of each batch, and nothing else."),
    OptimizerSpec("momentum", "SGD", 1e-2, "SGD with a velocity that builds up where gradients agree.", momentum=0.9),
    OptimizerSpec("nesterov", "SGD", 1e-2, "Momentum, with the gradient taken one step ahead.", momentum=0.9),
    OptimizerSpec("adagrad", "Adagrad", 1e-2, "Steps divided by all squared gradients so far; slows down for good."),
    OptimizerSpec("rmsprop", "RMSprop", 1e-2, "AdaGrad that forgets: a running mean of squared gradients.", None, 0.99),
    OptimizerSpec("adam", "Adam", 1e-3, "RMSProp with momentum and bias correction; try 1e-3 or 5e-4.", 0.9, 0.999),
    OptimizerSpec("adamw", "AdamW", 1e-3, "Adam with weight decay beside the gradient, not in it.", 0.9, 0.999),
    OptimizerSpec(
        "lbfgs", "", 1.0, "Full batch and deterministic: solves the convex head alone (transferapp.training.probe)."
    ),
)

OPTIMIZERS: dict[str, OptimizerSpec] = {spec.name: spec for spec in _SPECS}
"""Every optimizer by name. `lbfgs` is listed because the lecture lists it, but it trains no network."""


def make_optimizer(
    name: str,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    *,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    multipliers: Mapping[str, float] | None = None,
    average: float | None = None,
) -> keras.Optimizer:
    """Build an optimizer that follows the lecture's update rule.

    Keras differs from the lecture in two places. Its momentum carries the rate inside the velocity
    (``v = rho * v - rate * dx``): the same for a constant rate, and smoother where a schedule changes it. Its Adam adds epsilon
    before the bias correction, not after (section 2 of Kingma & Ba, 2015, arXiv:1412.6980), so that epsilon counts 32 times as
    much in the first step and 10 times in the tenth: far below any gradient that matters.

    Args:
        name: A key of `OPTIMIZERS`, other than `lbfgs`.
        learning_rate: Positive, or a schedule (see `transferapp.training.schedules`).
        weight_decay: Decoupled decay (Loshchilov & Hutter, 2019, arXiv:1711.05101): each step also subtracts
            ``rate * weight_decay * x`` from the weights x; in SGD that is L2 regularization. None for none, and for Keras'
            default of 0.004 in `adamw`.
        clip_norm: Positive: limit on the norm of all gradients together (Pascanu et al., 2013, arXiv:1211.5063). None for no
            limit.
        multipliers: Learning-rate multipliers by variable path, not negative; 1 for variables not named. Weight decay, which
            is proportional to the rate, is multiplied too. 0 freezes a variable.
        average: In (0, 1): momentum of Polyak averaging (Keras' `use_ema`); see `POLYAK_DECAY` and `averaged_weights`. The
            average starts at the weights after the first step, when `iterations` is 0: code that sets `iterations` must
            restore the other variables too. The raw weights remain in the model, after `fit` too, where Keras' own optimizers
            would replace them by the average: validation decides which of the two is better.

    Returns:
        A Keras optimizer. Its state is saved and restored by its variables (`save_own_variables`, `load_own_variables`). With
        `multipliers` or `average` its class is one that Keras cannot rebuild from a configuration: save models without it.

    Raises:
        UsageError: The name is unknown or a number is out of range. Later, when the optimizer is built: a multiplier names no
            variable that is trained.

    Example:

        model.compile(make_optimizer("adam", 1e-3, clip_norm=1.0, multipliers=tail.multipliers(0.1)), loss="mse")
    """
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
    settings = spec.keras_arguments
    if weight_decay is not None:
        settings["weight_decay"] = _in_range("weight_decay", weight_decay)
    if clip_norm is not None:
        settings["global_clipnorm"] = _in_range("clip_norm", clip_norm, open_low=True)
    if average is not None:
        momentum_of_average = _in_range("average", average, high=1.0, open_low=True)
        settings |= {"use_ema": True, "ema_momentum": momentum_of_average, "ema_overwrite_frequency": None}
    checked = {path: _in_range(f"the multiplier of {path}", m) for path, m in (multipliers or {}).items()}
    if not callable(learning_rate):
        learning_rate = _in_range("learning_rate", learning_rate, open_low=True)

    import keras

    base = getattr(keras.optimizers, spec.keras_class)
    if not checked and average is None:
        return base(learning_rate, **settings)
    optimizer = per_variable(base)(learning_rate, **settings)
    optimizer.multipliers = checked
    return optimizer


def averaged_weights(optimizer: keras.Optimizer) -> list[np.ndarray]:
    """Return the Polyak average of each trained variable, in the order of the model's `trainable_variables`.

    Args:
        optimizer: From `make_optimizer` with `average`, after at least one step; a `LossScaleOptimizer` may wrap it.

    Raises:
        UsageError: It has no average, or is not built yet.
    """
    import keras

    averages = weight_averages(getattr(optimizer, "inner_optimizer", optimizer))
    if averages is None:
        raise UsageError(
            "This optimizer holds no average of the weights", expected="one made with average=0.995, after a step"
        )
    return [keras.ops.convert_to_numpy(average) for average in averages]


def _in_range(setting: str, value: float, *, high: float = math.inf, open_low: bool = False) -> float:
    """Return the number as a float if it is finite, below `high`, and not below 0 (above 0, if `open_low`)."""
    number = float(value)
    if not math.isfinite(number) or number >= high or number < 0 or (open_low and number == 0):
        bounds = f"{'more than' if open_low else 'at least'} 0"
        if math.isfinite(high):
            bounds += f" and less than {high:g}"
        raise UsageError(f"{setting} is out of range", expected=bounds, got=f"{number:g}")
    return number
