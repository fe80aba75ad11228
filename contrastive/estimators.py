r"""Estimators of mutual information as functions of a score matrix, in nats, differentiable in it.

Two averages make nearly all of them: the positives' mean and the log-mean-exp of the negatives,

.. math::
    m = \operatorname{mean}_i s_{i,t(i)}, \qquad
    \ell = \log \operatorname{mean}_{i,\, j \ne t(i)} e^{s_{ij}}

Positives are draws of the joint law, negatives of the product of its marginals; a claim of a bound is on the
expectation over independent pairs, for a critic that has not seen them. `contrastive.catalogue` says of each what it
claims, and `contrastive.estimation` trains critics with them.

>>> import torch
>>> scores = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
>>> donsker_varadhan(scores)
tensor(2.)
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from contrastive.objectives import kpair_loss
from contrastive.rows import softplus
from contrastive.scores import (
    as_float32,
    check_any_positive,
    check_positives,
    check_rows,
    check_square,
    check_values,
    eager_on_cpu,
    negatives,
    target_scores,
    without_self,
)

__all__ = [
    "Mine",
    "barber_agakov",
    "club",
    "donsker_varadhan",
    "flo",
    "infonce",
    "interpolated",
    "jensen_shannon",
    "leave_one_out_upper",
    "nwj",
    "nwj_of_log_ratio",
    "smile",
    "symmetric_infonce",
    "tractable_nce",
    "tuba",
    "variational_upper",
]


def donsker_varadhan(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | Bool[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, ""]:
    r"""Computes the estimate of Donsker and Varadhan, which MINE reports too.

    .. math::
        \hat I_{DV} = m - \ell

    The limit of infinite samples is a lower bound; the estimate is none, for the log stands outside the mean of the
    samples (Jensen): with the exact critic and 64 pairs of 10 nats it reads 11.3. It has no cap, and at high
    information the variance of `nwj`. It does not change when a constant is added to the critic, whose optimum is
    :math:`\log p(y|x)/p(y) + c`.

    Arguments:
        scores: :math:`s_{ij}`; absent candidates (:math:`-\infty`) and rows without any count as nothing.
        targets: as in `contrastive.kpair_loss`; or a mask, where an anchor has several positives.

    Returns:
        The estimate.

    Raises:
        ValueError: as `contrastive.kpair_loss`, and for a matrix without negatives or a mask without positives.

    Example:
        >>> donsker_varadhan(torch.zeros(3, 3))
        tensor(0.)

    References:
        | Asymptotic Evaluation of Certain Markov Process Expectations for Large Time, IV (Donsker and Varadhan, 1983)
        | https://doi.org/10.1002/cpa.3160360204
    """
    cells = _cells("donsker_varadhan", scores, targets)
    return cells.checked(cells.joint() - cells.log_marginal())


class Mine(nn.Module):
    r"""Creates the objective of MINE: Donsker and Varadhan's with the bias of its gradient corrected.

    .. math::
        \nabla m - \frac{\operatorname{mean}_{i,\, j \ne t(i)} e^{s_{ij}} \nabla s_{ij}}{a}, \qquad
        a \leftarrow \beta a + (1 - \beta) e^{\ell}

    A batch's own :math:`e^\ell` in the denominator biases the gradient; the moving average a does so less. It is kept
    as a logarithm, starts with the first batch, moves in training mode only, and is saved with the model. Report
    `donsker_varadhan`: no bound, no cap, and the variance of `nwj`.

    Arguments:
        decay: :math:`\beta`, in [0, 1); 0 gives the gradient of `donsker_varadhan`.

    Raises:
        ValueError: for a decay outside [0, 1).

    Example:
        >>> objective = Mine(decay=0.9)
        >>> objective(torch.zeros(3, 3))  # to be maximised; its value means nothing
        tensor(-1.)

    References:
        | Mutual Information Neural Estimation (Belghazi et al., 2018)
        | https://arxiv.org/abs/1801.04062
    """

    log_average: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"Mine: decay is {decay}, expected a number in [0, 1)")
        self.decay = decay
        # NaN: no batch yet. Starting from 0 would divide the first gradients by a tenth of what they should be.
        self.register_buffer("log_average", torch.tensor(math.nan))

    def forward(
        self,
        scores: Float[Tensor, "anchors candidates"],
        targets: Int[Tensor, " anchors"] | Bool[Tensor, "anchors candidates"] | None = None,
    ) -> Float[Tensor, ""]:
        r"""Moves the average (in training) and computes :math:`m - e^{\ell} / a`, to be maximised, as above.

        Arguments:
            scores: as in `donsker_varadhan`.
            targets: as in `donsker_varadhan`.

        Returns:
            What has the corrected gradient; no estimate: `donsker_varadhan` of the trained critic is.

        Raises:
            ValueError: as `donsker_varadhan`; the average then stays what it was.
        """
        cells = _cells("Mine", scores, targets)
        log_marginal = cells.log_marginal()
        now, before = log_marginal.detach(), self.log_average.to(log_marginal)
        kept = math.log(self.decay) if self.decay else -math.inf
        moved = torch.logaddexp(kept + before, math.log1p(-self.decay) + now)
        average = torch.where(torch.isnan(before), now, moved)
        value = cells.checked(cells.joint() - torch.exp(log_marginal - average))
        if self.training:  # not by a batch that was refused, nor that has no number: the average would never recover
            self.log_average.copy_(torch.where(torch.isfinite(now), average, before))
        return value

    def extra_repr(self) -> str:  # noqa: D102
        return f"decay={self.decay}"


def nwj(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | Bool[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, ""]:
    r"""Computes the lower bound of Nguyen, Wainwright and Jordan (f-GAN's KL, MINE-f).

    .. math::
        \hat I_{NWJ} = m - e^{\ell - 1}

    Both terms are unbiased, so its expectation is a lower bound for every critic, without a cap; the optimum is
    :math:`1 + \log p(y|x)/p(y)`. With N independent negatives the second term has the variance
    :math:`(E_q r^2 - 1)/N \ge (e^I - 1)/N`, for Gaussians :math:`(e^{2I} - 1)/N`.

    Arguments:
        scores: as in `donsker_varadhan`.
        targets: as in `donsker_varadhan`.

    Returns:
        The estimate; :math:`-\infty` where the exponential leaves the floats.

    Raises:
        ValueError: as `donsker_varadhan`.

    Example:
        >>> nwj(torch.ones(3, 3))
        tensor(0.)

    References:
        | Estimating Divergence Functionals and the Likelihood Ratio by Convex Risk Minimization (Nguyen et al., 2010)
        | https://arxiv.org/abs/0809.0853
        | f-GAN: Training Generative Neural Samplers using Variational Divergence Minimization (Nowozin et al., 2016)
        | https://arxiv.org/abs/1606.00709
    """
    cells = _cells("nwj", scores, targets)
    return cells.checked(cells.joint() - torch.exp(cells.log_marginal() - 1))


def nwj_of_log_ratio(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | Bool[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, ""]:
    r"""Computes NWJ of a critic whose optimum is the log-ratio itself: what to report of `jensen_shannon`'s.

    .. math::
        \hat I = 1 + m - e^{\ell}

    The same as ``nwj(scores + 1)``: a lower bound without a cap, of the same variance. To evaluate a critic that
    estimates :math:`\log p(y|x)/p(y)` by `nwj` instead costs :math:`1/e` at its optimum.

    Arguments:
        scores: as in `donsker_varadhan`.
        targets: as in `donsker_varadhan`.

    Returns:
        The estimate; :math:`-\infty` where the exponential leaves the floats.

    Raises:
        ValueError: as `donsker_varadhan`.

    Example:
        >>> nwj_of_log_ratio(torch.zeros(3, 3))
        tensor(0.)

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
    """
    cells = _cells("nwj_of_log_ratio", scores, targets)
    return cells.checked(1 + cells.joint() - torch.exp(cells.log_marginal()))


def tuba(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    log_baseline: Float[Tensor, " candidates"],
) -> Float[Tensor, ""]:
    r"""Computes the tractable unnormalised lower bound of Barber and Agakov's kind.

    .. math::
        \hat I_{TUBA} = 1 + \operatorname{mean}_i \bigl(s_{i,t(i)} - \log a(y_{t(i)})\bigr)
            - \operatorname{mean}_{i,\, j \ne t(i)} e^{s_{ij}} / a(y_j)

    A lower bound for every critic and every :math:`a > 0` that reads the candidate alone; the optimum is :math:`s =
    \log p(y|x)` up to a function of y, with a the mean of :math:`e^s` over x. Constant :math:`a = e` is `nwj`, whose
    variance it has, without a cap as well.

    Arguments:
        scores: as in `donsker_varadhan`.
        targets: as in `contrastive.kpair_loss`.
        log_baseline: :math:`\log a(y_j)` of every candidate. (For one that reads the anchor, pass scores transposed.)

    Returns:
        The estimate; :math:`-\infty` where the exponential leaves the floats.

    Raises:
        ValueError: as `donsker_varadhan`, and for a baseline of another length or that is not finite.

    Example:
        >>> tuba(torch.ones(3, 3), log_baseline=torch.ones(3))
        tensor(0.)

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
    """
    _check_length("tuba", "log_baseline", log_baseline, scores, dim=1)
    cells = _cells("tuba", scores - log_baseline, targets)
    return cells.checked(1 + cells.joint() - torch.exp(cells.log_marginal()))


def interpolated(
    scores: Float[Tensor, "pairs pairs"], *, alpha: float, log_baseline: Float[Tensor, " pairs"]
) -> Float[Tensor, ""]:
    r"""Computes the bound between TUBA and InfoNCE: less bias than the one, less variance than the other.

    .. math::
        \hat I_\alpha = 1 + \operatorname{mean}_{i \ne h} \log \frac{e^{s_{ii}}}{a_h(y_i)}
            - \operatorname{mean}_{i \ne h} \frac{e^{s_{ih}}}{a_h(y_h)}, \qquad
        a_h(y) = \alpha \operatorname{mean}_{l \ne h} e^{f(x_l, y)} + (1 - \alpha)\, q(y)

    Every pair h in turn is held out, so that its candidate is independent of all anchors that make the baseline.
    :math:`\alpha = 0` is `tuba` with q, :math:`\alpha = 1` is InfoNCE over the anchors of the other pairs. A lower
    bound in expectation for every critic and q; never above :math:`1 + \log((K - 1)/\alpha)`.

    Arguments:
        scores: :math:`s_{ij} = f(x_i, y_j)`, the positives on the diagonal.
        alpha: in [0, 1].
        log_baseline: :math:`\log q(y_j)` of every candidate.

    Returns:
        The estimate.

    Raises:
        ValueError: for a matrix that is not square, has fewer than two rows or an absent candidate, for values that are
            not finite, an alpha outside [0, 1] and a baseline of another length or that is not finite.

    Example:
        >>> interpolated(5 * torch.eye(3), alpha=1.0, log_baseline=torch.zeros(3))  # at most log 2
        tensor(0.6864)

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"interpolated: alpha is {alpha}, expected a number in [0, 1]")
    scores = _square("interpolated", scores)
    _check_length("interpolated", "log_baseline", log_baseline, scores, dim=1)
    others = _without_one(scores) - math.log(len(scores) - 1)  # [h, j]: the anchors but h, against candidate j
    if alpha == 1:
        log_a = others
    elif alpha == 0:
        log_a = log_baseline.expand_as(scores)
    else:
        log_a = torch.logaddexp(math.log(alpha) + others, math.log1p(-alpha) + log_baseline.to(scores))
    joint = _off_diagonal(scores.diagonal() - log_a).mean()
    return 1 + joint - torch.exp(_log_mean_off_diagonal(scores - log_a.diagonal()))


