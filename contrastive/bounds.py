r"""From scores to nats: estimates of mutual information that say whether they bound it.

A loss with uniform weights turns into the InfoNCE lower bound by adding log K. A mined loss does not, unless the
miner guarantees enough weight in every row; then the constant is log(1 + W), with W the mass it guarantees.
`infonce_bound` applies the rule and never returns a bare number.

Estimators of the same information by other formulas, which a trained critic is judged by just as well, are functions of
the scores too (`contrastive.estimators`, importable from here); `contrastive.catalogue` says what each of them claims.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrastive.estimators import (
    Mine,
    barber_agakov,
    club,
    donsker_varadhan,
    flo,
    infonce,
    interpolated,
    jensen_shannon,
    leave_one_out_upper,
    nwj,
    nwj_of_log_ratio,
    smile,
    symmetric_infonce,
    tractable_nce,
    tuba,
    variational_upper,
)
from contrastive.objectives import kpair_loss
from contrastive.scores import (
    MiningFacts,
    WeighsNegatives,
    check_rows,
    check_values,
    facts_of,
    negatives,
    target_scores,
    weighed,
)

__all__ = [
    "Bound",
    "Mine",
    "barber_agakov",
    "club",
    "donsker_varadhan",
    "flo",
    "infonce",
    "infonce_bound",
    "interpolated",
    "jensen_shannon",
    "leave_one_out_upper",
    "nwj",
    "nwj_bound",
    "nwj_of_log_ratio",
    "pool_infonce",
    "smile",
    "symmetric_infonce",
    "tractable_nce",
    "tuba",
    "variational_upper",
]


@dataclass(frozen=True)
class Bound:
    """An estimate of mutual information in nats, and what may be claimed of it.

    Arguments:
        value: the estimate; nan where no constant turns the loss into nats.
        cap: the most that its expectation can be, for InfoNCE every batch's value: log K; infinity where there is none.
        status: whether its expectation bounds I(X;Y), from the side that `direction` says.
        constant: what was added to minus the loss; nan where nothing may be.
        reason: why, in one sentence.
        passing: share of the rows whose weighted negatives count at least as much as the constant asks for (theorem B's
            test), or, where there is no constant, as unweighted ones: a diagnostic, which certifies nothing. nan where
            the test says nothing.
        direction: lower where the expectation is at most I(X;Y), for any critic; upper where it is at least that;
            neither where there is no bound.
    """

    value: float
    cap: float
    status: Literal["bound", "not a bound"]
    constant: float
    reason: str
    passing: float = float("nan")
    direction: Literal["lower", "upper", "neither"] = "lower"


def infonce_bound(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    miner: WeighsNegatives | None = None,
    independent: bool = True,
) -> Bound:
    r"""Estimates mutual information by InfoNCE, and says whether it is a lower bound.

    .. math::
        I_{NCE} = \log K - \frac1n \sum_i L_i

    with K the number of candidates of a row. Mined rows give :math:`\log(1 + W) - L_w` when the miner is
    monotone and of constant mass W (HCL with :math:`\tau^+ = 0`: W = N; top-k, or k drawn at random: W = k),
    :math:`\log K - L_w` when its weights undo a known proposal at the positive too, and no bound otherwise
    (``docs/theory.md``, theorems A, B and C).

    Arguments:
        scores: held-out pairs scored by the critic. An absent candidate (:math:`-\infty`) does not count towards K, a
            row of nothing else (padding) not towards the mean. Which ones are absent may depend on neither data nor
            scores: padding does not, candidates of the anchor's label do.
        targets: as in `contrastive.kpair_loss`.
        miner: the miner whose weighted loss is evaluated; its declared `facts` decide. None: uniform.
        independent: whether the negatives are drawn independently of the anchor, given its positive, from the
            positive's own law, and scored by the same critic, as the other pairs of a batch are. False for a queue of
            keys from older encoders, for negatives that share a cause with the anchor, for those that are left after
            others were masked by label, id or score, and for synthetic ones: nothing bounds then. Of two views of each
            sample only half of the negatives are: `contrastive.pairings.bound` knows them.

    Returns:
        Value, cap, status, constant, reason and share of passing rows. Without a guarantee value, cap and
        constant are nan: evaluate the trained critic with ``miner=None`` on independent pairs instead.

    Raises:
        ValueError: as `contrastive.kpair_loss`, and for a matrix without any candidate.

    Example:
        >>> infonce_bound(100 * torch.eye(8)).value  # the cap: log 8
        2.0794...

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
        | Improving Mutual Information Estimation with Annealed and Energy-Based Bounds (Brekelmans et al., 2022)
        | https://arxiv.org/abs/2303.06992
    """
    scores, targets, _ = check_rows("infonce_bound", scores.detach(), targets)
    held = _held_rows("infonce_bound", scores, targets)
    kept = negatives(scores, targets)[held]
    present = kept.sum(1)
    log_weights = torch.zeros_like(scores)
    if miner is not None:
        log_weights = weighed("infonce_bound", miner, scores, targets, None).detach()
    loss = kpair_loss(scores, targets, log_weights=log_weights).double()[held]
    facts = _uniform if miner is None else facts_of(miner)
    rows = scores[held].double(), log_weights[held].double(), kept
    proposal = facts.proposal and independent
    if not proposal and (facts.mass is None or not facts.monotone or not independent):
        nan = float("nan")
        passing = float("nan") if miner is None else _passing(*rows, present)
        reason = _no_bound(miner, facts, independent)
        return Bound(
            nan, cap=nan, status="not a bound", constant=nan, reason=reason, passing=passing, direction="neither"
        )
    if proposal:
        constant = float(torch.log1p(present.double()).mean())
        cap = constant - float(target_scores(log_weights, targets)[held].double().mean())
        reason = f"{miner!r} undoes a known proposal, at the positive too: log K - L is a lower bound (theorem C)"
        return Bound(value=constant - float(loss.mean()), cap=cap, status="bound", constant=constant, reason=reason)
    mass = present if facts.mass == "all" or facts.mass is None else present.clamp_max(facts.mass)
    constant = float(torch.log1p(mass.double()).mean())
    return Bound(
        value=constant - float(loss.mean()),
        cap=constant,
        status="bound",
        constant=constant,
        reason=_a_bound(miner, facts),
        # A draw is above the uniform one on average, not in every row.
        passing=float("nan") if facts.drawn else _passing(*rows, mass),
    )


DEPENDENT = "the candidates are not independent of the anchor given its positive: nothing bounds (theorem D)"
_uniform = MiningFacts(mass="all", monotone=True)


def _a_bound(miner: WeighsNegatives | None, facts: MiningFacts) -> str:
    if miner is None:
        return "uniform weights: log K - L is a lower bound for any critic (theorem A; independent candidates)"
    constant = "log K" if facts.mass == "all" else f"log(1 + {facts.mass})"
    how = f"draws {facts.mass} negatives by weights that are monotone" if facts.drawn else "is monotone"
    return f"{miner!r} {how} with constant mass: {constant} - L is a lower bound (theorem B; independent candidates)"


def _no_bound(miner: WeighsNegatives | None, facts: MiningFacts, independent: bool) -> str:
    if not independent:
        return DEPENDENT
    return f"{miner!r} {facts.why or 'guarantees no constant mass of monotone weights in every row'} (theorem D)"


def _passing(scores: Tensor, log_weights: Tensor, kept: Tensor, mass: Tensor) -> float:
    r"""The share of rows with :math:`\sum_j w_j e^{s_j} \ge W \mu`, up to rounding; rows without negatives pass."""
    count = kept.sum(1)
    some = count > 0
    scores, log_weights = scores[some].masked_fill(~kept[some], -torch.inf), log_weights[some]
    weighted = torch.logsumexp(scores + log_weights.masked_fill(~kept[some], 0.0), 1)
    asked = torch.logsumexp(scores, 1) + (mass[some] / count[some]).log()
    passes = int((weighted >= asked - _ROUNDING * asked.abs().clamp_min(1)).sum())
    return (passes + int((~some).sum())) / len(kept)


_ROUNDING = 1e-5  # of a miner's float32 weights, relative to a score


def pool_infonce(scores: Float[Tensor, "anchors k"], log_weights: Float[Tensor, "anchors k"], *, prior: int) -> Bound:
    r"""Estimates mutual information by K candidates of a known proposal inside a pool: the ceiling is the pool's.

    .. math::
        \log K + \operatorname{mean}_i \Bigl( s_{i1} - \log \sum_{j=1}^K \omega_{ij} e^{s_{ij}} \Bigr), \qquad
        \omega_{ij} = \frac{1}{M q_{ij}}

    Column 0 is the positive, whose place among the M of the pool is uniform; the others are drawn with replacement from
    :math:`q_{i \cdot}`. All are weighted in the denominator, the positive too, nothing in the numerator. It is minus
    ``kpair_loss(scores, targets=0, log_weights=log_weights)`` plus log K.

    Arguments:
        scores: of the columns of a `miners.PoolProposal` draw, by the critic that is judged, as it is now
            (`contrastive.lists.list_scores`); a stale score breaks the bound, a stale proposal does not. A row without
            any candidate (padding) is no sample.
        log_weights: :math:`\log \omega_{ij}` of the draw; :math:`-\infty` where the place cannot be the positive's.
        prior: the draw's: M, or what the others' positives leave of it.

    Returns:
        A bound in expectation over pools, pairs and draws, for any critic and any proposal that reaches all of the
        pool. Its cap is :math:`\log` of the prior, of the expectation: a single batch may lie above.

    Raises:
        ValueError: as `contrastive.kpair_loss`; for a prior below 1, and weights that are NaN or +inf, or 0 at a
            positive.

    Example:
        >>> scores = torch.tensor([[9.0, 0.0], [9.0, 0.0]])  # drawn uniformly from 4 places: all weights are 1
        >>> pool_infonce(scores, torch.zeros(2, 2), prior=4).value
        0.693...

    References:
        | Improving Mutual Information Estimation with Annealed and Energy-Based Bounds (Brekelmans et al., 2022)
        | https://arxiv.org/abs/2303.06992
    """
    targets = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    scores, targets, checked = check_rows("pool_infonce", scores.detach(), targets, log_weights.detach())
    assert checked is not None
    log_weights = checked
    if prior < 1 or not scores.numel():
        shape = tuple(scores.shape)
        raise ValueError(f"pool_infonce: got scores of shape {shape} and prior {prior}, expected some and at least 1")
    held = _held_rows("pool_infonce", scores, targets)
    wrong = torch.isnan(log_weights) | (log_weights == torch.inf)
    wrong[:, 0] |= log_weights[:, 0] == -torch.inf
    wrong &= held[:, None]
    if bool(wrong.any()):
        row = int(wrong.any(1).nonzero()[0])
        raise ValueError(
            f"pool_infonce: the log-weights of row {row} hold NaN or +inf, or -inf at the positive (column 0): "
            "the proposal must reach every place of the pool with a known probability"
        )
    loss = (torch.logsumexp(scores.double() + log_weights.double(), 1) - scores[:, 0].double())[held]
    constant = float(torch.tensor(scores.shape[1]).double().log())
    return Bound(
        value=constant - float(loss.mean()),
        cap=float(torch.tensor(prior).double().log()),
        status="bound",
        constant=constant,
        reason=f"{scores.shape[1]} candidates of a known proposal, the positive's weight among them: log K - L is a "
        f"lower bound with the ceiling log {prior} (theorem C; a pool of fresh, independent pairs)",
    )


def nwj_bound(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    independent: bool = True,
) -> Bound:
    r"""Estimates mutual information by the bound of Nguyen, Wainwright and Jordan.

    .. math::
        I_{NWJ} = \operatorname{mean}_i s_{i,t(i)} - e^{-1} \operatorname{mean}_{i,\, j \ne t(i)} e^{s_{ij}}

    Arguments:
        scores: as in `infonce_bound`; the optimal critic is :math:`1 + \log p(y|x)/p(y)`.
        targets: as in `infonce_bound`.
        independent: as in `infonce_bound`.

    Returns:
        A bound without a cap; at its optimum its variance is at least :math:`(e^I - 1)/N` of N independent negatives.
        Of negatives that are not independent the same value, which bounds nothing: it tends to a bound on another
        divergence.

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
    if not bool(negatives(scores, targets).any()):
        raise ValueError(f"nwj_bound: scores of shape {tuple(scores.shape)} hold no negative")
    return Bound(
        value=float(nwj(scores[held].double(), targets[held])),
        cap=float("inf"),
        status="bound" if independent else "not a bound",
        constant=0.0,
        reason="NWJ is a lower bound in expectation for any critic; its variance grows exponentially with I"
        if independent
        else DEPENDENT,
        direction="lower" if independent else "neither",
    )


def _held_rows(function: str, scores: Tensor, targets: Tensor) -> Tensor:
    """The mask of rows that hold a candidate: padding is no sample, and counted as one it would lower the mean."""
    check_values(function, scores, targets)
    held = (scores > -torch.inf).any(1)
    if not bool(held.any()):
        raise ValueError(f"{function}: scores of shape {tuple(scores.shape)} hold no candidate")
    return held
