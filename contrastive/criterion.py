"""The thin criterion: a critic, a miner and the K-pair loss in one module for a training loop."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrastive.objectives import kpair_loss
from contrastive.scores import WeighsNegatives

__all__ = ["KPairLoss"]


class KPairLoss(nn.Module):
    r"""Creates the K-pair criterion between two batches whose i-th rows are positives of each other.

    .. math::
        \mathcal L = \frac1B \sum_i \log\Bigl(1 + \sum_{j \ne i} w_{ij} e^{f(x_i, y_j) - f(x_i, y_i)}\Bigr)

    or, symmetric, the mean of this and of the same with x and y exchanged. Unmined and one-directional
    it is :math:`\log B - I_{NCE}`.

    Arguments:
        critic: ``(x [N, d], y [M, d']) -> scores [N, M]``, a module or any callable.
        miner: ``(scores, targets, *, anchors=None) -> log_weights``, applied to each direction's own
            rows; None means uniform weights.
        symmetric: whether y is scored against x as well.

    Example:
        >>> from contrastive.critics import Cosine
        >>> criterion = KPairLoss(Cosine(temperature=0.5))
        >>> criterion(torch.eye(4), torch.eye(4))
        tensor(0.3408)

    References:
        | Improved Deep Metric Learning with Multi-class N-pair Loss Objective (Sohn, 2016)
        | https://papers.nips.cc/paper/6200
    """

    def __init__(
        self,
        critic: Callable[[Tensor, Tensor], Tensor],
        *,
        miner: WeighsNegatives | None = None,
        symmetric: bool = True,
    ) -> None:
        super().__init__()
        self.critic = critic
        self.miner = miner
        self.symmetric = symmetric

    def forward(
        self,
        x: Float[Tensor, "batch dx"],
        y: Float[Tensor, "batch dy"],
        *,
        negatives: Float[Tensor, "extra dy"] | None = None,
    ) -> Float[Tensor, ""]:
        r"""Computes the mean loss of the batch, in nats.

        Arguments:
            x: anchors :math:`x_i`.
            y: their positives :math:`y_i`; the other rows are the negatives.
            negatives: further candidates of every anchor, such as a queue: extra columns of the
                direction x to y. In the other direction they would be anchors without a positive.

        Returns:
            The mean over anchors; 0 with gradient 0 for a batch of one.

        Raises:
            ValueError: when `x` and `y` differ in length, or the critic's scores have another shape.
        """
        if len(x) != len(y):
            raise ValueError(f"KPairLoss: got {len(x)} anchors and {len(y)} positives, expected as many of each")
        scores = self._scores(x, y)
        forward_scores = scores if negatives is None else torch.cat([scores, self._scores(x, negatives)], 1)
        loss = self._mean(forward_scores)
        if self.symmetric:
            loss = (loss + self._mean(scores.T)) / 2
        return loss

    def _scores(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.critic(x, y)
        if scores.shape != (len(x), len(y)):
            raise ValueError(
                f"KPairLoss: the critic's scores have shape {tuple(scores.shape)}, expected [{len(x)}, {len(y)}]"
            )
        return scores

    def _mean(self, scores: Tensor) -> Tensor:
        targets = torch.arange(len(scores), device=scores.device)
        log_weights = None if self.miner is None else self.miner(scores, targets, anchors=targets)
        losses = kpair_loss(scores, targets, log_weights=log_weights)
        return losses.mean() if len(losses) else losses.sum()
