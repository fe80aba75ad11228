"""What every miner of this package is: a rule that weighs, its options, and what it guarantees."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrastive.scores import MiningFacts, WeighsNegatives, check_rows

__all__ = ["Miner", "changes", "check_count", "miner_at"]


@dataclass(frozen=True, repr=False)
class Miner:
    """A miner: ``(scores, targets, *, anchors=None) -> log_weights``.

    Any callable of that form mines; this class adds a check of the shapes, a readable name, pickling, and the
    facts that `contrastive.infonce_bound` reads. Write a new miner as a function that returns one:

    >>> from functools import partial
    >>> def negative_scores(scores, targets, anchors, *, power):
    ...     present = scores.masked_fill(scores == -torch.inf, 0.0)
    ...     return (-power * present).scatter(1, targets[:, None], 0.0)
    >>> easy = Miner(partial(negative_scores, power=2.0), name="easy(power=2.0)")
    >>> easy(torch.tensor([[1.0, 3.0]]), torch.tensor([0]))
    tensor([[ 0., -6.]])

    Arguments:
        rule: a module-level function ``(scores, targets, anchors) -> log_weights``, its options bound by
            `functools.partial`; sees scores in at least float32.
        name: how it prints.
        facts: what it guarantees; the default guarantees nothing.
        schedule: a module-level function from the step of a training to the miner of that step; None: always itself.
    """

    rule: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    name: str
    facts: MiningFacts = MiningFacts()
    schedule: "Callable[[int], Miner] | None" = None

    def __call__(
        self,
        scores: Float[Tensor, "anchors candidates"],
        targets: Int[Tensor, " anchors"],
        *,
        anchors: Int[Tensor, " anchors"] | None = None,
    ) -> Float[Tensor, "anchors candidates"]:
        r"""Weighs the candidates of every row.

        Arguments:
            scores: :math:`s_{ij}`; an absent candidate is :math:`-\infty`, and its weight may be anything but NaN and
                +inf.
            targets: column of each anchor's positive.
            anchors: row numbers of the anchors, for miners that carry facts about them.

        Returns:
            :math:`\log w_{ij}` in at least float32: 0 at the target, :math:`-\infty` for a dropped negative.

        Raises:
            ValueError: for shapes and dtypes that do not fit.
        """
        scores, targets, _ = check_rows(self.name, scores, targets)
        if scores.numel() == 0:
            return torch.zeros_like(scores)
        return self.rule(scores, targets, anchors)

    def at(self, step: int) -> "Miner":
        """The miner of a training step: itself, unless an option of it changes with time (`miners.annealed`).

        Arguments:
            step: how many steps were taken before, at least 0. Nothing else decides, so a resumed training needs no
                state.

        Raises:
            ValueError: for a negative step.
        """
        if step < 0:
            raise ValueError(f"{self.name}: step is {step}, expected at least 0")
        return self if self.schedule is None else self.schedule(step)

    def __repr__(self) -> str:
        return self.name


def changes(miner: WeighsNegatives) -> bool:
    """Whether a part of another miner is not the same at every step."""
    return isinstance(miner, Miner) and miner.schedule is not None


def miner_at(miner: WeighsNegatives, step: int) -> WeighsNegatives:
    """`Miner.at` of a part of another miner, which may be any callable."""
    return miner.at(step) if isinstance(miner, Miner) else miner


def check_count(function: str, k: int) -> None:
    """Refuses a number of negatives that is none, in the name of `function`."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"{function}: k is {k!r}, expected an integer of at least 1")
