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

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrastive.scores import check_rows, check_values, eager_on_cpu, negatives, target_scores

__all__ = ["decoupled_loss", "kpair_loss", "pairwise_loss", "supcon_loss"]


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
        log_weights: :math:`\log w_{ij}`, 0 at the target; None means no mining. Gradients flow
            through them: see `miners.detached`.

    Returns:
        The loss of each anchor, in nats. A row without any candidate (all :math:`-\infty`) is
        padding, and a row with nothing but its positive is solved: both give 0 with gradient 0.

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
    scores, targets, log_weights = check_rows("kpair_loss", scores, targets, log_weights)
    if scores.numel() == 0:
        return scores.sum(1)
    scores, log_weights, present = _without_padding(scores, targets, log_weights)
    if log_weights is None:
        loss = F.cross_entropy(scores, targets, reduction="none")
    else:
        shifted = scores - _largest(log_weights + scores)
        loss = torch.logsumexp(log_weights + shifted, 1) - target_scores(shifted, targets).squeeze(1)
    _refuse_undefined("kpair_loss", loss, scores, targets)
    return loss if present is None else loss.masked_fill(~present, 0.0)


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
    scores, log_weights, present = _without_padding(scores, targets, log_weights)
    weights = 0.0 if log_weights is None else log_weights
    shifted = scores - _largest((weights + scores).scatter(1, targets[:, None], -torch.inf))
    log_sum = _logsumexp_or((weights + shifted).scatter(1, targets[:, None], -torch.inf), -torch.inf)
    # A row without negatives: the formula reads -inf.
    loss = torch.where(log_sum == -torch.inf, 0.0, log_sum - target_scores(shifted, targets).squeeze(1))
    _refuse_undefined("decoupled_loss", loss, scores, targets)
    return loss if present is None else loss.masked_fill(~present, 0.0)


def pairwise_loss(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    link: Callable[[Tensor], Tensor] = F.softplus,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, " anchors"]:
    r"""Computes the mean over an anchor's negatives of a link of the score difference: triplets.

    .. math::
        L_i = \frac{\sum_{j \ne t(i)} w_{ij}\, \ell(s_{ij} - s_{i,t(i)})}{\sum_{j \ne t(i)} w_{ij}}

    With `softplus` (the default) every term is a K-pair loss with K = 2; with
    ``lambda d: torch.relu(d + margin)`` it is the hinge triplet loss. A mean of K = 2 losses is never
    more than `kpair_loss`: another aggregation, not another weighting.

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
    scores, log_weights, present = _without_padding(scores, targets, log_weights)
    kept = negatives(scores, targets)
    difference = (scores - target_scores(scores, targets)).masked_fill(~kept, 0.0)
    # The link may be bounded, or the weight 0: the differences tell of a broken score where the loss does not.
    _refuse_undefined("pairwise_loss", difference.detach().abs().amax(1), scores, targets)
    if log_weights is None:
        log_weights = torch.zeros_like(scores)
    kept = kept & (log_weights != -torch.inf)
    log_share = log_weights.masked_fill(~kept, -torch.inf)
    log_share = log_share - _logsumexp_or(log_share, 0.0)[:, None]
    # A dropped pair gets a difference of 0 before the link: 0 * link(-inf) may be NaN.
    difference = difference.masked_fill(~kept, 0.0)
    loss = torch.where(kept, log_share.masked_fill(~kept, 0.0).exp() * link(difference), 0.0).sum(1)
    _refuse_undefined("pairwise_loss", loss, scores, targets, suspect="its link or its log_weights hold")
    return loss if present is None else loss.masked_fill(~present, 0.0)


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
        ValueError: as `kpair_loss`; a positive whose score is :math:`-\infty` is refused.

    Example:
        >>> scores = torch.tensor([[-torch.inf, 2.0, 1.0]])
        >>> supcon_loss(scores, torch.tensor([[False, True, True]]))
        tensor([0.8133])

    References:
        | Supervised Contrastive Learning (Khosla et al., 2020)
        | https://arxiv.org/abs/2004.11362
    """
    if targets is None or targets.dtype != torch.bool:
        scores, targets, log_weights = check_rows("supcon_loss", scores, targets, log_weights)
        positive = torch.zeros_like(scores, dtype=torch.bool).scatter(1, targets[:, None], True)
    else:
        if targets.shape != scores.shape:
            raise ValueError(
                f"supcon_loss: targets are a mask of shape {tuple(targets.shape)}, expected {tuple(scores.shape)}"
            )
        positive = targets.to(scores.device)
        first = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        scores, _, log_weights = check_rows("supcon_loss", scores, first, log_weights)
    if scores.numel() == 0:
        return scores.sum(1)
    candidate = scores != -torch.inf
    positive = positive & candidate.any(1, keepdim=True)  # a row without any candidate is padding
    if eager_on_cpu(scores):
        undefined = (candidate & ~torch.isfinite(scores)).any(1)
        if bool(undefined.any()):
            raise ValueError(
                f"supcon_loss: row {int(undefined.nonzero()[0])} holds a NaN or +inf score, "
                "expected finite scores (-inf for an absent candidate)"
            )
        orphaned = (positive & ~candidate).any(1)
        if bool(orphaned.any()):
            raise ValueError(
                f"supcon_loss: a positive of row {int(orphaned.nonzero()[0])} is absent (-inf) "
                "while other candidates are present"
            )
    negative = ~positive & candidate
    summed = candidate if keep_positives else negative
    weights = torch.zeros_like(scores) if log_weights is None else log_weights.masked_fill(positive, 0.0)
    scores = scores - _largest((scores + weights).masked_fill(~summed, -torch.inf))
    weighted = scores + weights
    count = positive.sum(1)
    if keep_positives:
        log_partition = _logsumexp_or(weighted.masked_fill(~(negative | positive), -torch.inf), 0.0)[:, None]
        per_positive = log_partition - scores
    else:
        log_negatives = _logsumexp_or(weighted.masked_fill(~negative, -torch.inf), -torch.inf)[:, None]
        # softplus(-inf) is 0 with gradient 0; the masked scores must not meet it as inf - inf.
        per_positive = F.softplus(log_negatives - scores.masked_fill(~positive, 0.0))
    total = torch.where(positive, per_positive, 0.0).sum(1)
    loss = total / count.clamp_min(1)
    if eager_on_cpu(loss) and not bool(torch.isfinite(loss).all()):
        row = int((~torch.isfinite(loss)).nonzero()[0])
        raise ValueError(f"supcon_loss: the loss of row {row} is not finite: its log_weights hold a NaN or +inf")
    return loss


