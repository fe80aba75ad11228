"""Hard weights: a negative is kept or dropped by its score."""

import math
from functools import partial

import torch
from torch import Tensor

from contrastive.ranking import columns_of_largest
from contrastive.scores import MiningFacts, WeighsNegatives, negatives, target_scores
from miners.miner import Miner, changes, check_count, miner_at

__all__ = ["hardest", "keep_columns", "margin", "multi_similarity", "ring", "semihard", "topk"]


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
    check_count("topk", k)
    return Miner(partial(_topk, k=k), name=f"topk(k={k})", facts=MiningFacts(mass=k, monotone=True, hardest=True))


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
    return Miner(partial(_topk, k=1), name="hardest()", facts=MiningFacts(mass=1, monotone=True, hardest=True))


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
    name = f"semihard(margin={margin}{'' if fallback is None else f', fallback={fallback!r}'})"
    return Miner(
        partial(_between, lower=margin, upper=0.0, fallback=fallback),
        name=name,
        facts=MiningFacts(why="drops the hardest negatives"),
        schedule=partial(_semihard_at, margin=margin, fallback=fallback)
        if fallback is not None and changes(fallback)
        else None,
    )


def multi_similarity(epsilon: float, *, fallback: WeighsNegatives | None = None) -> Miner:
    r"""Keeps the negatives that score above the positive less a tolerance, however hard.

    .. math::
        w_{ij} = 1 \text{ if } s_{ij} > s_{i,t(i)} - \epsilon, \text{ else } 0

    It is the selection of negatives of multi-similarity mining, for one positive a row. How many are kept depends on
    the positive's score, so nothing bounds mutual information.

    Arguments:
        epsilon: at least 0, in units of the scores: the paper's 0.1 of a cosine is 1 at temperature 0.1.
        fallback: as in `semihard`.

    Raises:
        ValueError: for an `epsilon` that is negative or not finite.

    Example:
        >>> multi_similarity(1.0)(torch.tensor([[3.0, 2.5, 1.0, 4.0]]), torch.tensor([0]))
        tensor([[0., 0., -inf, 0.]])

    References:
        | Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning (Wang et al., 2019)
        | https://arxiv.org/abs/1904.06627
    """
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"multi_similarity: epsilon is {epsilon}, expected a finite number of at least 0")
    name = f"multi_similarity(epsilon={epsilon}{'' if fallback is None else f', fallback={fallback!r}'})"
    return Miner(
        partial(_between, lower=epsilon, upper=math.inf, fallback=fallback),
        name=name,
        facts=MiningFacts(why="keeps as many negatives as the positive's score lets it"),
        schedule=partial(_multi_similarity_at, epsilon=epsilon, fallback=fallback)
        if fallback is not None and changes(fallback)
        else None,
    )


def ring(lower: float, upper: float) -> Miner:
    r"""Keeps the negatives between two quantiles of hardness (ring, or conditional, negatives).

    .. math::
        w_{ij} = 1 \text{ if } l \le \frac{r_{ij}}{N_i} < u, \text{ else } 0

    with :math:`r_{ij} = 0, 1, \dots` the rank of a negative from the hardest and :math:`N_i` the number of the row's
    negatives. Among equal scores any are kept; a row that has negatives keeps at least one. What drops the hardest
    guarantees nothing, and of ``ring(0, u)`` the mass depends on the number of negatives: `topk` says how many.

    Arguments:
        lower: l, the share that is too hard; 0 keeps the hardest.
        upper: u, in (l, 1]; 1 keeps the easiest.

    Raises:
        ValueError: unless 0 <= `lower` < `upper` <= 1.

    Example:
        >>> ring(0.25, 0.75)(torch.tensor([[9.0, 1.0, 4.0, 3.0, 2.0]]), torch.tensor([0]))
        tensor([[0., -inf, -inf, 0., 0.]])

    References:
        | Conditional Negative Sampling for Contrastive Learning of Visual Representations (Wu et al., 2021)
        | https://arxiv.org/abs/2010.02037
    """
    if not 0 <= lower < upper <= 1:
        raise ValueError(f"ring: quantiles out of order: lower is {lower}, upper is {upper}, expected 0 <= l < u <= 1")
    if lower > 0:
        facts = MiningFacts(why="drops the hardest negatives")
    elif upper < 1:
        facts = MiningFacts(why="keeps a share of the negatives, a mass that depends on how many there are")
    else:
        facts = MiningFacts(mass="all", monotone=True)
    return Miner(partial(_ring, lower=lower, upper=upper), name=f"ring(lower={lower}, upper={upper})", facts=facts)


