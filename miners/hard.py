"""Hard weights: a negative is kept or dropped by its score."""

import math
from functools import partial

import torch
from torch import Tensor

from contrastive.scores import MiningFacts, WeighsNegatives, negatives, target_scores
from miners.miner import Miner

__all__ = ["hardest", "semihard", "topk"]


def topk(k: int) -> Miner:
    r"""Keeps the k highest-scoring negatives of every anchor.

    .. math::
        w_{ij} = 1 \text{ for the } k \text{ largest } s_{ij}, \; j \ne t(i), \text{ else } 0

    Among equal scores any are kept, exactly k in all; a row with fewer negatives keeps all of them.
    Monotone with mass k: ``log(1 + k) - L`` still bounds mutual information, ``log K - L`` never does.

    Arguments:
        k: how many, at least 1.

    Raises:
        ValueError: for k < 1.

    Example:
        >>> topk(1)(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([[0., -inf, 0.]])

    References:
        | Understanding the Behaviour of Contrastive Loss (Wang and Liu, 2021)
        | https://arxiv.org/abs/2012.09740
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"topk: k is {k!r}, expected an integer of at least 1")
    return Miner(partial(_topk, k=k), name=f"topk(k={k})", facts=MiningFacts(mass=k, monotone=True))


def hardest() -> Miner:
    """Keeps the single highest-scoring negative of every anchor (batch-hard).

    It is ``topk(1)``. Without labels the hardest negative is often of the anchor's own class, and training with it
    alone from the start may collapse (Schroff et al., 2015).

    Example:
        >>> hardest()(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([[0., -inf, 0.]])

    References:
        | In Defense of the Triplet Loss for Person Re-Identification (Hermans et al., 2017)
        | https://arxiv.org/abs/1703.07737
    """
    return Miner(partial(_topk, k=1), name="hardest()", facts=MiningFacts(mass=1, monotone=True))


def semihard(margin: float, *, fallback: WeighsNegatives | None = None) -> Miner:
    r"""Keeps the negatives that score below the positive, but by less than a margin.

    .. math::
        w_{ij} = 1 \text{ if } s_{i,t(i)} - m < s_{ij} < s_{i,t(i)}, \text{ else } 0

    It drops the hardest negatives, so nothing bounds mutual information.

    Arguments:
        margin: m > 0, in units of the scores: a cosine margin of 0.2 at temperature 0.1 is 2.
        fallback: the miner of rows in which no negative qualifies; None leaves such a row without
            negatives (loss 0).

    Raises:
        ValueError: for a margin that is not positive.

    Example:
        >>> semihard(1.0)(torch.tensor([[3.0, 2.5, 1.0, 4.0]]), torch.tensor([0]))
        tensor([[0., 0., -inf, -inf]])

    References:
        | FaceNet: A Unified Embedding for Face Recognition and Clustering (Schroff et al., 2015)
        | https://arxiv.org/abs/1503.03832
    """
    if not margin > 0:
        raise ValueError(f"semihard: margin is {margin}, expected a positive number")
    name = f"semihard(margin={margin})" if fallback is None else f"semihard(margin={margin}, fallback={fallback!r})"
    return Miner(partial(_semihard, margin=margin, fallback=fallback), name=name)


def _topk(scores: Tensor, targets: Tensor, anchors: Tensor | None, *, k: int) -> Tensor:
    column = targets[:, None]
    kept = _columns_of_largest(scores.detach().scatter(1, column, -torch.inf), min(k, scores.shape[1]))
    # The target is written last: a row with fewer than k negatives may have it among the k.
    return _dropped(scores).scatter_(1, kept, 0.0).scatter_(1, column, 0.0)


def _columns_of_largest(scores: Tensor, k: int) -> Tensor:
    """The columns of the k largest entries of each row, in any order.

    The columns are dealt to groups: the k largest entries lie in the k groups of the largest maxima, and finding maxima
    is far cheaper than ranking.
    """
    rows, columns = scores.shape
    members = int(math.sqrt(columns / (2 * k)))
    if members < 4 or columns < 1024:  # measured: below, ranking is cheaper than dealing
        return scores.topk(k, dim=1, sorted=False).indices
    groups = columns // members
    dealt = groups * members  # column c is in group c % groups; the last few are in none
    maxima = scores[:, :dealt].reshape(rows, members, groups).amax(1)
    chosen = maxima.topk(k, dim=1, sorted=False).indices
    places = chosen[:, None] + groups * torch.arange(members, device=scores.device)[:, None]
    rest = torch.arange(dealt, columns, device=scores.device).expand(rows, -1)
    places = torch.cat([places.flatten(1), rest], 1)
    return places.gather(1, scores.gather(1, places).topk(k, dim=1, sorted=False).indices)


def _semihard(
    scores: Tensor, targets: Tensor, anchors: Tensor | None, *, margin: float, fallback: WeighsNegatives | None
) -> Tensor:
    positive = target_scores(scores, targets)
    # Both sides of a difference: with scores of 1e4 the sum positive - margin would lose the margin's digits.
    kept = negatives(scores, targets) & (scores < positive) & (scores - positive > -margin)
    log_weights = _dropped(scores).masked_fill(kept, 0.0).scatter(1, targets[:, None], 0.0)
    if fallback is None:
        return log_weights
    return torch.where(kept.any(1, keepdim=True), log_weights, fallback(scores, targets, anchors=anchors))


def _dropped(scores: Tensor) -> Tensor:
    return torch.full_like(scores, -torch.inf)