def _without_padding(
    scores: Tensor, targets: Tensor, log_weights: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rows without any candidate become zeros, cut off from the graph; returns the mask of the others, None for all."""
    padding = (scores == -torch.inf).all(1) if not eager_on_cpu(scores) else _absent_target_rows(scores, targets)
    if eager_on_cpu(scores) and not bool(padding.any()):
        return scores, log_weights, None
    if log_weights is not None:
        log_weights = log_weights.masked_fill(padding[:, None], 0.0)
    return scores.masked_fill(padding[:, None], 0.0), log_weights, ~padding


def _absent_target_rows(scores: Tensor, targets: Tensor) -> Tensor:
    """Padding rows. The targets alone tell in most cases: the whole matrix is read only if one of them is absent."""
    absent = target_scores(scores, targets).squeeze(1) == -torch.inf
    if bool(absent.any()):
        absent = absent & (scores == -torch.inf).all(1)
    return absent


def _largest(weighted: Tensor) -> Tensor:
    """The largest entry of each row, cut off from the graph; 0 for a row that is -inf throughout.

    Scores are subtracted from it before anything is added up: with scores of 1e4 a log-sum would lose the digits.
    """
    largest = weighted.detach().amax(1, keepdim=True)
    return largest.masked_fill(largest == -torch.inf, 0.0)


def _logsumexp_or(x: Tensor, empty: float) -> Tensor:
    """Row-wise logsumexp; a row that is -inf throughout gives `empty`, with gradient 0 instead of NaN."""
    nothing = (x == -torch.inf).all(1)
    return torch.logsumexp(x.masked_fill(nothing[:, None], 0.0), 1).masked_fill(nothing, empty)


def _refuse_undefined(
    function: str, loss: Tensor, scores: Tensor, targets: Tensor, suspect: str = "its log_weights hold"
) -> None:
    """Names the row whose loss is undefined.

    The losses and the targets tell: the matrix is read again only when one of them is not finite.
    """
    if not eager_on_cpu(loss):
        return
    finite = torch.isfinite(loss) & torch.isfinite(target_scores(scores, targets).squeeze(1))
    if bool(finite.all()):
        return
    check_values(function, scores, targets)
    row = int((~finite).nonzero()[0])
    raise ValueError(
        f"{function}: the loss of row {row} is not finite: {suspect} a NaN or +inf, or drop every candidate"
    )
