"""The choice between one stage and a mixture of stages. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transferapp.policy.reasons import Reason

CLEARLY = 2.0
"""Standard errors by which a mixture must lower the held-out loss of the last stage on images similar to ImageNet, for which
the rule keeps the last stage. On different images the rule itself asks for earlier stages, and the mixture is used as it is:
its weights are shrunk toward the best stage, so it rarely loses (docs/decisions/0018-mixture.md)."""

SHOWN_FROM = 0.05
"""Share of the weight from which a stage is named in the reason."""


@dataclass(frozen=True)
class MixtureScore:
    """Cross-fitted figures of a mixture of stages.

    Attributes:
        accuracy: In [0, 1].
        loss: Mean negative log-likelihood, in nats.
        saved: Loss of the linear classifier on the last stage less `loss`.
        standard_error: Of `saved`, paired by image.
        weights: Weight of each tap, by name; taps of weight 0 are left out.
    """

    accuracy: float
    loss: float
    saved: float
    standard_error: float
    weights: Mapping[str, float] = field(default_factory=dict)

    def reason(self) -> Reason:
        """Return the reason of the cut, where the mixture is used."""
        total = sum(self.weights.values())
        shares = {name: weight / total for name, weight in self.weights.items()}
        named = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= SHOWN_FROM)
        text = (
            f"The classifier reads a mixture of stages ({named}): cross-validated accuracy {self.accuracy:.3f}, loss "
            f"{self.loss:.3f}, {self.saved:.3f} ± {self.standard_error:.3f} below that of the last stage."
        )
        return Reason("cut", text, {"accuracy": self.accuracy, "loss": self.loss, "saved": self.saved, **shares})


def use_mixture(similarity: str, mixture: MixtureScore) -> bool:
    """Return whether the linear classifier reads a mixture of stages.

    Args:
        similarity: `similar` or `different`.
        mixture: Its figures.
    """
    return similarity == "different" or mixture.saved > CLEARLY * mixture.standard_error
