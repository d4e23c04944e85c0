"""Blend: the linear classifier and the best fine-tuned network side by side, their probabilities averaged.

They err on different images, because one reads the pretrained features of several stages and the other its own: averaged, they
are mostly more accurate than either (Hansen and Salamon, "Neural network ensembles", 1990), at the cost of both in a request.
The part of the backbone below the cut is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from transferapp.data.dataset import Dataset
from transferapp.evaluation.metrics import measure
from transferapp.policy.choose import Blend, merit
from transferapp.recipes.fit.candidate import Candidate

AVERAGE = "average with the linear classifier"
"""Name of the candidate."""


def blend(solved: Candidate, tuned: Sequence[Candidate], validation: Dataset) -> Blend[Candidate] | None:
    """Average the linear classifier and the best network that was fine-tuned on the same backbone.

    Args:
        solved: The linear classifier.
        tuned: What was trained after it.
        validation: The validation images, which `probabilities` of the candidates belong to.

    Returns:
        None where nothing of the backbone was fine-tuned, or there are no validation images.
    """
    networks = [
        each for each in tuned if each.backbone == solved.backbone and each.classifier and each.classifier.tails
    ]
    best = max(networks, key=lambda each: merit(each.accuracy, each.loss), default=None)
    if best is None or best.classifier is None or best.probabilities is None:
        return None
    if solved.probabilities is None or solved.held_out is None:
        return None
    probabilities = (best.probabilities + solved.probabilities) / 2
    if not np.isfinite(probabilities).all():
        return None
    average = Candidate(
        AVERAGE,
        best.backbone,
        best.cut,
        classifier=replace(best.classifier, linear=solved.classifier),
        held_out=replace(best.classifier, linear=solved.held_out),
        metrics=measure(probabilities, validation.labels, validation.class_names, groups=validation.groups()),
        probabilities=probabilities,
        correct=probabilities.argmax(axis=1) == validation.labels,
        epochs=best.epochs,
        learning_rate=best.learning_rate,
        backbone_learning_rate=best.backbone_learning_rate,
        steps=best.steps,
        notes=(f"{best.name} and the linear classifier, at the cost of both in a request",),
    )
    return Blend(average, best)