def infonce(
    scores: Float[Tensor, "anchors candidates"], targets: Int[Tensor, " anchors"] | None = None
) -> Float[Tensor, ""]:
    r"""Computes InfoNCE, :math:`\log K` less the K-pair loss.

    .. math::
        \hat I_{NCE} = \log K + \operatorname{mean}_i \Bigl(s_{i,t(i)} - \log \sum_j e^{s_{ij}}\Bigr)

    A lower bound in expectation for every critic, of little variance, and never above :math:`\log K`. Rows normalise
    over candidates, so the optimum is :math:`\log p(y|x)/p(y) + c(x)`, not :math:`\log p(y|x)`; for the direction that
    normalises over anchors, where :math:`\log p(y|x) + c(y)` is optimal, pass ``scores.T``. `contrastive.infonce_bound`
    takes miners into account.

    Arguments:
        scores: as in `donsker_varadhan`; K counts what is present.
        targets: as in `contrastive.kpair_loss`.

    Returns:
        The estimate.

    Raises:
        ValueError: as `contrastive.kpair_loss`, and for a matrix without any candidate.

    Example:
        >>> infonce(100 * torch.eye(8))  # log 8
        tensor(2.0794)

    References:
        | Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018)
        | https://arxiv.org/abs/1807.03748
    """
    return _infonce("infonce", scores, targets)


