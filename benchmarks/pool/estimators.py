"""The estimates that are compared, each of one batch of pairs inside a pool; critic: ``(x [n], y [m]) -> [n, m]``."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from contrastive import Bound, infonce_bound, list_scores, pool_infonce
from contrastive import estimators as library
from miners import PoolProposal

Critic = Callable[[Tensor, Tensor], Tensor]


def uniform(critic: Critic, x: Tensor, y: Tensor, k: int) -> Bound:
    """InfoNCE among batches of K pairs: the first n pairs of the pool, K at a time."""
    values = [infonce_bound(critic(x[i : i + k], y[i : i + k])) for i in range(0, len(x) - k + 1, k)]
    mean = math.fsum(bound.value for bound in values) / len(values)
    return Bound(mean, values[0].cap, "bound", values[0].constant, values[0].reason)


def whole(critic: Critic, x: Tensor, y: Tensor) -> Bound:
    """InfoNCE against all of the pool."""
    rows = [infonce_bound(critic(x[i : i + 8], y), torch.arange(i, min(i + 8, len(x)))) for i in range(0, len(x), 8)]
    return Bound(math.fsum(b.value for b in rows) / len(rows), rows[0].cap, "bound", rows[0].constant, rows[0].reason)


def pooled(
    critic: Critic, x: Tensor, y: Tensor, k: int, proposal: PoolProposal, anchors: Tensor, *, shared: bool = False
) -> tuple[Bound, float]:
    """The pool bound, and the textbook estimate of the whole softmax from the same draw, which bounds nothing.

    There the negatives alone are weighted, so that their sum is an unbiased estimate of the pool's.
    """
    targets = torch.arange(len(x))
    draw = (proposal.draw_shared if shared else proposal.draw)(anchors, targets, k)
    scores = list_scores(critic, x, y, draw.columns)
    bound = pool_infonce(scores, draw.log_weights, prior=draw.prior)
    alone = draw.log_weights + math.log(draw.prior / (k - 1))
    alone[:, 0] = 0.0
    textbook = pool_infonce(scores, alone, prior=draw.prior)
    return bound, textbook.value - textbook.constant + math.log(draw.prior)


def smile(scores: Tensor, clip: float = 5.0) -> float:
    """SMILE (Song and Ermon, 2020); it bounds nothing."""
    return float(library.smile(scores, clip=clip))


def nwj(scores: Tensor) -> float:
    """NWJ of a critic whose optimum is the log-ratio."""
    return float(library.nwj_of_log_ratio(scores.double()))


def jensen_shannon_loss(scores: Tensor) -> Tensor:
    """What trains SMILE's critic: the logistic loss of pairs against shuffled pairs."""
    return -library.jensen_shannon(scores)


def nwj_loss(scores: Tensor) -> Tensor:
    """Minus NWJ of the log-ratio, for training."""
    return -library.nwj_of_log_ratio(scores)