def margin(m: float) -> Miner:
    r"""Weighs every negative by one constant of at least 1: the positive must win by a margin.

    .. math::
        \log w_{ij} = m

    It is `contrastive.additive_margin_loss` as a miner. Weights of at least 1 keep ``log K - L`` a bound, and cost
    value.

    Arguments:
        m: at least 0, in units of the scores: with cosines at temperature :math:`\tau`, the papers' margin divided by
            :math:`\tau`.

    Raises:
        ValueError: for a margin that is negative or not finite.

    Example:
        >>> margin(0.5)(torch.zeros(1, 3), torch.tensor([0]))
        tensor([[0.0000, 0.5000, 0.5000]])

    References:
        | Additive Margin Softmax for Face Verification (Wang et al., 2018)
        | https://arxiv.org/abs/1801.05599
    """
    if not (math.isfinite(m) and m >= 0):
        raise ValueError(f"margin: m is {m}, expected a finite number of at least 0")
    return Miner(partial(_margin, m=m), name=f"margin(m={m})", facts=MiningFacts(mass="all", monotone=True))


def keep_columns(scores: Tensor, targets: Tensor, columns: Tensor, log_weights: Tensor | float = 0.0) -> Tensor:
    """The log-weights that keep some columns of every row, and the target, and drop all others.

    >>> keep_columns(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([[2, 0]]))
    tensor([[0., -inf, 0., -inf]])
    """
    kept = torch.full_like(scores, -torch.inf)
    kept = kept.scatter_(1, columns, log_weights)
    # The target is written last: a row with fewer negatives than columns may have it among them.
    return kept.scatter_(1, targets[:, None], 0.0)


def _topk(scores: Tensor, targets: Tensor, anchors: Tensor | None, *, k: int) -> Tensor:
    rivals = scores.detach().scatter(1, targets[:, None], -torch.inf)
    return keep_columns(scores, targets, columns_of_largest(rivals, min(k, scores.shape[1])))


def _ring(scores: Tensor, targets: Tensor, anchors: Tensor | None, *, lower: float, upper: float) -> Tensor:
    rivals = scores.detach().scatter(1, targets[:, None], -torch.inf)
    # Ranks that may be kept, with one to spare for a ring that is empty.
    deepest = min(math.ceil(upper * (scores.shape[1] - 1)) + 1, scores.shape[1])
    columns = rivals.topk(deepest, dim=1).indices
    count = (rivals != -torch.inf).sum(1, keepdim=True)
    ranks = torch.arange(deepest, device=scores.device)
    # Divided, not multiplied: 0.07 * 100 is more than 7, and rank 7 of 100 would not be at 0.07.
    share = ranks / count.clamp_min(1).to(scores.dtype)
    first = torch.minimum((share < lower).sum(1, keepdim=True), count - 1)
    kept = (ranks == first) | (ranks > first) & (share < upper)
    return keep_columns(scores, targets, columns, torch.zeros_like(share).masked_fill_(~kept, -torch.inf))


def _margin(scores: Tensor, targets: Tensor, anchors: Tensor | None, *, m: float) -> Tensor:
    return torch.full_like(scores, m).scatter_(1, targets[:, None], 0.0)


def _between(
    scores: Tensor,
    targets: Tensor,
    anchors: Tensor | None,
    *,
    lower: float,
    upper: float,
    fallback: WeighsNegatives | None,
) -> Tensor:
    """Weight 1 for -lower < s_ij - s_it < upper, else 0."""
    # Both sides of a difference: with scores of 1e4 the sum positive - lower would lose its digits.
    difference = scores.detach() - target_scores(scores.detach(), targets)
    kept = negatives(scores, targets) & (difference > -lower) & (difference < upper)
    log_weights = torch.full_like(scores, -torch.inf).masked_fill_(kept, 0.0).scatter_(1, targets[:, None], 0.0)
    if fallback is None:
        return log_weights
    return torch.where(kept.any(1, keepdim=True), log_weights, fallback(scores, targets, anchors=anchors))


def _semihard_at(step: int, *, margin: float, fallback: WeighsNegatives) -> Miner:
    return semihard(margin, fallback=miner_at(fallback, step))


def _multi_similarity_at(step: int, *, epsilon: float, fallback: WeighsNegatives) -> Miner:
    return multi_similarity(epsilon, fallback=miner_at(fallback, step))
