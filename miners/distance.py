r"""Weights by distance on the sphere: as many negatives near as far."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive.scores import MiningFacts, negatives
from miners.draws import draw
from miners.miner import Miner, check_count

__all__ = ["distance_weighted"]


def distance_weighted(
    temperature: float, dim: int, *, cutoff: float = 0.5, limit: float = 1.4, k: int | None = None
) -> Miner:
    r"""Weighs negatives by one over the density of their distance, were they spread evenly over a sphere.

    .. math::
        \log w_{ij} = (2 - n) \log d_{ij} - \frac{n - 3}{2} \log\Bigl(1 - \frac{d_{ij}^2}{4}\Bigr) + c_i, \qquad
        d_{ij} = \sqrt{2 - 2 \tau s_{ij}}

    with d clamped from below, 0 weight beyond the limit, and :math:`c_i` such that the weights of the row's N negatives
    have the mean 1; a row whose negatives all lie beyond the limit weighs them alike. So it is monotone with mass N:
    ``log K - L`` bounds mutual information, or ``log(1 + k) - L`` where k negatives are drawn. Every row is
    normalised by itself: by the largest weight of a batch, rows that lie far below it would underflow to nothing.

    Arguments:
        temperature: :math:`\tau`; the scores are cosines divided by it.
        dim: n, the number of dimensions in which the cosines are taken, at least 3.
        cutoff: the distance below which the weight grows no more.
        limit: the distance beyond which a negative is dropped, less than 2. Beyond
            :math:`\sqrt{4 (n - 2) / (2 n - 5)}`, which is 1.414 or more, weights grow again with the distance, and
            nothing bounds.
        k: how many negatives to draw by these weights, without replacement, as the paper does; those beyond the limit
            are drawn when no others are left. It draws anew at every call, by the global generator of the scores'
            device. None: soft weights.

    Raises:
        ValueError: for a `temperature` that is not positive, fewer than 3 dimensions, unless
            0 < `cutoff` < `limit` < 2, and for k < 1.

    Example:
        >>> distance_weighted(1.0, 3)(torch.tensor([[1.0, 0.5, 0.02, -0.5]]), torch.tensor([0])).exp()
        tensor([[1.0000, 1.7500, 1.2500, 0.0000]])

    References:
        | Sampling Matters in Deep Embedding Learning (Wu et al., 2017)
        | https://arxiv.org/abs/1706.07567
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"distance_weighted: temperature is {temperature}, expected a positive number")
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 3:
        raise ValueError(f"distance_weighted: dim is {dim!r}, expected an integer of at least 3")
    if not 0 < cutoff < limit < 2:
        raise ValueError(f"distance_weighted: cutoff is {cutoff}, limit is {limit}, expected 0 < cutoff < limit < 2")
    if k is not None:
        check_count("distance_weighted", k)
    # Where the derivative of log w by d changes its sign.
    if limit**2 <= 4 * (dim - 2) / (2 * dim - 5):
        facts = MiningFacts(mass="all" if k is None else k, monotone=True, drawn=k is not None)
    else:
        facts = MiningFacts(why="has a limit beyond which weights grow with the distance")
    options = f"temperature={temperature}, dim={dim}, cutoff={cutoff}, limit={limit}"
    return Miner(
        partial(_distance_weighted, temperature=temperature, dim=dim, cutoff=cutoff, limit=limit, k=k),
        name=f"distance_weighted({options}{'' if k is None else f', k={k}'})",
        facts=facts,
    )


def _distance_weighted(
    scores: Tensor,
    targets: Tensor,
    anchors: Tensor | None,
    *,
    temperature: float,
    dim: int,
    cutoff: float,
    limit: float,
    k: int | None,
) -> Tensor:
    if k is not None:
        scores = scores.detach()
    kept = negatives(scores, targets)
    squared = (2 - 2 * temperature * scores).clamp_min(cutoff**2)
    near = kept & (squared <= limit**2)
    squared = squared.masked_fill(~near, 1.0)
    log_weights = (1 - dim / 2) * squared.log() - (dim - 3) / 2 * torch.log1p(-squared / 4)
    # Where none is near all are, at one distance: the bound's fall-back.
    near = torch.where(near.any(1, keepdim=True), near, kept)
    log_weights = log_weights.masked_fill(~near, -torch.inf)
    if k is not None:
        return draw(scores, targets, log_weights, k)
    log_count = kept.sum(1, keepdim=True).clamp_min(1).to(scores.dtype).log()
    some = kept.any(1, keepdim=True)
    log_weights = F.log_softmax(log_weights.masked_fill(~some, 0.0), 1) + log_count
    return log_weights.masked_fill(~kept, 0.0)
