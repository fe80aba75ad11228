r"""From scores to nats: estimates of mutual information that say whether they bound it.

A loss with uniform weights turns into the InfoNCE lower bound by adding log K. A mined loss does not, unless the
miner guarantees enough weight in every row; then the constant is log(1 + W), with W the mass it guarantees.
`infonce_bound` applies the rule and never returns a bare number.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrastive.objectives import kpair_loss
from contrastive.scores import MiningFacts, WeighsNegatives, check_rows, check_values, negatives, target_scores

__all__ = ["Bound", "infonce_bound", "nwj_bound"]


@dataclass(frozen=True)
class Bound:
    """An estimate of mutual information in nats, and what may be claimed of it.

    Arguments:
        value: the estimate; nan where no constant turns the loss into nats.
        cap: the largest value it can take: log K for InfoNCE, infinity where there is none.
        status: whether its expectation is a lower bound on I(X;Y) for any critic.
        constant: what was added to minus the loss; nan where nothing may be.
        reason: why, in one sentence.
    """

    value: float
    cap: float
    status: Literal["bound", "not a bound"]
    constant: float
    reason: str


def infonce_bound(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    miner: WeighsNegatives | None = None,
) -> Bound:
    r"""Estimates mutual information by InfoNCE, and says whether it is a lower bound.

    .. math::
        I_{NCE} = \log K - \frac1n \sum_i L_i

    with K the number of candidates of a row. Mined rows give :math:`\log(1 + W) - L_w` when the miner is
    monotone and of constant mass W (HCL with :math:`\tau^+ = 0`: W = N; top-k: W = k), and no bound otherwise.

    Arguments:
        scores: held-out pairs scored by the critic; candidates drawn independently of the anchor
            given its positive. An absent candidate (:math:`-\infty`) does not count towards K, a row of
            nothing else (padding) not towards the mean.
        targets: as in `contrastive.kpair_loss`.
        miner: the miner whose weighted loss is evaluated; its declared `facts` decide. None: uniform.

    Returns:
        Value, cap, status, constant and reason. For a miner without a guarantee the value and the
        constant are nan: evaluate the trained critic with ``miner=None`` instead.

    Raises:
        ValueError: as `contrastive.kpair_loss`, and for a matrix without any candidate.

    Example:
        >>> infonce_bound(100 * torch.eye(8)).value  # the cap: log 8
        2.0794...

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
    """
    scores, targets, _ = check_rows("infonce_bound", scores.detach(), targets)
    held = _held_rows("infonce_bound", scores, targets)
    present = negatives(scores, targets).sum(1)[held]
    log_weights = None if miner is None else miner(scores, targets)
    loss = kpair_loss(scores, targets, log_weights=log_weights).double()[held]
    if miner is None:
        mass, reason = present, "uniform weights: log K - L is a lower bound for any critic (i.i.d. candidates)"
    else:
        facts: MiningFacts = getattr(miner, "facts", MiningFacts())
        if facts.mass is None or not facts.monotone:
            return Bound(
                value=float("nan"),
                cap=float("nan"),
                status="not a bound",
                constant=float("nan"),
                reason=f"{miner!r} guarantees no constant mass of monotone weights in every row",
            )
        mass = present if facts.mass == "all" else present.clamp_max(facts.mass)
        reason = f"{miner!r} is monotone with constant mass: log(1 + W) - L is a lower bound (i.i.d. candidates)"
    constant = float(torch.log1p(mass.double()).mean())
    return Bound(value=constant - float(loss.mean()), cap=constant, status="bound", constant=constant, reason=reason)


def nwj_bound(scores: Float[Tensor, "anchors candidates"], targets: Int[Tensor, " anchors"] | None = None) -> Bound:
    r"""Estimates mutual information by the bound of Nguyen, Wainwright and Jordan.

    .. math::
        I_{NWJ} = \operatorname{mean}_i s_{i,t(i)} - e^{-1} \operatorname{mean}_{i,\, j \ne t(i)} e^{s_{ij}}

    Arguments:
        scores: as in `infonce_bound`; the optimal critic is :math:`1 + \log p(y|x)/p(y)`.
        targets: as in `infonce_bound`.

    Returns:
        A bound without a cap; its variance grows like :math:`e^I`.

    Raises:
        ValueError: as `contrastive.kpair_loss`, and for a matrix without negatives.

    Example:
        >>> nwj_bound(torch.ones(4, 4)).value  # a critic that knows nothing
        0.0

    References:
        | Estimating Divergence Functionals and the Likelihood Ratio by Convex Risk Minimization (Nguyen et al., 2010)
        | https://arxiv.org/abs/0809.0853
    """
    scores, targets, _ = check_rows("nwj_bound", scores.detach(), targets)
    held = _held_rows("nwj_bound", scores, targets)
    kept = negatives(scores, targets)
    if not bool(kept.any()):
        raise ValueError(f"nwj_bound: scores of shape {tuple(scores.shape)} hold no negative")
    joint = target_scores(scores, targets)[held].double().mean()
    log_marginal = torch.logsumexp(scores.double()[kept], 0) - torch.log(kept.sum().double())
    value = float(joint - torch.exp(log_marginal - 1))
    return Bound(
        value=value,
        cap=float("inf"),
        status="bound",
        constant=0.0,
        reason="NWJ is a lower bound in expectation for any critic; its variance grows exponentially with I",
    )


def _held_rows(function: str, scores: Tensor, targets: Tensor) -> Tensor:
    """The mask of rows that hold a candidate: padding is no sample, and counted as one it would lower the mean."""
    check_values(function, scores, targets)
    held = (scores > -torch.inf).any(1)
    if not bool(held.any()):
        raise ValueError(f"{function}: scores of shape {tuple(scores.shape)} hold no candidate")
    return held
