r"""Weights by distance on the sphere: as many negatives near as far."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive.scores import MiningFacts, checked_temperature, eager_on_cpu
from miners.draws import draw
from miners.miner import Miner, check_count

__all__ = ["distance_weighted"]

# A squared distance that no two unit vectors have.
_FAR = 1e30


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
        ValueError: for a `temperature` that is none, fewer than 3 dimensions, unless
            0 < `cutoff` < `limit` < 2, and for k < 1.

    Example:
        >>> distance_weighted(1.0, 3)(torch.tensor([[1.0, 0.5, 0.02, -0.5]]), torch.tensor([0])).exp()
        tensor([[1.0000, 1.7500, 1.2500, 0.0000]])

    References:
        | Sampling Matters in Deep Embedding Learning (Wu et al., 2017)
        | https://arxiv.org/abs/1706.07567
    """
    checked_temperature("distance_weighted", temperature)
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
    rivals = (scores if k is None else scores.detach()).scatter(1, targets[:, None], -torch.inf)
    # -d^2, and far away where it is beyond the limit. By thresholds, for a mask costs more than all the rest, and with
    # finite numbers, for the logarithm of an infinity takes ten times as long.
    beyond = -(limit**2) * (1 + torch.finfo(scores.dtype).eps)
    near = F.threshold((2 * temperature) * rivals - 2, beyond, -_FAR)
    log_weights = (1 - dim / 2) * near.neg().clamp_min(cutoff**2).log()
    log_weights = log_weights - (dim - 3) / 2 * (1 + near.clamp(-(limit**2), -(cutoff**2)) / 4).log()
    # Below the weight at the largest distance, 2, and above that far away.
    log_weights = F.threshold(log_weights, (1 - dim / 2) * 10, -torch.inf)
    none = log_weights.amax(1, keepdim=True) == -torch.inf
    if not eager_on_cpu(scores) or bool(none.any()):
        # Where none is near all are, at one distance: the bound's fall-back. A softmax of nothing would be NaN.
        kept = rivals != -torch.inf
        alike = torch.zeros_like(rivals).masked_fill_(~kept & kept.any(1, keepdim=True), -torch.inf)
        log_weights = torch.where(none, alike, log_weights)
    if k is not None:
        return draw(scores, targets, log_weights, k)
    log_count = (rivals != -torch.inf).sum(1, keepdim=True).clamp_min(1).to(scores.dtype).log()
    log_weights = F.log_softmax(log_weights, 1) + log_count
    return log_weights.scatter(1, targets[:, None], 0.0)
