"""Draws: negatives kept at random, and weights that undo a proposal they were drawn from."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contrastive.ranking import columns_of_largest
from contrastive.scores import MiningFacts, eager_on_cpu, negatives
from miners.hard import keep_columns
from miners.miner import Miner, check_count

__all__ = ["draw", "importance", "random_subset"]

# The logarithm of a weight that counts as 0 beside the largest.
_LEAST = -85.0


def random_subset(k: int) -> Miner:
    """Keeps k negatives of every anchor, drawn uniformly without replacement.

    It draws anew at every call, by the global generator of the scores' device; a row with fewer negatives keeps all of
    them. ``log(1 + k) - L`` still bounds mutual information: it is InfoNCE with k + 1 candidates.

    Arguments:
        k: how many, at least 1.

    Raises:
        ValueError: for k < 1.

    Example:
        >>> kept = random_subset(2)(torch.zeros(1, 6), torch.tensor([0])).exp()
        >>> kept[:, 0], kept[:, 1:].sum(1)
        (tensor([1.]), tensor([2.]))

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
    """
    check_count("random_subset", k)
    facts = MiningFacts(mass=k, monotone=True, drawn=True)
    return Miner(partial(_random_subset, k=k), name=f"random_subset(k={k})", facts=facts)


def importance(
    log_q: Float[Tensor, " candidates"] | Float[Tensor, "anchors candidates"] | float,
    *,
    log_p: Float[Tensor, " candidates"] | Float[Tensor, "anchors candidates"] | float = 0.0,
    positive: bool = True,
) -> Miner:
    r"""Undoes a known proposal: candidates drawn from q weigh as if they were drawn from p.

    .. math::
        w_{ij} = \frac{p(y_j)}{q(y_j \mid x_i)}, \quad \text{the positive's included}

    With the positive's weight ``log K - L`` bounds mutual information, whatever is drawn hard (theorem C). On the
    negatives alone (``positive=False``), as sampled softmax has it, it bounds nothing. A proposal belongs to one
    direction: pass ``symmetric=False`` to `contrastive.KPairLoss`.

    Arguments:
        log_q: the logarithm of q at every candidate, or of every anchor (by row number) at every candidate; a number
            is a q that is the same everywhere.
        log_p: the logarithm of p likewise. Both are normalised, or lack the same constant: what only one of them lacks
            shifts the loss, and what `contrastive.infonce_bound` says of it is void.
        positive: whether the positive is weighted as well.

    Raises:
        ValueError: for a `log_q` or `log_p` that is not finite (q must be positive) or not of one or two dimensions;
            when mining, for lengths that do not fit the scores.

    Example:
        >>> q = torch.tensor([0.5, 0.25, 0.25])
        >>> importance(q.log(), log_p=-1.0986)(torch.zeros(1, 3), torch.tensor([0])).exp()
        tensor([[0.6667, 1.3333, 1.3333]])

    References:
        | Improving Mutual Information Estimation with Annealed and Energy-Based Bounds (Brekelmans et al., 2022)
        | https://arxiv.org/abs/2303.06992
        | Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model
        | (Bengio and Senecal, 2008)
        | https://doi.org/10.1109/TNN.2007.912312
    """
    tables = _table("log_q", log_q), _table("log_p", log_p)
    if positive:
        facts = MiningFacts(proposal=True)
    else:
        facts = MiningFacts(why="weighs the negatives alone by p/q, and not the positive")
    shown = ", ".join(f"{name}={_shown(table)}" for name, table in zip(("log_q", "log_p"), tables, strict=True))
    name = f"importance({shown}{'' if positive else ', positive=False'})"
    return Miner(partial(_importance, log_q=tables[0], log_p=tables[1], positive=positive), name=name, facts=facts)


def draw(scores: Tensor, targets: Tensor, log_weights: Tensor | None, k: int) -> Tensor:
    """Log-weights that keep k negatives of every row, drawn without replacement by their weights.

    One is drawn by the cumulative sum of the weights, several by Gumbel top-k: the k largest of the log-weights plus
    Gumbel noise.

    Arguments:
        scores: what decides which negatives are present.
        targets: the column of each anchor's positive.
        log_weights: what the draw goes by, -inf at the target and wherever there is no negative; negatives of weight 0
            are drawn uniformly when no others are left. None: uniform.
        k: how many.

    References:
        | Stochastic Beams and Where to Find Them (Kool et al., 2019)
        | https://arxiv.org/abs/1903.06059
    """
    if log_weights is not None and k == 1:
        return keep_columns(scores, targets, _drawn_one(scores, targets, log_weights.detach()))
    # In one order, whatever the strides of the scores; torch's own exponential draws take four times as long.
    noise = scores.new_empty(scores.shape).uniform_()
    if log_weights is None:
        keys = noise.neg()
    else:  # noise of exactly 0 would make an infinite key, which is drawn whatever its weight is
        waits = (1 - noise).log_().neg_().clamp_min_(torch.finfo(noise.dtype).tiny)
        keys = log_weights.detach() - waits.log_()
    k = min(k, scores.shape[1])
    if log_weights is None:
        keys = keys.masked_fill_(~negatives(scores, targets), -torch.inf)
        return keep_columns(scores, targets, columns_of_largest(keys, k))
    columns = columns_of_largest(keys, k)
    if not eager_on_cpu(scores) or bool((keys.gather(1, columns) == -torch.inf).any()):
        weighted = keys != -torch.inf
        least = keys.masked_fill(~weighted, torch.inf).amin(1, keepdim=True)
        keys = torch.where(weighted, keys, least.masked_fill(least == torch.inf, 0.0) - noise)
        columns = columns_of_largest(keys.masked_fill_(~negatives(scores, targets), -torch.inf), k)
    return keep_columns(scores, targets, columns)


def _drawn_one(scores: Tensor, targets: Tensor, log_weights: Tensor) -> Tensor:
    """One column of each row, by weight; uniformly among the negatives where all weights are 0."""
    top = log_weights.amax(1, keepdim=True)
    unusual = ~torch.isfinite(top)
    checked = not eager_on_cpu(scores) or bool(unusual.any())
    if checked:
        alike = torch.zeros_like(log_weights).masked_fill_(~negatives(scores, targets), -torch.inf)
        log_weights = torch.where(top == -torch.inf, alike, log_weights)
        top = torch.where(top == -torch.inf, 0.0, top)
    # The exponential of an infinity takes five times as long as of a number whose exponential is about the smallest.
    weights = (log_weights - top).clamp_min_(_LEAST).exp_()
    sums = F.threshold(weights, 2 * math.exp(_LEAST), 0.0).cumsum(1)
    total = sums[:, -1:]
    # The first column whose sum is above a share of the total, which rounding may have brought up to it.
    share = torch.minimum(torch.rand_like(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    columns = torch.searchsorted(sums, share, right=True).clamp_max_(scores.shape[1] - 1)
    # A broken score is kept: it shall spoil its row.
    return torch.where(torch.isnan(total), log_weights.argmax(1, keepdim=True), columns) if checked else columns


def _random_subset(scores: Tensor, targets: Tensor, anchors: Tensor | None, *, k: int) -> Tensor:
    return draw(scores, targets, None, k)


def _importance(
    scores: Tensor, targets: Tensor, anchors: Tensor | None, *, log_q: Tensor, log_p: Tensor, positive: bool
) -> Tensor:
    ratio = _of_rows("log_p", log_p, scores, anchors) - _of_rows("log_q", log_q, scores, anchors)
    log_weights = ratio.expand_as(scores)
    return log_weights.clone() if positive else log_weights.scatter(1, targets[:, None], 0.0)


def _table(name: str, table: Tensor | float) -> Tensor:
    table = torch.as_tensor(table, dtype=None if isinstance(table, Tensor) else torch.float64)
    if table.ndim > 2 or not table.is_floating_point():
        raise ValueError(
            f"importance: {name} has shape {tuple(table.shape)} and dtype {table.dtype}, "
            "expected floats of [candidates] or [anchors, candidates]"
        )
    broken = ~torch.isfinite(table)
    if bool(broken.any()):
        place = broken.nonzero()[0].tolist()
        where = f" at {place}" if place else ""
        raise ValueError(
            f"importance: {name} is {float(table[tuple(place)])}{where}, expected the logarithm of a positive number"
        )
    return table


def _of_rows(name: str, table: Tensor, scores: Tensor, anchors: Tensor | None) -> Tensor:
    """What a table holds of some anchors, in the scores' dtype."""
    rows, columns = scores.shape
    table = table.to(scores.device)
    if table.ndim and table.shape[-1] != columns:
        raise ValueError(f"importance: {name} is of {table.shape[-1]} candidates, expected the {columns} of the scores")
    if table.ndim < 2:
        return table.to(scores.dtype)
    if anchors is None:
        if len(table) != rows:
            raise ValueError(f"importance: {name} is of {len(table)} anchors, expected the {rows} of the scores")
        return table.to(scores.dtype)
    if eager_on_cpu(anchors) and not (int(anchors.min()) >= 0 and int(anchors.max()) < len(table)):
        raise ValueError(
            f"importance: {name} is of {len(table)} anchors, "
            f"expected those of rows {int(anchors.min())} to {int(anchors.max())}"
        )
    return table[anchors.to(table.device)].to(scores.dtype)


def _shown(table: Tensor) -> str:
    return str(table.item()) if table.ndim == 0 else f"{list(table.shape)}"
