"""The thin criterion: a critic, a miner and the K-pair loss in one module for a training loop."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from contrastive._handwritten import seen_through
from contrastive._streaming import check_pairs, direction, directions, joined, views
from contrastive._tiles import Absent, absent_in
from contrastive.factors import Splits, factorises
from contrastive.objectives import kpair_loss
from contrastive.scores import WeighsNegatives, partners, weighed

__all__ = ["KPairLoss"]

# Scores beyond which they are streamed rather than stored, where the user does not say (measured on two CPU cores).
# A critic of pairs holds hundreds of floats for each of them.
_MANY, _MANY_OF_PAIRS = 2**22, 2**18


class KPairLoss(nn.Module):
    r"""Creates the K-pair criterion between two batches whose i-th rows are positives of each other.

    .. math::
        \mathcal L = \frac1B \sum_i \log\Bigl(1 + \sum_{j \ne i} w_{ij} e^{f(x_i, y_j) - f(x_i, y_i)}\Bigr)

    or, symmetric, the mean of this and of the same with x and y exchanged. Unmined and one-directional
    it is :math:`\log B - I_{NCE}`. With the own view's other members among the candidates (``intra_view=True``) it is
    NT-Xent, the mean over all 2B views.

    Large batches are streamed (`contrastive.tiled`): the same value and gradient, without the matrix of scores.

    Arguments:
        critic: ``(x [N, d], y [M, d']) -> scores [N, M]``, a module or any callable.
        miner: ``(scores, targets, *, anchors=None) -> log_weights``, applied to each direction's own
            rows; None means uniform weights.
        symmetric: whether y is scored against x as well.
        intra_view: whether the other members of an anchor's own view are candidates too (SimCLR); needs two views
            from one space, and `symmetric`.
        tiled: whether scores are streamed, True or False. None decides by their number: streamed from about four
            million on (B = 2,048) where the critic factorises, from a quarter of a million where it scores pairs
            (`Concat`), stored otherwise. Streamed, a loss can be differentiated once and its miner sees some rows at a
            time; stored, twice and all rows.

    Raises:
        ValueError: for `intra_view` without `symmetric`.

    Example:
        >>> from contrastive.critics import Cosine
        >>> criterion = KPairLoss(Cosine(temperature=0.5))
        >>> criterion(torch.eye(4), torch.eye(4))
        tensor(0.3408)

    References:
        | Improved Deep Metric Learning with Multi-class N-pair Loss Objective (Sohn, 2016)
        | https://papers.nips.cc/paper/6200
        | A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., 2020)
        | https://arxiv.org/abs/2002.05709
    """

    def __init__(
        self,
        critic: Callable[[Tensor, Tensor], Tensor],
        *,
        miner: WeighsNegatives | None = None,
        symmetric: bool = True,
        intra_view: bool = False,
        tiled: bool | None = None,
    ) -> None:
        super().__init__()
        if intra_view and not symmetric:
            raise ValueError("KPairLoss: got intra_view=True with symmetric=False, expected both views as anchors")
        self.critic = critic
        self.miner = miner
        self.symmetric = symmetric
        self.intra_view = intra_view
        self.tiled = tiled

    def forward(
        self,
        x: Float[Tensor, "batch dx"],
        y: Float[Tensor, "batch dy"],
        *,
        negatives: Float[Tensor, "extra dy"] | None = None,
        absent: Absent | Bool[Tensor, "anchors candidates"] | None = None,
    ) -> Float[Tensor, ""]:
        r"""Computes the mean loss of the batch, in nats.

        Arguments:
            x: anchors :math:`x_i`.
            y: their positives :math:`y_i`; the other rows are the negatives.
            negatives: further candidates of every anchor, such as a queue: extra columns of the
                direction x to y (with `intra_view`, of all views). In the other direction they would be anchors
                without a positive.
            absent: which pairs are no negatives, such as duplicates: a mask ``[B, B + extra]`` of rows of `x` against
                rows of `y` and then `negatives` (with `intra_view`, ``[2B, 2B + extra]``, x before y on both sides), or
                a function ``(rows [m], columns [n]) -> Bool[m, n]`` of their numbers, which needs no matrix.

        Returns:
            The mean over anchors; 0 with gradient 0 for a batch of one.

        Raises:
            ValueError: when `x` and `y` differ in length, or the critic's scores have another shape; names the row
                that holds a NaN or +inf score, or whose positive is absent while other candidates are present.
            RuntimeError: for a second derivative of a streamed loss.
        """
        check_pairs("KPairLoss", x, y)
        sides = 2 if self.intra_view else 1
        extra = 0 if negatives is None else len(negatives)
        mask = _as_function(absent, sides * len(x), sides * len(y) + extra)
        tiled = self._streams(sides * len(x) * (sides * len(y) + extra))
        # Compiled, the loss of stored scores is one graph, and torch.func must see its steps; elsewhere forming the
        # gradient with the value is faster.
        formed = self.miner is None and factorises(self.critic) and not seen_through()
        if not tiled and not formed:
            return self._stored(x, y, negatives, mask)
        form = views if self.intra_view else directions
        if self.symmetric:
            return form("KPairLoss", self.critic, x, y, negatives, absent=mask, miner=self.miner, stored=not tiled)
        candidates = joined("KPairLoss", y, negatives)
        return direction("KPairLoss", self.critic, x, candidates, None, absent=mask, miner=self.miner, stored=not tiled)

    def _streams(self, scores: int) -> bool:
        if self.tiled is not None:
            return self.tiled
        critic: object = self.critic
        if factorises(critic):
            return scores > _MANY
        return isinstance(critic, Splits) and scores > _MANY_OF_PAIRS

    def _stored(self, x: Tensor, y: Tensor, negatives: Tensor | None, absent: Absent | None) -> Tensor:
        """The loss by way of the matrix of scores, for any critic and any miner."""
        if self.intra_view:
            z = joined("KPairLoss", x, y, "positives")
            scores = self._scores(z, z, negatives, absent)
            diagonal = torch.eye(len(z), scores.shape[1], dtype=torch.bool, device=z.device)
            return self._mean(scores.masked_fill(diagonal, -torch.inf), partners(len(z), device=z.device))
        scores = self._scores(x, y, negatives, absent)
        loss = self._mean(scores)
        if self.symmetric:
            loss = (loss + self._mean(scores[:, : len(y)].T)) / 2
        return loss

    def _scores(self, x: Tensor, y: Tensor, negatives: Tensor | None, absent: Absent | None) -> Tensor:
        parts = [self._scored(x, y)] if negatives is None else [self._scored(x, y), self._scored(x, negatives)]
        scores = torch.cat(parts, 1)
        if absent is None:
            return scores
        everywhere = slice(0, len(scores)), slice(0, scores.shape[1])
        return scores.masked_fill(absent_in(absent, *everywhere, scores.device), -torch.inf)

    def _scored(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.critic(x, y)
        if scores.shape != (len(x), len(y)):
            raise ValueError(
                f"KPairLoss: the critic's scores have shape {tuple(scores.shape)}, expected [{len(x)}, {len(y)}]"
            )
        return scores

    def _mean(self, scores: Tensor, targets: Tensor | None = None) -> Tensor:
        anchors = torch.arange(len(scores), device=scores.device)
        targets = anchors if targets is None else targets
        log_weights = None if self.miner is None else weighed("KPairLoss", self.miner, scores, targets, anchors)
        losses = kpair_loss(scores, targets, log_weights=log_weights)
        return losses.mean() if len(losses) else losses.sum()


def _as_function(absent: Absent | Tensor | None, anchors: int, candidates: int) -> Absent | None:
    """A mask as the function that reads it."""
    if not isinstance(absent, Tensor):
        return absent
    if absent.dtype != torch.bool or absent.shape != (anchors, candidates):
        raise ValueError(
            f"KPairLoss: absent has shape {tuple(absent.shape)} and dtype {absent.dtype}, "
            f"expected [{anchors}, {candidates}] and torch.bool"
        )
    return partial(_read, absent)


def _read(mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return mask.to(rows.device)[rows][:, columns]
