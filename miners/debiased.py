r"""Soft weights: hardness by exponential tilting, and the correction for false negatives."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive.scores import MiningFacts, eager_on_cpu, negatives, target_scores
from miners.miner import Miner

__all__ = ["debiased", "hcl"]

_SUBTRACTS = "subtracts a share of the positive's score from its negatives"


def hcl(beta: float = 1.0, tau_plus: float = 0.0, *, min_score: float | None = None) -> Miner:
    r"""Weighs negatives by the exponential of their score (hard-negative contrastive learning).

    .. math::
        w_{ij} = N \frac{e^{\beta s_{ij}}}{\sum_{l \ne t(i)} e^{\beta s_{il}}}

    With a class prior :math:`\tau^+ > 0` each row's weights are then multiplied by one constant, so that its weighted
    sum :math:`A_i = \sum_j w_{ij} e^{s_{ij}}` becomes the debiased one,

    .. math::
        \max\Bigl(\frac{A_i - \tau^+ N e^{s_{i,t(i)}}}{1 - \tau^+},\; N e^{s_{\min}}\Bigr).

    All in log space. Gradients flow through the weights, as in the official code; `detached` stops them, which leaves
    the loss alone and changes its gradient. With :math:`\tau^+ = 0` the miner is monotone with mass N and
    ``log K - L`` still bounds mutual information; with :math:`\tau^+ > 0` nothing does.

    Arguments:
        beta: concentration, at least 0; 0 is uniform. It acts on scores, temperature applied.
        tau_plus: prior probability that a negative is of the anchor's class, in [0, 1).
        min_score: the smallest score there can be, :math:`-1/\tau` for a cosine; None takes each row's
            smallest present score.

    Raises:
        ValueError: for a negative `beta`, a `tau_plus` outside [0, 1) or a `min_score` that is no score.

    Example:
        >>> hcl(1.0)(torch.tensor([[5.0, 1.0, 0.0]]), torch.tensor([0])).exp()
        tensor([[1.0000, 1.4621, 0.5379]])

    References:
        | Contrastive Learning with Hard Negative Samples (Robinson et al., 2021)
        | https://arxiv.org/abs/2010.04592
        | Debiased Contrastive Learning (Chuang et al., 2020)
        | https://arxiv.org/abs/2007.00224
    """
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"hcl: beta is {beta}, expected a finite number of at least 0")
    _check_prior("hcl", tau_plus, min_score)
    name = f"hcl(beta={beta}, tau_plus={tau_plus}{'' if min_score is None else f', min_score={min_score}'})"
    facts = MiningFacts(mass="all", monotone=True) if tau_plus == 0 else MiningFacts(why=_SUBTRACTS)
    return Miner(partial(_hcl, beta=beta, tau_plus=tau_plus, min_score=min_score), name=name, facts=facts)


def debiased(tau_plus: float, *, min_score: float | None = None) -> Miner:
    r"""Corrects every row for the share of its negatives that are of the anchor's class.

    It is ``hcl(0, tau_plus)``: uniform weights, times one constant a row. It never bounds mutual information.

    Arguments:
        tau_plus: prior probability that a negative is of the anchor's class, in [0, 1).
        min_score: as in `hcl`, the smallest score there can be: :math:`-1/\tau` for a cosine; None takes each row's
            smallest present score.

    Raises:
        ValueError: for a `tau_plus` outside [0, 1) or a `min_score` that is no score.

    Example:
        >>> debiased(0.1)(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([0])).exp()
        tensor([[1., 1., 1.]])

    References:
        | Debiased Contrastive Learning (Chuang et al., 2020)
        | https://arxiv.org/abs/2007.00224
    """
    _check_prior("debiased", tau_plus, min_score)
    name = f"debiased(tau_plus={tau_plus}{'' if min_score is None else f', min_score={min_score}'})"
    facts = MiningFacts(mass="all", monotone=True) if tau_plus == 0 else MiningFacts(why=_SUBTRACTS)
    return Miner(partial(_hcl, beta=0.0, tau_plus=tau_plus, min_score=min_score), name=name, facts=facts)


def _check_prior(function: str, tau_plus: float, min_score: float | None) -> None:
    if not 0 <= tau_plus < 1:
        raise ValueError(f"{function}: tau_plus is {tau_plus}, expected a number in [0, 1)")
    if min_score is not None and not min_score < math.inf:
        raise ValueError(f"{function}: min_score is {min_score}, expected a score or None")


def _hcl(
    scores: Tensor,
    targets: Tensor,
    anchors: Tensor | None,
    *,
    beta: float,
    tau_plus: float,
    min_score: float | None,
) -> Tensor:
    kept = _kept(scores, targets)
    log_weights, log_count = _tilted(scores, targets, kept, beta)
    if tau_plus > 0:
        kept = negatives(scores, targets) if kept is None else kept
        # Relative to the hardest negative, nothing changes but the digits: with scores of 1e4 a log-sum loses them.
        hardest = scores.detach().masked_fill(~kept, -torch.inf).amax(1, keepdim=True)
        hardest = hardest.masked_fill(~kept.any(1, keepdim=True), 0.0)
        floor = None if min_score is None else min_score - hardest
        log_weights = log_weights + _debiasing(scores - hardest, targets, kept, log_weights, log_count, tau_plus, floor)
    if kept is None:
        return log_weights.scatter_(1, targets[:, None], 0.0)
    return torch.where(kept, log_weights, 0.0)


def _kept(scores: Tensor, targets: Tensor) -> Tensor | None:
    """The negatives that are present; None if that is all but the target, which saves their mask at every step."""
    if eager_on_cpu(scores) and scores.shape[1] > 1 and float(scores.detach().amin()) > -torch.inf:
        return None
    return negatives(scores, targets)


def _tilted(scores: Tensor, targets: Tensor, kept: Tensor | None, beta: float) -> tuple[Tensor, Tensor]:
    """The weights by exponential tilting, the target still to be set, and the log of each row's number of negatives."""
    if kept is None:
        log_count = scores.new_full((1, 1), scores.shape[1] - 1.0).log()
        if beta == 0:
            return torch.zeros_like(scores), log_count
        tilted = (beta * scores).scatter_(1, targets[:, None], -torch.inf)
    else:
        log_count = kept.sum(1, keepdim=True).clamp_min(1).to(scores.dtype).log()
        # Rows without negatives and columns that are absent take no part; what stands there must only be finite.
        tilted = (beta * scores.masked_fill(~kept, 0.0)).masked_fill(~kept, -torch.inf)
        tilted = tilted.masked_fill(~kept.any(1, keepdim=True), 0.0)
    log_weights = F.log_softmax(tilted, 1) + log_count
    return log_weights if kept is None else log_weights.masked_fill(~kept, 0.0), log_count


