r"""The multi-class K-pair loss and its relatives: functions of a score matrix, one value per anchor.

The kernel of the library, with :math:`t(i)` the column of anchor i's positive:

.. math::
    L_i = \log\Bigl(1 + \sum_{j \ne t(i)} w_{ij} e^{s_{ij} - s_{i,t(i)}}\Bigr)

With :math:`w = 1` and K candidates, :math:`\log K - \frac1n \sum_i L_i` is InfoNCE, exactly.

>>> import torch
>>> scores = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
>>> kpair_loss(scores)
tensor([0.1269, 0.1269])
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrastive.rows import (
    differences,
    largest,
    logsumexp_or,
    refuse_infinite,
    refuse_undefined,
    softplus,
    without_padding,
)
from contrastive.scores import (
    as_float32,
    check_any_positive,
    check_positives,
    check_rows,
    check_square,
    partners,
    target_scores,
    without_self,
)

__all__ = [
    "additive_margin_loss",
    "decoupled_loss",
    "each_positive_loss",
    "kpair_loss",
    "ntxent_loss",
    "pairwise_loss",
    "supcon_loss",
    "symmetric_loss",
]


def kpair_loss(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, " anchors"]:
    r"""Computes the weighted multi-class K-pair (N-pair) loss of every anchor.

    .. math::
        L_i = \log \sum_j w_{ij} e^{s_{ij} - s_{i,t(i)}}

    With log-weights of 0 this is the cross-entropy over candidates (InfoNCE, NT-Xent, CLIP); with
    extra columns it is MoCo, with a miner's log-weights hard-negative mining, with a constant
    log-weight m on the negatives an additive margin, with K = 2 the logistic triplet loss.

    Arguments:
        scores: :math:`s_{ij}` of anchor i and candidate j, temperature applied; an absent candidate
            is :math:`-\infty`. Half precision is computed in float32.
        targets: column of each anchor's positive; None means column i for anchor i.
        log_weights: :math:`\log w_{ij}`; None means no mining. At the target 0, unless a known proposal is undone
            (`miners.importance`, `miners.PoolProposal`): its weight then stands in the sum too. Gradients flow
            through them: see `miners.detached`.

    Returns:
        The loss of each anchor, in nats. A row without any candidate (all :math:`-\infty`) is
        padding and gives 0 with gradient 0; so does a row with nothing but its positive, of weight 1.

    Raises:
        ValueError: for shapes and dtypes that do not fit, an absent target in a row that has other
            candidates, a NaN or +inf score (values are checked in eager mode on the CPU).

    Example:
        >>> scores = torch.tensor([[1.0, 0.0, -torch.inf], [0.0, 3.0, 3.0]])
        >>> kpair_loss(scores)
        tensor([0.3133, 0.7177])

    References:
        | Improved Deep Metric Learning with Multi-class N-pair Loss Objective (Sohn, 2016)
        | https://papers.nips.cc/paper/6200
        | Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018)
        | https://arxiv.org/abs/1807.03748
    """
    return _kpair("kpair_loss", *check_rows("kpair_loss", scores, targets, log_weights))


def _kpair(function: str, scores: Tensor, targets: Tensor, log_weights: Tensor | None) -> Tensor:
    """The kernel, on what `check_rows` returned, in the name of a public function."""
    if scores.numel() == 0:
        return scores.sum(1)
    scores, log_weights, present = without_padding(scores, targets, log_weights)
    if log_weights is None:
        loss = F.cross_entropy(scores, targets, reduction="none")
    else:
        shifted = scores - largest(log_weights + scores)
        loss = torch.logsumexp(log_weights + shifted, 1) - target_scores(shifted, targets).squeeze(1)
    refuse_undefined(function, loss, scores, targets)
    return loss if present is None else loss.masked_fill(~present, 0.0)


def ntxent_loss(
    scores: Float[Tensor, "views views"],
    *,
    log_weights: Float[Tensor, "views views"] | None = None,
) -> Float[Tensor, " views"]:
    r"""Computes the NT-Xent loss of a batch of two views: every other view is a candidate, the partner the positive.

    .. math::
        L_i = \log \sum_{j \ne i} w_{ij} e^{s_{ij} - s_{i,t(i)}}, \qquad t(i) = (i + B) \bmod 2B

    It is `kpair_loss` of `without_self` and `partners`, which a miner needs to see before:

    >>> scores = torch.randn(6, 6)
    >>> torch.equal(ntxent_loss(scores), kpair_loss(without_self(scores), partners(6)))
    True

    Arguments:
        scores: :math:`s_{ij}` of the 2B views among themselves, the first views of all samples and then the
            second ones, temperature applied. The self pair is left out, whatever stands there.
        log_weights: as in `kpair_loss`.

    Returns:
        The loss of each view, in nats; 0 for a batch of one sample.

    Raises:
        ValueError: for a matrix that is not square or has an odd number of rows; otherwise as `kpair_loss`.

    Example:
        >>> views = torch.eye(2).repeat(2, 1)
        >>> ntxent_loss(views @ views.T)
        tensor([0.5514, 0.5514, 0.5514, 0.5514])

    References:
        | A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., 2020)
        | https://arxiv.org/abs/2002.05709
    """
    check_square("ntxent_loss", scores)
    if len(scores) % 2:
        raise ValueError(
            f"ntxent_loss: scores have shape {tuple(scores.shape)}, expected an even number of rows: "
            "two views of every sample"
        )
    targets = partners(len(scores), device=scores.device)
    return _kpair("ntxent_loss", *check_rows("ntxent_loss", without_self(scores), targets, log_weights))


def symmetric_loss(
    scores: Float[Tensor, "pairs pairs"],
    *,
    objective: Callable[[Tensor], Tensor] = kpair_loss,
) -> Float[Tensor, " pairs"]:
    r"""Computes an objective in both directions and takes their mean (CLIP): rows as anchors, and columns.

    .. math::
        L_i = \tfrac12 \bigl(\ell_i(S) + \ell_i(S^\top)\bigr)

    Arguments:
        scores: :math:`s_{ij} = f(x_i, y_j)`; the positives stand on the diagonal. A pair that is padding is
            :math:`-\infty` in its row and in its column.
        objective: :math:`\ell`, ``scores -> [pairs]``. A miner sees the rows of each direction:
            ``lambda s: kpair_loss(s, log_weights=miner(s, torch.arange(len(s))))``.

    Returns:
        The loss of each pair; its mean is that of `KPairLoss`.

    Raises:
        ValueError: for a matrix that is not square, or not of a floating-point dtype; and, in its own name, what
            `objective` refuses of either direction, where row i is pair i.

    Example:
        >>> symmetric_loss(torch.tensor([[1.0, 0.0], [3.0, 1.0]]))
        tensor([1.2201, 1.2201])

    References:
        | Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021)
        | https://arxiv.org/abs/2103.00020
    """
    check_square("symmetric_loss", scores)
    scores = as_float32(scores)
    return (objective(scores) + objective(scores.T)) / 2


def additive_margin_loss(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    margin: float,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, " anchors"]:
    r"""Computes the softmax loss with an additive margin: the positive must win by m (AM-Softmax, CosFace).

    .. math::
        L_i = \log\Bigl(1 + \sum_{j \ne t(i)} w_{ij} e^{s_{ij} + m - s_{i,t(i)}}\Bigr)

    It is the K-pair kernel with the constant log-weight m on the negatives.

    Arguments:
        scores: as in `kpair_loss`.
        targets: as in `kpair_loss`.
        margin: m, in score units: with cosines at temperature :math:`\tau`, the papers' margin divided by
            :math:`\tau` (their :math:`s \cdot m`).
        log_weights: as in `kpair_loss`; the margin comes on top of them.

    Returns:
        The loss of each anchor, in nats; 0 with gradient 0 as in `kpair_loss`.

    Raises:
        ValueError: as `kpair_loss`, and for a margin that is not finite.

    Example:
        >>> additive_margin_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), margin=1.0)
        tensor([0.6931, 0.6931])

    References:
        | Additive Margin Softmax for Face Verification (Wang et al., 2018)
        | https://arxiv.org/abs/1801.05599
    """
    scores, targets, log_weights = check_rows("additive_margin_loss", scores, targets, log_weights)
    if not math.isfinite(margin):
        raise ValueError(f"additive_margin_loss: margin is {margin}, expected a finite number")
    # Not subtracted from the positive's score: beside scores of 1e4 the margin would lose its digits.
    margins = torch.full_like(scores, margin).scatter(1, targets[:, None], 0.0)
    log_weights = margins if log_weights is None else log_weights + margins
    return _kpair("additive_margin_loss", scores, targets, log_weights)


def decoupled_loss(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, " anchors"]:
    r"""Computes the decoupled contrastive loss: the positive is left out of the denominator.

    .. math::
        L_i = \log \sum_{j \ne t(i)} w_{ij} e^{s_{ij} - s_{i,t(i)}}

    It is the K-pair kernel with weight 0 at the target. It has no lower bound and never bounds
    mutual information.

    Arguments:
        scores: as in `kpair_loss`.
        targets: as in `kpair_loss`.
        log_weights: as in `kpair_loss`; what stands at the target is ignored.

    Returns:
        The loss of each anchor, in nats; 0 with gradient 0 for a row without negatives, where the
        formula reads :math:`-\infty`.

    Raises:
        ValueError: as `kpair_loss`.

    Example:
        >>> decoupled_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([-1., -1.])

    References:
        | Decoupled Contrastive Learning (Yeh et al., 2022)
        | https://arxiv.org/abs/2110.06848
    """
    scores, targets, log_weights = check_rows("decoupled_loss", scores, targets, log_weights)
    if scores.numel() == 0:
        return scores.sum(1)
    scores, log_weights, present = without_padding(scores, targets, log_weights)
    weights = 0.0 if log_weights is None else log_weights
    shifted = scores - largest((weights + scores).scatter(1, targets[:, None], -torch.inf))
    log_sum = logsumexp_or((weights + shifted).scatter(1, targets[:, None], -torch.inf), -torch.inf)
    # A row without negatives: the formula reads -inf.
    loss = torch.where(log_sum == -torch.inf, 0.0, log_sum - target_scores(shifted, targets).squeeze(1))
    refuse_undefined("decoupled_loss", loss, scores, targets)
    return loss if present is None else loss.masked_fill(~present, 0.0)


def pairwise_loss(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    link: Callable[[Tensor], Tensor] = softplus,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, " anchors"]:
    r"""Computes the mean over an anchor's negatives of a link of the score difference: triplets.

    .. math::
        L_i = \frac{\sum_{j \ne t(i)} w_{ij}\, \ell(s_{ij} - s_{i,t(i)})}{\sum_{j \ne t(i)} w_{ij}}

    With `softplus` (the default) every term is a K-pair loss with K = 2; with
    ``lambda d: torch.relu(d + margin)`` it is the hinge triplet loss. Unweighted, a mean of K = 2 losses is
    never more than `kpair_loss`: another aggregation, not another weighting.

    Arguments:
        scores: as in `kpair_loss`.
        targets: as in `kpair_loss`.
        link: elementwise function :math:`\ell` of the differences.
        log_weights: as in `kpair_loss`; what stands at the target is ignored.

    Returns:
        The loss of each anchor; 0 with gradient 0 for a row without negatives.

    Raises:
        ValueError: as `kpair_loss`.

    Example:
        >>> scores = torch.tensor([[1.0, 0.5], [0.0, 2.0]])
        >>> pairwise_loss(scores, link=lambda d: torch.relu(d + 1.0))
        tensor([0.5000, 0.0000])

    References:
        | FaceNet: A Unified Embedding for Face Recognition and Clustering (Schroff et al., 2015)
        | https://arxiv.org/abs/1503.03832
    """
    scores, targets, log_weights = check_rows("pairwise_loss", scores, targets, log_weights)
    if scores.numel() == 0:
        return scores.sum(1)
    scores, log_weights, present = without_padding(scores, targets, log_weights)
    difference, kept = differences("pairwise_loss", scores, targets)
    if log_weights is None:
        log_weights = torch.zeros_like(scores)
    kept = kept & (log_weights != -torch.inf)
    log_share = log_weights.masked_fill(~kept, -torch.inf)
    log_share = log_share - logsumexp_or(log_share, 0.0)[:, None]
    # A dropped pair gets a difference of 0 before the link: 0 * link(-inf) may be NaN.
    difference = difference.masked_fill(~kept, 0.0)
    loss = torch.where(kept, log_share.masked_fill(~kept, 0.0).exp() * link(difference), 0.0).sum(1)
    refuse_undefined("pairwise_loss", loss, scores, targets, suspect="its link or its log_weights hold")
    return loss if present is None else loss.masked_fill(~present, 0.0)


def each_positive_loss(
    scores: Float[Tensor, "anchors candidates"],
    targets: Bool[Tensor, "anchors candidates"],
    *,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, "anchors candidates"]:
    r"""Computes the K-pair loss of every positive against the negatives of its anchor, without a row for each.

    .. math::
        L_{ip} = \log\Bigl(1 + \sum_{j \in N(i)} w_{ij} e^{s_{ij} - s_{ip}}\Bigr)

    The other positives are in no denominator. The mean of a row's is `supcon_loss` with ``keep_positives=False``.

    Arguments:
        scores: as in `kpair_loss`.
        targets: the positives.
        log_weights: as in `kpair_loss`; what stands at positives is ignored.

    Returns:
        The loss at every positive, in nats; 0 elsewhere.

    Raises:
        ValueError: as `supcon_loss`.

    Example:
        >>> each_positive_loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[True, True, False]]))
        tensor([[0.1269, 0.3133, 0.0000]])

    References:
        | Learning Representations by Maximizing Mutual Information Across Views (Bachman et al., 2019)
        | https://arxiv.org/abs/1906.00910
    """
    scores, positive, negative, weights = check_positives("each_positive_loss", scores, targets, log_weights)
    check_any_positive("each_positive_loss", positive, negative)
    if scores.numel() == 0:
        return scores
    loss = _each_positive(scores, positive, negative, weights)
    refuse_infinite("each_positive_loss", loss)
    return loss


def _each_positive(scores: Tensor, positive: Tensor, negative: Tensor, weights: Tensor) -> Tensor:
    scores = scores - largest((scores + weights).masked_fill(~negative, -torch.inf))
    log_negatives = logsumexp_or((scores + weights).masked_fill(~negative, -torch.inf), -torch.inf)[:, None]
    # softplus(-inf) is 0 with gradient 0; the masked scores must not meet it as inf - inf.
    return torch.where(positive, softplus(log_negatives - scores.masked_fill(~positive, 0.0)), 0.0)


def supcon_loss(
    scores: Float[Tensor, "anchors candidates"],
    targets: Bool[Tensor, "anchors candidates"] | Int[Tensor, " anchors"] | None = None,
    *,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
    keep_positives: bool = True,
) -> Float[Tensor, " anchors"]:
    r"""Computes the supervised contrastive loss (SupCon-out): K-pair, averaged over several positives.

    .. math::
        L_i = \frac{1}{|P(i)|} \sum_{p \in P(i)} \log\Bigl(1 + \sum_{j \ne p} w_{ij} e^{s_{ij} - s_{ip}}\Bigr)

    It is `kpair_loss` with one row per positive. The other positives stay among the candidates, as
    published, or are left out (``keep_positives=False``), so that a class does not repel itself.

    Arguments:
        scores: as in `kpair_loss`; the self pair is absent (:math:`-\infty`).
        targets: the positives: a mask, or one column per anchor, or None for the diagonal.
        log_weights: as in `kpair_loss`; what stands at positives is ignored.
        keep_positives: whether the other positives compete in the denominator.

    Returns:
        The loss of each anchor, in nats; 0 with gradient 0 for an anchor without a positive.

    Raises:
        ValueError: as `kpair_loss`; for a positive whose score is :math:`-\infty`, and, on the CPU, for a batch none
            of whose anchors has a positive.

    Example:
        >>> scores = torch.tensor([[-torch.inf, 2.0, 1.0]])
        >>> supcon_loss(scores, torch.tensor([[False, True, True]]))
        tensor([0.8133])

    References:
        | Supervised Contrastive Learning (Khosla et al., 2020)
        | https://arxiv.org/abs/2004.11362
    """
    scores, positive, negative, weights = check_positives("supcon_loss", scores, targets, log_weights)
    check_any_positive("supcon_loss", positive, negative)
    if scores.numel() == 0:
        return scores.sum(1)
    if keep_positives:
        summed = negative | positive
        scores = scores - largest((scores + weights).masked_fill(~summed, -torch.inf))
        log_partition = logsumexp_or((scores + weights).masked_fill(~summed, -torch.inf), 0.0)[:, None]
        per_positive = torch.where(positive, log_partition - scores, 0.0)
    else:
        per_positive = _each_positive(scores, positive, negative, weights)
    total, count = per_positive.sum(1), positive.sum(1)
    loss = total / count.clamp_min(1)
    refuse_infinite("supcon_loss", loss)
    return loss
