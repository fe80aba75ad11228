r"""Terms: what is predicted from what, as a list. A contrastive system is its encoder and a few of them.

=========== ============================================
part        what
=========== ============================================
source      a tap of the one view: the anchors
target      a tap of the other view: the candidates
critic      scores every anchor against every candidate
pairing     positives and negatives among them
objective   scores to a loss
weight      of the term in the sum
=========== ============================================

>>> import torch
>>> from contrastive.critics import InnerProduct
>>> from contrastive.pairings import other_groups
>>> term = Term("global", "local", InnerProduct(), pairing=other_groups)
>>> maps = {"global": torch.randn(2, 8, 1, 1), "local": torch.randn(2, 8, 3, 3)}
>>> total([term], maps, maps).shape
torch.Size([])
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrastive.bounds import Bound
from contrastive.critics import score_penalty, soft_clip
from contrastive.pairings import Pairing, bound, contrast, in_batch
from contrastive.scores import WeighsNegatives
from contrastive.taps import Maps, groups_of, rows_of, tap

__all__ = ["Term", "maximised", "total"]

Pairs = Callable[[Tensor, Tensor], Pairing]


class Term(nn.Module):
    r"""Creates one term of a system's loss: the source tap of one view predicts the target tap of another.

    .. math::
        w \Bigl( \operatorname{mean}_i L_i\bigl(c \tanh(S / c)\bigr) + \lambda \operatorname{mean}_{ij} s_{ij}^2 \Bigr)

    where the clip and the penalty are optional.

    Arguments:
        source: name of the tap whose places are anchors.
        target: name of the tap whose places are candidates.
        critic: ``(x [N, d], y [M, d']) -> scores [N, M]``.
        pairing: ``(groups of the anchors, groups of the candidates)`` to a `Pairing`; a place's group is its image.
        objective: ``(scores, pairing, *, miner)`` to a loss, of each anchor or their mean.
        miner: weighs the negatives; None is uniform.
        weight: w.
        clip: c of `contrastive.critics.soft_clip`; None clips nothing.
        penalty: :math:`\lambda` of `contrastive.critics.score_penalty`, taken before the clip.
    """

    def __init__(
        self,
        source: str,
        target: str,
        critic: Callable[[Tensor, Tensor], Tensor],
        *,
        pairing: Pairs = in_batch,
        objective: Callable[..., Tensor] = contrast,
        miner: WeighsNegatives | None = None,
        weight: float = 1.0,
        clip: float | None = None,
        penalty: float = 0.0,
    ) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.critic, self.pairing, self.objective, self.miner = critic, pairing, objective, miner
        self.weight, self.clip, self.penalty = weight, clip, penalty

    def scores(self, x: Maps, y: Maps) -> tuple[Float[Tensor, "anchors candidates"], Pairing]:
        """The scores before the clip, and the pairing.

        Arguments:
            x: taps of the view that predicts.
            y: taps of the view that is predicted.

        Raises:
            ValueError: for a tap that does not exist (the message lists those that do), and for views of unequal
                length.
        """
        anchors, candidates = tap(x, self.source), tap(y, self.target)
        if len(anchors) != len(candidates):
            raise ValueError(
                f"Term: got views of unequal length, {len(anchors)} of {self.source!r} and {len(candidates)} of "
                f"{self.target!r}"
            )
        pairing = self.pairing(groups_of(anchors), groups_of(candidates))
        return self.critic(rows_of(anchors), rows_of(candidates)), pairing

    def forward(self, x: Maps, y: Maps) -> Float[Tensor, ""]:
        """Computes the term; see `scores` for the arguments."""
        scores, pairing = self.scores(x, y)
        penalty = self.penalty * score_penalty(scores) if self.penalty else 0.0
        loss = self.objective(self._clipped(scores), pairing, miner=self.miner).mean()
        return self.weight * (loss + penalty)

    def bound(self, x: Maps, y: Maps) -> Bound:
        """What the term's contrast may be called in nats: `contrastive.pairings.bound` of the same scores."""
        scores, pairing = self.scores(x, y)
        return bound(self._clipped(scores), pairing, miner=self.miner)

    def _clipped(self, scores: Tensor) -> Tensor:
        return scores if self.clip is None else soft_clip(scores, self.clip)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.source} -> {self.target}, weight={self.weight}"


def total(terms: Sequence[Term], x: Maps, y: Maps, *, both: bool = False) -> Float[Tensor, ""]:
    """Adds the terms of two views up.

    Arguments:
        terms: at least one.
        x: taps of the one view.
        y: taps of the other view; of the same one where a system has one view.
        both: whether each view predicts the other, and the mean of both is taken.

    Raises:
        ValueError: for no term, and what a `Term` refuses.
    """
    if not terms:
        raise ValueError("total: got no terms, expected at least one")
    forward = torch.stack([term(x, y) for term in terms]).sum()
    return (forward + torch.stack([term(y, x) for term in terms]).sum()) / 2 if both else forward


def maximised(estimator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Makes an objective of an estimator that is to be large, such as `contrastive.estimators.jensen_shannon`.

    Arguments:
        estimator: ``(scores, targets)`` to one number.

    Returns:
        An objective of a `Term`. A miner is refused: estimators weigh no negatives.

    Example:
        >>> from contrastive.estimators import donsker_varadhan
        >>> rows = torch.arange(3)
        >>> maximised(donsker_varadhan)(torch.eye(3), in_batch(rows, rows))
        tensor(-1.)
    """

    def objective(scores: Tensor, pairing: Pairing, *, miner: WeighsNegatives | None = None) -> Tensor:
        if miner is not None:
            name = getattr(estimator, "__name__", repr(estimator))
            raise ValueError(f"maximised: {name} weighs no negatives, but got the miner {miner!r}; use `contrast`")
        return -estimator(pairing.masked(scores), pairing.targets)

    return objective