def _debiasing(
    scores: Tensor,
    targets: Tensor,
    kept: Tensor,
    log_weights: Tensor,
    log_count: Tensor,
    tau_plus: float,
    floor: Tensor | None,
) -> Tensor:
    """Log of (debiased sum / weighted sum) of each row: one constant a row."""
    some = kept.any(1, keepdim=True)
    weighted = torch.where(kept, scores, 0.0) + log_weights
    log_sum = torch.logsumexp(weighted.masked_fill(~kept, -torch.inf).masked_fill(~some, 0.0), 1, keepdim=True)
    positive = target_scores(scores, targets)
    positive = torch.where(positive > -torch.inf, positive, 0.0)  # a padding row has no positive either
    log_positives = math.log(tau_plus) + log_count + positive
    # log(A - B) = log A + log(1 - e^(log B - log A)), where A > B; elsewhere the clamp decides, and the
    # argument is replaced before the logarithm so that no NaN gradient is formed.
    ratio = log_positives - log_sum
    larger = ratio < 0
    log_difference = log_sum + torch.log(-torch.expm1(ratio.masked_fill(~larger, -1.0)))
    if floor is None:
        floor = torch.where(kept, scores, torch.inf).amin(1, keepdim=True)
        floor = torch.where(some, floor, 0.0)
    log_debiased = torch.where(larger, log_difference - math.log1p(-tau_plus), -torch.inf)
    return torch.maximum(log_debiased, log_count + floor) - log_sum