def symmetric_infonce(scores: Float[Tensor, "pairs pairs"]) -> Float[Tensor, ""]:
    r"""Computes the mean of InfoNCE's two directions (CLIP, SimCLR).

    .. math::
        \hat I = \tfrac12 \bigl(\hat I_{NCE}(S) + \hat I_{NCE}(S^\top)\bigr)

    A mean of lower bounds is one, at most :math:`\log K` and of little variance; the larger of the two directions is
    none. The optimum is :math:`\log p(y|x)/p(y) + c`.

    Arguments:
        scores: the positives on the diagonal.

    Returns:
        The estimate.

    Raises:
        ValueError: as `infonce`, and for a matrix that is not square.

    Example:
        >>> symmetric_infonce(torch.zeros(4, 4))
        tensor(0.)

    References:
        | Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021)
        | https://arxiv.org/abs/2103.00020
    """
    check_square("symmetric_infonce", scores)
    return (_infonce("symmetric_infonce", scores, None) + _infonce("symmetric_infonce", scores.T, None)) / 2


def jensen_shannon(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | Bool[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, ""]:
    r"""Computes the objective of the Jensen-Shannon estimators (f-GAN, Deep InfoMax): a classifier of pairs.

    .. math::
        J = -\operatorname{mean}_i \log(1 + e^{-s_{i,t(i)}})
            - \operatorname{mean}_{i,\, j \ne t(i)} \log(1 + e^{s_{ij}})

    Its optimum is :math:`\log p(y|x)/p(y)`, its value no information and no bound, at most 0, of little variance:
    report `nwj_of_log_ratio` of the trained critic, a lower bound (the variance is back then), or `smile`.

    Arguments:
        scores: as in `donsker_varadhan`.
        targets: as in `donsker_varadhan`.

    Returns:
        The objective, to be maximised; at most 0.

    Raises:
        ValueError: as `donsker_varadhan`.

    Example:
        >>> jensen_shannon(torch.zeros(3, 3))  # a critic that knows nothing: -2 log 2
        tensor(-1.3863)

    References:
        | f-GAN: Training Generative Neural Samplers using Variational Divergence Minimization (Nowozin et al., 2016)
        | https://arxiv.org/abs/1606.00709
        | Learning Deep Representations by Mutual Information Estimation and Maximization (Hjelm et al., 2019)
        | https://arxiv.org/abs/1808.06670
    """
    cells = _cells("jensen_shannon", scores, targets)
    own = softplus(-cells.own).masked_fill(~cells.held, 0.0).sum() / cells.held.sum()
    return cells.checked(-own - softplus(cells.others).sum() / cells.count)


def smile(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | Bool[Tensor, "anchors candidates"] | None = None,
    *,
    clip: float = 5.0,
) -> Float[Tensor, ""]:
    r"""Computes SMILE: Donsker and Varadhan's estimate with clipped negatives, for critics of `jensen_shannon`.

    .. math::
        \hat I_\tau = m - \log \operatorname{mean}_{i,\, j \ne t(i)} e^{\max(-\tau, \min(\tau, s_{ij}))}

    Little variance, no cap, and no bound: with the exact critic, 64 pairs and clip 5 it reads 12.1 at 10 nats. The mean
    of N clipped exponentials has a variance of at most :math:`(e^\tau - e^{-\tau})^2 / 4N`. Positives are not clipped.
    Infinite :math:`\tau` is `donsker_varadhan`.

    Arguments:
        scores: as in `donsker_varadhan`; the critic's optimum is :math:`\log p(y|x)/p(y)`.
        targets: as in `donsker_varadhan`.
        clip: :math:`\tau`.

    Returns:
        The estimate.

    Raises:
        ValueError: as `donsker_varadhan`, and for a clip that is not positive.

    Example:
        >>> smile(torch.full((3, 3), -9.0).fill_diagonal_(9.0), clip=1.0)
        tensor(10.)

    References:
        | Understanding the Limitations of Variational Mutual Information Estimators (Song and Ermon, 2020)
        | https://arxiv.org/abs/1910.06222
    """
    if not clip > 0:
        raise ValueError(f"smile: clip is {clip}, expected a positive number")
    cells = _cells("smile", scores, targets)
    return cells.checked(cells.joint() - cells.log_marginal(clip))


def flo(scores: Float[Tensor, "pairs pairs"], *, log_ratio: Float[Tensor, " pairs"]) -> Float[Tensor, ""]:
    r"""Computes the Fenchel-Legendre bound: the log of `infonce`'s denominator is replaced by a learnt number.

    .. math::
        \hat I_{FLO} = 1 + \operatorname{mean}_i
            \Bigl(u_i - e^{u_i - s_{ii}} \operatorname{mean}_{j \ne i} e^{s_{ij}}\Bigr)

    Nothing but means of samples: a lower bound in expectation for every critic and u, with any number of negatives and
    without a cap, of `nwj`'s variance. The optimum is :math:`u = \log p(y|x)/p(y)`, s the same up to a function of x.
    The mean of u alone, which some report, is no bound.

    Arguments:
        scores: the positives on the diagonal.
        log_ratio: :math:`u_i = u(x_i, y_i)`.

    Returns:
        The estimate; :math:`-\infty` where the exponential leaves the floats.

    Raises:
        ValueError: for a matrix that is not square, has fewer than two rows or an absent candidate, for values that are
            not finite, and a log-ratio of another length or that is not finite.

    Example:
        >>> flo(torch.zeros(3, 3), log_ratio=torch.zeros(3))
        tensor(0.)

    References:
        | Tight Mutual Information Estimation With Contrastive Fenchel-Legendre Optimization (Guo et al., 2022)
        | https://arxiv.org/abs/2107.01131
    """
    scores = _square("flo", scores)
    _check_length("flo", "log_ratio", log_ratio, scores, dim=0)
    u = log_ratio.to(scores)
    rows = torch.logsumexp(without_self(scores), 1) - math.log(len(scores) - 1)
    return 1 + (u - torch.exp(u - scores.diagonal() + rows)).mean()


def barber_agakov(log_conditional: Float[Tensor, " pairs"], *, entropy: float) -> Float[Tensor, ""]:
    r"""Computes the bound of Barber and Agakov: a model of y given x, and the entropy of y.

    .. math::
        \hat I_{BA} = h(Y) + \operatorname{mean}_i \log q(y_i | x_i)

    A lower bound for every q, tight at :math:`q = p(y|x)`, without a cap; its variance is that of a mean log-density.
    The entropy that goes with :math:`q(y|x)` is that of **y**; where it is unknown the mean alone can be maximised, but
    is no information. With an estimated entropy nothing bounds.

    Arguments:
        log_conditional: :math:`\log q(y_i|x_i)` of every pair.
        entropy: h(Y), in nats; differential where y is continuous.

    Returns:
        The estimate.

    Raises:
        ValueError: for log-conditionals that are no vector of at least one floating-point number, that hold NaN or
            +inf, and for an entropy that is not finite.

    Example:
        >>> barber_agakov(torch.tensor([-0.5, -1.5]), entropy=3.0)
        tensor(2.)

    References:
        | The IM Algorithm: A Variational Approach to Information Maximization (Barber and Agakov, 2003)
        | https://proceedings.neurips.cc/paper/2003/hash/a6ea8471c120fe8cc35a2954c9b9c595-Abstract.html
    """
    if not math.isfinite(entropy):
        raise ValueError(f"barber_agakov: entropy is {entropy}, expected a finite number")
    return entropy + _vector("barber_agakov", "log_conditional", log_conditional).mean()


def variational_upper(
    log_conditional: Float[Tensor, " pairs"], log_marginal: Float[Tensor, " pairs"]
) -> Float[Tensor, ""]:
    r"""Computes the variational upper bound: a known conditional, and any model of the marginal.

    .. math::
        \hat I_{VUB} = \operatorname{mean}_i \bigl(\log p(y_i | x_i) - \log m(y_i)\bigr)

    An upper bound for every density m, tight at :math:`m = p(y)`, of little variance, without a cap; with a standard
    normal m it is the rate of a variational auto-encoder. With a learnt conditional it is neither.
    `leave_one_out_upper` takes m from the batch.

    Arguments:
        log_conditional: :math:`\log p(y_i|x_i)` of every pair, exact.
        log_marginal: :math:`\log m(y_i)`.

    Returns:
        The estimate.

    Raises:
        ValueError: for vectors of different lengths, empty or not of floating-point numbers, that hold NaN or +inf.

    Example:
        >>> variational_upper(torch.tensor([-0.5, -1.5]), torch.tensor([-3.0, -3.0]))
        tensor(2.)

    References:
        | Deep Variational Information Bottleneck (Alemi et al., 2017)
        | https://arxiv.org/abs/1612.00410
    """
    p = _vector("variational_upper", "log_conditional", log_conditional)
    m = _vector("variational_upper", "log_marginal", log_marginal)
    if p.shape != m.shape:
        raise ValueError(
            f"variational_upper: log_marginal has shape {tuple(m.shape)}, expected {tuple(p.shape)} as log_conditional"
        )
    return (p - m).mean()


def tractable_nce(log_conditional: Float[Tensor, "pairs pairs"]) -> Float[Tensor, ""]:
    r"""Computes InfoNCE with a known conditional as critic: the marginal is the batch's mixture, the own pair included.

    .. math::
        \hat I_{TNCE} = \operatorname{mean}_i \Bigl(\log p(y_i|x_i) - \log \operatorname{mean}_j p(y_i|x_j)\Bigr)

    It normalises over **anchors**, ``infonce(log_conditional.T)``: a lower bound of little variance, at most
    :math:`\log K`. Leaving the own pair out turns it into an upper one, `leave_one_out_upper`; the two enclose I.

    Arguments:
        log_conditional: :math:`P_{ij} = \log p(y_j|x_i)`; :math:`-\infty`, a probability of 0, counts as one, but for
            what was drawn.

    Returns:
        The estimate.

    Raises:
        ValueError: for a matrix that is not square or empty, values that are NaN or +inf, and a pair of probability 0.

    Example:
        >>> tractable_nce(torch.zeros(4, 4))
        tensor(0.)

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
    """
    check_square("tractable_nce", log_conditional)
    scores, targets, _ = check_rows("tractable_nce", log_conditional.T)
    own = scores.detach().diagonal()
    if not len(own):
        raise ValueError("tractable_nce: scores of shape (0, 0) hold no candidate")
    if eager_on_cpu(own) and not bool(torch.isfinite(own).all()):
        pair = int((~torch.isfinite(own)).nonzero()[0])
        raise ValueError(
            f"tractable_nce: pair {pair} has the log-probability {float(own[pair])}, expected a finite one"
        )
    # Not `infonce`, which leaves out what is absent: a probability of 0 is one.
    return math.log(len(scores)) - kpair_loss(scores, targets).mean()


def leave_one_out_upper(log_conditional: Float[Tensor, "pairs pairs"]) -> Float[Tensor, ""]:
    r"""Computes the minibatch upper bound: a known conditional, the marginal from the other pairs of the batch.

    .. math::
        \hat I_{L1O} = \operatorname{mean}_i \Bigl(\log p(y_i|x_i) - \log \operatorname{mean}_{j \ne i} p(y_i|x_j)\Bigr)

    The mixture of the others is a density of :math:`y_i` that does not know its pair, so this is `variational_upper`
    with a random m: an upper bound without a cap, of large variance where no other pair is near. It runs over anchors
    for each candidate; over candidates for each anchor (as in torch-mist) it bounds nothing. With a learnt conditional
    it is neither.

    Arguments:
        log_conditional: :math:`P_{ij} = \log p(y_j|x_i)`, exact.

    Returns:
        The estimate.

    Raises:
        ValueError: for a matrix that is not square, has fewer than two rows or an absent candidate, and for values that
            are not finite.

    Example:
        >>> leave_one_out_upper(torch.zeros(4, 4))
        tensor(0.)

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
    """
    p = _square("leave_one_out_upper", log_conditional)
    columns = torch.logsumexp(without_self(p), 0) - math.log(len(p) - 1)
    return (p.diagonal() - columns).mean()


def club(log_conditional: Float[Tensor, "pairs pairs"]) -> Float[Tensor, ""]:
    r"""Computes CLUB, the contrastive log-ratio upper bound.

    .. math::
        \hat I_{CLUB} = \operatorname{mean}_i P_{ii} - \operatorname{mean}_{i \ne j} P_{ij}

    With the exact conditional its expectation is :math:`I + D(p(x)p(y) \Vert p(x,y))`, an upper bound without a cap, of
    large bias (for correlated Gaussians :math:`d \rho^2 / (1 - \rho^2)`, 4.43 at 2 nats) and little variance: for
    minimising information, not for measuring it. With a learnt q it is :math:`I + D(p(x)p(y) \Vert q) - D(p(x,y) \Vert
    q)`, q standing for :math:`p(x) q(y|x)`: an upper bound only where the first divergence is the larger one. (The
    paper averages all pairs, the own too, which takes :math:`1/K` off.)

    Arguments:
        log_conditional: :math:`P_{ij} = \log p(y_j|x_i)`.

    Returns:
        The estimate.

    Raises:
        ValueError: as `leave_one_out_upper`.

    Example:
        >>> club(torch.eye(3))
        tensor(1.)

    References:
        | CLUB: A Contrastive Log-ratio Upper Bound of Mutual Information (Cheng et al., 2020)
        | https://arxiv.org/abs/2006.12013
    """
    p = _square("club", log_conditional)
    return p.diagonal().mean() - _off_diagonal(p).mean()


@dataclass(frozen=True)
class _Cells:
    """Positives and negatives of a matrix, each by itself; what is absent is marked."""

    function: str
    scores: Tensor
    targets: Tensor | None
    own: Float[Tensor, " positives"]
    held: Bool[Tensor, " positives"]
    others: Float[Tensor, "anchors candidates"]
    count: Int[Tensor, ""]

    def joint(self) -> Tensor:
        """The positives' mean; padding is no sample."""
        return self.own.masked_fill(~self.held, 0.0).sum() / self.held.sum()

    def log_marginal(self, clip: float | None = None) -> Tensor:
        """The log-mean-exp of the negatives, clipped first where asked; an absent one stays absent."""
        others = self.others
        if clip is not None:
            others = others.clamp(-clip, clip).masked_fill(others == -torch.inf, -torch.inf)
        return torch.logsumexp(others.flatten(), 0) - self.count.to(others.dtype).log()

    def checked(self, value: Tensor) -> Tensor:
        """The value, unless broken scores are why it is not finite: the matrix is read again only then."""
        if self.targets is not None and eager_on_cpu(value) and not bool(torch.isfinite(value.detach())):
            check_values(self.function, self.scores, self.targets)
        return value


def _cells(function: str, scores: Tensor, targets: Tensor | None) -> _Cells:
    if targets is not None and targets.dtype == torch.bool:
        return _cells_of_several(function, scores, targets)
    scores, targets, _ = check_rows(function, scores, targets)
    own = target_scores(scores, targets).squeeze(1)
    kept = negatives(scores, targets)
    cells = _Cells(
        function=function,
        scores=scores.detach(),
        targets=targets,
        own=own,
        held=own != -torch.inf,
        others=scores.masked_fill(~kept, -torch.inf),
        count=kept.sum(),
    )
    if eager_on_cpu(scores):
        if not bool(cells.held.all()):
            check_values(function, cells.scores, targets)  # padding, or a positive that is missing
        _refuse_no_negative(cells)
    return cells


def _cells_of_several(function: str, scores: Tensor, targets: Tensor) -> _Cells:
    """As `_cells`; every positive of every anchor counts the same. Values are checked at once."""
    scores, positive, kept, _ = check_positives(function, scores, targets)
    check_any_positive(function, positive, kept)
    own = scores[positive]
    cells = _Cells(
        function=function,
        scores=scores.detach(),
        targets=None,
        own=own,
        held=own != -torch.inf,
        others=scores.masked_fill(~kept, -torch.inf),
        count=kept.sum(),
    )
    if eager_on_cpu(scores):
        _refuse_no_negative(cells)
    return cells


def _refuse_no_negative(cells: _Cells) -> None:
    if not bool(cells.count):
        raise ValueError(f"{cells.function}: scores of shape {tuple(cells.scores.shape)} hold no negative")


def _infonce(function: str, scores: Tensor, targets: Tensor | None) -> Tensor:
    scores, targets, _ = check_rows(function, scores, targets)
    present = (scores != -torch.inf).sum(1)
    held = present > 0
    if eager_on_cpu(scores) and not bool(held.any()):
        raise ValueError(f"{function}: scores of shape {tuple(scores.shape)} hold no candidate")
    nats = present.clamp_min(1).to(scores.dtype).log() - kpair_loss(scores, targets)
    return nats.sum() / held.sum()  # padding has a loss of 0 and log 1


def _square(function: str, scores: Tensor) -> Tensor:
    """A square matrix without gaps, of at least two rows, in at least float32."""
    check_square(function, scores)
    if len(scores) < 2:
        raise ValueError(f"{function}: scores of shape {tuple(scores.shape)} hold no negative")
    if eager_on_cpu(scores) and not bool(torch.isfinite(scores.detach()).all()):
        row = int((~torch.isfinite(scores)).any(1).nonzero()[0])
        raise ValueError(f"{function}: row {row} holds a score that is not finite, expected finite ones")
    return as_float32(scores)


def _vector(function: str, name: str, values: Tensor) -> Tensor:
    if values.ndim != 1 or not values.is_floating_point() or not len(values):
        raise ValueError(
            f"{function}: {name} has shape {tuple(values.shape)} and dtype {values.dtype}, "
            "expected [pairs], at least one, of a floating-point dtype"
        )
    if eager_on_cpu(values) and bool((values.isnan() | (values == torch.inf)).any()):
        raise ValueError(f"{function}: {name} holds NaN or +inf")
    return as_float32(values)


def _check_length(function: str, name: str, values: Tensor, scores: Tensor, *, dim: int) -> None:
    if scores.ndim != 2 or values.shape != (scores.shape[dim],):  # a length of 1 would broadcast in silence
        raise ValueError(
            f"{function}: {name} has shape {tuple(values.shape)} beside scores of shape {tuple(scores.shape)}, "
            f"expected one for each {'candidate' if dim else 'anchor'}"
        )
    if eager_on_cpu(values) and not bool(torch.isfinite(values.detach()).all()):
        raise ValueError(f"{function}: {name} holds a value that is not finite")


def _log_mean_off_diagonal(scores: Tensor) -> Tensor:
    return torch.logsumexp(without_self(scores).flatten(), 0) - math.log(len(scores) * (len(scores) - 1))


def _off_diagonal(scores: Tensor) -> Tensor:
    """Row by row what is not on the diagonal: [K, K - 1] without a copy of a mask."""
    n = len(scores)
    return scores.flatten()[1:].view(n - 1, n + 1)[:, :-1]


def _without_one(scores: Tensor) -> Tensor:
    """Column by column the logsumexp without row h, [h, j]: in the time of one, and without losing the digits.

    Taking the largest away from the sum would leave its rounding; that one's remainder is summed by itself.
    """
    largest = scores.detach().argmax(0, keepdim=True)
    rest = torch.logsumexp(scores.scatter(0, largest, -torch.inf), 0)
    top = scores.gather(0, largest).squeeze(0)
    whole = torch.logaddexp(rest, top)
    is_largest = torch.zeros_like(scores, dtype=torch.bool).scatter(0, largest, True)
    share = (scores - whole).masked_fill(is_largest, -torch.inf)
    return torch.where(is_largest, rest, whole + torch.log1p(-share.exp()))
