"""The orthogonal choices of a topology update; a method is a preset over them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MoveRules:
    """What is dropped, what is grown, and how a grown weight starts.

    Args:
        drop: ``magnitude``, ``soft_magnitude`` (sampled) or ``magnitude_and_gradient`` (MEST).
        grow: ``random``, ``gradient`` (largest mean |dL/dW| among the inactive sites), or ``nothing``: layers start
            dense and are pruned gradually.
        drop_temperature: of ``soft_magnitude``; towards 0 it becomes ``magnitude``.
        drop_gradient_weight: of |dL/dtheta| in ``magnitude_and_gradient``.
        keep_moments: a grown weight takes over the moments of a dropped one instead of starting from zero.
    """

    drop: str = "magnitude"
    grow: str = "random"
    drop_temperature: float = 0.25
    drop_gradient_weight: float = 1.0
    keep_moments: bool = False

    @property
    def prunes(self) -> bool:
        """Whether the number of active values falls over the run, instead of staying what it is."""
        return self.grow == "nothing"

    @property
    def needs_gradient(self) -> bool:
        """Whether an update looks at gradients, so that it needs batches."""
        return self.grow == "gradient" or self.scores_gradient

    @property
    def scores_gradient(self) -> bool:
        """Whether what is dropped depends on the gradients of the active values."""
        return self.drop == "magnitude_and_gradient"
