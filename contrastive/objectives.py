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

from contrastive.scores import check_rows, eager_on_cpu, negatives, target_scores

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
    scores, present = _without_padding(scores, targets)
    if log_weights is None:
        loss = F.cross_entropy(scores, targets, reduction="none")
    else:
        # Differences first: with scores of 1e4 the order lse(s) - s_t would lose the digits.
        loss = torch.logsumexp(log_weights + (scores - target_scores(scores, targets)), 1)
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
    scores, _ = _without_padding(scores, targets)
    weighted = scores if log_weights is None else scores + log_weights
    difference = (weighted - target_scores(scores, targets)).scatter(1, targets[:, None], -torch.inf)
    loss = _logsumexp_or(difference, 0.0)
    _refuse_undefined("decoupled_loss", loss, scores, targets)
    return loss


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
    scores, _ = _without_padding(scores, targets)
    kept = negatives(scores, targets)
    if log_weights is None:
        log_weights = torch.zeros_like(scores)
    kept = kept & (log_weights > -torch.inf)
    log_share = log_weights.masked_fill(~kept, -torch.inf)
    log_share = log_share - _logsumexp_or(log_share, 0.0)[:, None]
    # A dropped pair gets a difference of 0 before the link: 0 * link(-inf) may be NaN.
    difference = (scores - target_scores(scores, targets)).masked_fill(~kept, 0.0)
    loss = torch.where(kept, log_share.masked_fill(~kept, 0.0).exp() * link(difference), 0.0).sum(1)
    _refuse_undefined("pairwise_loss", loss, scores, targets)
    return loss


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
    if eager_on_cpu(scores) and bool((positive & (scores == -torch.inf)).any()):
        row = int((positive & (scores == -torch.inf)).any(1).nonzero()[0])
        raise ValueError(f"supcon_loss: a positive of row {row} is absent (-inf)")
    negative = ~positive & (scores > -torch.inf)
    weighted = scores if log_weights is None else torch.where(positive, scores, scores + log_weights)
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
        raise ValueError(f"supcon_loss: row {row} holds a NaN or +inf score, expected finite scores or -inf for absent")
    return loss


def _without_padding(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows without any candidate become zeros, cut off from the graph; returns the mask of the others, None for all."""
    padding = (scores == -torch.inf).all(1) if not eager_on_cpu(scores) else _absent_target_rows(scores, targets)
    if eager_on_cpu(scores) and not bool(padding.any()):
        return scores, None
    return torch.where(padding[:, None], torch.zeros_like(scores), scores), ~padding


def _absent_target_rows(scores: Tensor, targets: Tensor) -> Tensor:
    """Padding rows. The targets alone tell in most cases: the whole matrix is read only if one of them is absent."""
    absent = target_scores(scores, targets).squeeze(1) == -torch.inf
    if bool(absent.any()):
        absent = absent & (scores == -torch.inf).all(1)
    return absent


def _logsumexp_or(x: Tensor, empty: float) -> Tensor:
    """Row-wise logsumexp; a row that is -inf throughout gives `empty`, with gradient 0 instead of NaN."""
    nothing = (x == -torch.inf).all(1)
    return torch.logsumexp(x.masked_fill(nothing[:, None], 0.0), 1).masked_fill(nothing, empty)


def _refuse_undefined(function: str, loss: Tensor, scores: Tensor, targets: Tensor) -> None:
    """Names the row whose loss is undefined. The losses tell: the matrix is read again only when one is not finite."""
    if not eager_on_cpu(loss) or bool(torch.isfinite(loss).all()):
        return
    row = int((~torch.isfinite(loss)).nonzero()[0])
    if torch.isnan(scores[row]).any() or (scores[row] == torch.inf).any():
        raise ValueError(
            f"{function}: row {row} holds a NaN or +inf score, expected finite scores (-inf for an absent candidate)"
        )
    if scores[row, targets[row]] == -torch.inf:
        raise ValueError(
            f"{function}: the target of row {row} (column {int(targets[row])}) is absent (-inf) "
            "while other candidates are present"
        )
    raise ValueError(f"{function}: the loss of row {row} is {float(loss[row].detach())}: its log_weights hold a NaN or +inf")
