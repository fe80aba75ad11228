r"""What each estimator of mutual information claims: direction, cap, optimal critic, variance, where it comes from.

An `Estimator` is a function of `contrastive.estimators` together with the facts about it, as a miner carries its own.

>>> import torch
>>> found = NWJ.bound(torch.ones(3, 3))
>>> found.value, found.direction, found.status
(0.0, 'lower', 'bound')
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from contrastive.arguments import (
    Arguments,
    Conditional,
    OwnConditional,
    OwnConditionalAndNormal,
    Pairs,
    Scores,
    ScoresAndBaseline,
    ScoresAndLogRatio,
)
from contrastive.bounds import DEPENDENT, Bound
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
from contrastive.ksg import ksg

__all__ = [
    "CLUB",
    "DONSKER_VARADHAN",
    "ESTIMATORS",
    "FLO",
    "INFONCE",
    "INTERPOLATED",
    "JENSEN_SHANNON",
    "KSG",
    "LEAVE_ONE_OUT_UPPER",
    "MINE",
    "NWJ",
    "SMILE",
    "SYMMETRIC_INFONCE",
    "TRACTABLE_NCE",
    "TUBA",
    "VARIATIONAL_UPPER",
    "Estimator",
    "barber_agakov_with",
    "interpolated_at",
    "mine_with",
    "smile_clipped",
]


@dataclass(frozen=True)
class Estimator:
    r"""An estimator and what it claims.

    Arguments:
        name: for tables.
        formula: in TeX, with m and :math:`\ell` as in `contrastive.estimators`, P for log-conditionals.
        direction: what its expectation over fresh independent pairs is of I(X;Y), for any critic.
        optimum: the critic that makes it tight, or largest.
        cap: the largest value, by the number of pairs K of a batch.
        variance: a remark.
        reference: authors and year, and the address.
        why: why it bounds or not, in one clause.
        value: the estimate, a function of what `arguments` makes.
        arguments: makes the module that turns pairs into arguments.
        objective: makes what training maximises, where it is not the value.
        exact: whether the claim rests on an exactly known conditional: with a learnt one there is none.
        negatives: whether other pairs' partners are its negatives, which must be independent of the anchor; False for
            a mean over pairs alone.
    """

    name: str
    formula: str
    direction: Literal["lower", "upper", "neither"]
    optimum: str
    cap: Callable[[int], float]
    variance: str
    reference: tuple[str, str]
    why: str
    value: Callable[..., Tensor]
    arguments: Arguments = Scores
    objective: Callable[[], Callable[..., Tensor]] | None = None
    exact: bool = False
    negatives: bool = True

    def bound(self, *inputs: Tensor, learnt: bool | None = None, independent: bool = True) -> Bound:
        """Evaluates the estimator and says what may be claimed of the value.

        Arguments:
            *inputs: of `value`, from held-out pairs: scores or log-conditionals, then a baseline, log-ratio or
                log-marginal; of `KSG` the pairs, x and y.
            learnt: whether a conditional is a model, or the true one; asked for where the claim rests on it.
            independent: as in `contrastive.infonce_bound`: of negatives that share a cause with the anchor nothing
                bounds.

        Returns:
            Value, cap, status, direction and reason. K is the number of columns; where candidates are absent,
            `contrastive.infonce_bound` has the smaller cap.

        Raises:
            ValueError: as the estimator, and as `claim`.
        """
        value = float(self.value(*(given.detach().double() for given in inputs)))
        return self.claim(value, inputs[0].shape[-1], learnt=learnt, independent=independent)

    def claim(self, value: float, pairs: int, *, learnt: bool | None = None, independent: bool = True) -> Bound:
        """Says what may be claimed of a value of batches of K pairs.

        Arguments:
            value: the estimate.
            pairs: K.
            learnt: as in `bound`.
            independent: as in `bound`.

        Returns:
            As `bound`.

        Raises:
            ValueError: where the estimator is `exact` and `learnt` is not said.
        """
        if self.exact and learnt is None:
            raise ValueError(
                f"{self.name}: say whether the conditional is the true one (learnt=False: an {self.direction} bound) "
                "or a model of it (learnt=True: none)"
            )
        direction, why = self.direction, self.why
        if self.exact and learnt:
            direction, why = "neither", "the conditional is learnt, and nothing bounds"
        elif self.negatives and not independent:
            direction, why = "neither", DEPENDENT
        return Bound(
            value=value,
            cap=self.cap(pairs),
            status="not a bound" if direction == "neither" else "bound",
            constant=math.log(pairs) if self.cap is _log else 0.0,
            reason=f"{self.name}: {why}",
            direction=direction,
        )


def _none(pairs: int) -> float:
    return math.inf


def _log(pairs: int) -> float:
    return math.log(pairs)


_POOLE = ("Poole et al., 2019", "https://arxiv.org/abs/1905.06922")
_SONG = ("Song and Ermon, 2020", "https://arxiv.org/abs/1910.06222")
_LOG_RATIO = "log p(y|x)/p(y)"
_EXPONENTIAL = "of the second term (E r² - 1)/N >= (e^I - 1)/N; Gaussians (e^(2I) - 1)/N"

INFONCE = Estimator(
    name="InfoNCE",
    formula=r"\log K + \operatorname{mean}_i (s_{ii} - \log \sum_j e^{s_{ij}})",
    direction="lower",
    optimum=f"{_LOG_RATIO} + c(x)",
    cap=_log,
    variance="small: no anchor's value passes log K",
    reference=("van den Oord et al., 2018", "https://arxiv.org/abs/1807.03748"),
    why="log K less the K-pair loss is a lower bound for any critic (theorem A)",
    value=infonce,
)

SYMMETRIC_INFONCE = Estimator(
    name="InfoNCE, both directions",
    formula=r"\tfrac12 (\hat I_{NCE}(S) + \hat I_{NCE}(S^\top))",
    direction="lower",
    optimum=f"{_LOG_RATIO} + c",
    cap=_log,
    variance="that of InfoNCE, or less",
    reference=("Radford et al., 2021", "https://arxiv.org/abs/2103.00020"),
    why="a mean of two lower bounds",
    value=symmetric_infonce,
)

NWJ = Estimator(
    name="NWJ",
    formula=r"m - e^{\ell - 1}",
    direction="lower",
    optimum=f"1 + {_LOG_RATIO}",
    cap=_none,
    variance=_EXPONENTIAL,
    reference=("Nguyen et al., 2010", "https://arxiv.org/abs/0809.0853"),
    why="both terms are unbiased, a lower bound in expectation for any critic",
    value=nwj,
)

DONSKER_VARADHAN = Estimator(
    name="Donsker-Varadhan",
    formula=r"m - \ell",
    direction="neither",
    optimum=f"{_LOG_RATIO} + c",
    cap=_none,
    variance="(e^I - 1)/N and more, as NWJ's, for many negatives",
    reference=("Donsker and Varadhan, 1983", "https://doi.org/10.1002/cpa.3160360204"),
    why="the log of a mean of samples is biased upwards; only its limit bounds",
    value=donsker_varadhan,
)

TUBA = Estimator(
    name="TUBA",
    formula=r"1 + \operatorname{mean}_i (s_{ii} - \log a(y_i)) - \operatorname{mean}_{i \ne j} e^{s_{ij}} / a(y_j)",
    direction="lower",
    optimum="log p(y|x) + c(y), log a(y) = log p(y) + c(y)",
    cap=_none,
    variance="as NWJ's",
    reference=_POOLE,
    why="a lower bound in expectation for any critic and any baseline of y alone",
    value=lambda scores, log_baseline: tuba(scores, log_baseline=log_baseline),
    arguments=ScoresAndBaseline,
)

FLO = Estimator(
    name="FLO",
    formula=r"1 + \operatorname{mean}_i (u_i - e^{u_i - s_{ii}} \operatorname{mean}_{j \ne i} e^{s_{ij}})",
    direction="lower",
    optimum=f"u = {_LOG_RATIO}, s the same up to c(x)",
    cap=_none,
    variance="grows with the ratio's, as NWJ's",
    reference=("Guo et al., 2022", "https://arxiv.org/abs/2107.01131"),
    why="nothing but means of samples, a lower bound in expectation for any critic and u",
    value=lambda scores, log_ratio: flo(scores, log_ratio=log_ratio),
    arguments=ScoresAndLogRatio,
)

JENSEN_SHANNON = Estimator(
    name="Jensen-Shannon, NWJ's value",
    formula=r"1 + m - e^{\ell}",
    direction="lower",
    optimum=_LOG_RATIO,
    cap=_none,
    variance="that of NWJ, at evaluation",
    reference=("Hjelm et al., 2019", "https://arxiv.org/abs/1808.06670"),
    why="the value is NWJ's, a lower bound in expectation for any critic",
    value=nwj_of_log_ratio,
    objective=lambda: jensen_shannon,
)


def mine_with(decay: float = 0.9) -> Estimator:
    """MINE with a moving average of its own.

    Arguments:
        decay: as in `contrastive.estimators.Mine`.
    """
    return Estimator(
        name="MINE",
        formula=r"m - \ell",
        direction="neither",
        optimum=f"{_LOG_RATIO} + c",
        cap=_none,
        variance="as Donsker-Varadhan's",
        reference=("Belghazi et al., 2018", "https://arxiv.org/abs/1801.04062"),
        why="the value is Donsker and Varadhan's; the corrected gradient does not make it a bound",
        value=donsker_varadhan,
        objective=lambda: Mine(decay),
    )


def smile_clipped(clip: float = 5.0) -> Estimator:
    """SMILE with a clip of one's own.

    Arguments:
        clip: as in `contrastive.estimators.smile`.
    """
    return Estimator(
        name="SMILE",
        formula=r"m - \log \operatorname{mean}_{i \ne j} e^{\max(-\tau, \min(\tau, s_{ij}))}",
        direction="neither",
        optimum=_LOG_RATIO,
        cap=_none,
        variance=r"of the mean of e^s at most (e^τ - e^-τ)²/(4N)",
        reference=_SONG,
        why="clipped negatives take less than their share, and it may read more than there is",
        value=lambda scores: smile(scores, clip=clip),
        objective=lambda: jensen_shannon,
    )


def interpolated_at(alpha: float) -> Estimator:
    """The bound between TUBA and InfoNCE.

    Arguments:
        alpha: as in `contrastive.estimators.interpolated`.
    """
    return Estimator(
        name=f"interpolated, alpha = {alpha:g}",
        formula=r"1 + \operatorname{mean}_{i \ne h} (s_{ii} - \log a_h(y_i)) "
        r"- \operatorname{mean}_{i \ne h} e^{s_{ih}} / a_h(y_h)",
        direction="lower",
        optimum="log p(y|x) + c(y), q(y) accordingly",
        cap=lambda pairs: 1 + math.log((pairs - 1) / alpha) if alpha else math.inf,
        variance="between NWJ's (alpha = 0) and InfoNCE's (alpha = 1)",
        reference=_POOLE,
        why="TUBA with a baseline that does not know the held-out pair, a lower bound in expectation for any critic",
        value=lambda scores, log_baseline: interpolated(scores, alpha=alpha, log_baseline=log_baseline),
        arguments=ScoresAndBaseline,
    )


def barber_agakov_with(entropy: float, *, known: bool = True) -> Estimator:
    """The bound of Barber and Agakov, of a y whose entropy is known.

    Arguments:
        entropy: h(Y) in nats, in the units of y as it is given. (Where `estimate_mi` standardises its columns, it
            counts the scales.)
        known: False where the entropy is itself an estimate: then nothing bounds.
    """
    return Estimator(
        name="Barber-Agakov",
        formula=r"h(Y) + \operatorname{mean}_i \log q(y_i | x_i)",
        direction="lower" if known else "neither",
        optimum="q = p(y|x)",
        cap=_none,
        variance="that of the mean log-density",
        reference=(
            "Barber and Agakov, 2003",
            "https://proceedings.neurips.cc/paper/2003/hash/a6ea8471c120fe8cc35a2954c9b9c595-Abstract.html",
        ),
        why="a lower bound for any model of y given x, where h(Y) is known"
        if known
        else "h(Y) is an estimate, and nothing bounds",
        value=lambda log_conditional: barber_agakov(log_conditional, entropy=entropy),
        arguments=OwnConditional,
        negatives=False,
    )


MINE = mine_with()
SMILE = smile_clipped()
INTERPOLATED = interpolated_at(0.01)

TRACTABLE_NCE = Estimator(
    name="tractable NCE",
    formula=r"\operatorname{mean}_i (P_{ii} - \log \operatorname{mean}_j e^{P_{ji}})",
    direction="lower",
    optimum="p(y|x) itself",
    cap=_log,
    variance="that of InfoNCE",
    reference=_POOLE,
    why="InfoNCE over the anchors; a learnt conditional is a critic as any other",
    value=tractable_nce,
    arguments=Conditional,
)


def _likelihood(log_conditional: Tensor) -> Tensor:
    return log_conditional.diagonal().mean()


LEAVE_ONE_OUT_UPPER = Estimator(
    name="leave one out (minibatch upper bound)",
    formula=r"\operatorname{mean}_i (P_{ii} - \log \operatorname{mean}_{j \ne i} e^{P_{ji}})",
    direction="upper",
    optimum="p(y|x) itself",
    cap=_none,
    variance="large where no other pair is near",
    reference=_POOLE,
    why="the others' mixture is a density that does not know the pair, an upper bound for the exact p(y|x)",
    value=leave_one_out_upper,
    arguments=Conditional,
    objective=lambda: _likelihood,
    exact=True,
)

CLUB = Estimator(
    name="CLUB",
    formula=r"\operatorname{mean}_i P_{ii} - \operatorname{mean}_{i \ne j} P_{ij}",
    direction="upper",
    optimum="p(y|x) itself, and then off by D(p(x)p(y) || p(x,y))",
    cap=_none,
    variance="small: no exponentials",
    reference=("Cheng et al., 2020", "https://arxiv.org/abs/2006.12013"),
    why="I + D(p(x)p(y) || p(x,y)) for the exact p(y|x)",
    value=club,
    arguments=Conditional,
    objective=lambda: _likelihood,
    exact=True,
)

VARIATIONAL_UPPER = Estimator(
    name="variational upper bound",
    formula=r"\operatorname{mean}_i (\log p(y_i | x_i) - \log m(y_i))",
    direction="upper",
    optimum="m = p(y)",
    cap=_none,
    variance="small: no exponentials",
    reference=("Alemi et al., 2017", "https://arxiv.org/abs/1612.00410"),
    why="I + D(p(y) || m) for the exact p(y|x) and any density m",
    value=variational_upper,
    arguments=OwnConditionalAndNormal,
    objective=lambda: lambda log_conditional, log_marginal: log_conditional.mean(),
    exact=True,
    negatives=False,
)

KSG = Estimator(
    name="KSG",
    formula=r"\psi(k) + \psi(n) - \operatorname{mean}_i (\psi(n^x_i + 1) + \psi(n^y_i + 1))",
    direction="neither",
    optimum="no critic",
    cap=_none,
    variance="small",
    reference=("Kraskov et al., 2004", "https://arxiv.org/abs/cond-mat/0305641"),
    why="densities are taken as constant among neighbours, far too low in many dimensions",
    value=lambda x, y: torch.tensor(ksg(x, y), dtype=torch.float64),
    arguments=Pairs,
)

#: All that are trained from samples alone. (The marginal of `VARIATIONAL_UPPER` is a choice, the standard normal.)
ESTIMATORS = (
    INFONCE,
    SYMMETRIC_INFONCE,
    NWJ,
    DONSKER_VARADHAN,
    MINE,
    TUBA,
    INTERPOLATED,
    FLO,
    JENSEN_SHANNON,
    SMILE,
    TRACTABLE_NCE,
    LEAVE_ONE_OUT_UPPER,
    CLUB,
)
