r"""Losses beside the K-pair kernel: sums over pairs, over positives inside the log, over sigmoids.

No weights that leave the scores unread turn `kpair_loss` into one of these (`docs/theory.md`, 5.1), but for
`lifted_loss` of a single positive with a smooth hinge. `ovo_loss` still bounds mutual information, because it is never
below the kernel; nothing is claimed of the others. They speak of the same scores, targets and log-weights, and give one
value per anchor.

>>> import torch
>>> scores = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
>>> ovo_loss(scores)
tensor([0.1269, 0.1269])
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrastive.rows import (
    differences,
    largest,
    logsumexp_or,
    refuse_infinite,
    softplus,
    without_padding,
)
from contrastive.scores import check_any_positive, check_positives, check_rows, eager_on_cpu

__all__ = ["lifted_loss", "multi_similarity_loss", "ovo_loss", "sigmoid_loss"]


def ovo_loss(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, " anchors"]:
    r"""Computes the one-versus-one N-pair loss: the positive against each negative alone, summed.

    .. math::
        L_i = \sum_{j \ne t(i)} w_{ij} \log\bigl(1 + e^{s_{ij} - s_{i,t(i)}}\bigr)

    It is `pairwise_loss` as a sum instead of a mean. Unweighted, it is never less than `kpair_loss`,
    :math:`\prod_j (1 + a_j) \ge 1 + \sum_j a_j`, and with one negative all three are equal.

    Arguments:
        scores: as in `kpair_loss`.
        targets: as in `kpair_loss`.
        log_weights: as in `kpair_loss`; what stands at the target is ignored.

    Returns:
        The loss of each anchor, in nats; 0 with gradient 0 for a row without negatives.

    Raises:
        ValueError: as `kpair_loss`.

    Example:
        >>> ovo_loss(torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]))
        tensor([1.3863, 0.6265])

    References:
        | Improved Deep Metric Learning with Multi-class N-pair Loss Objective (Sohn, 2016)
        | https://papers.nips.cc/paper/6200
    """
    scores, targets, log_weights = check_rows("ovo_loss", scores, targets, log_weights)
    if scores.numel() == 0:
        return scores.sum(1)
    scores, log_weights, present = without_padding(scores, targets, log_weights)
    difference, kept = differences("ovo_loss", scores, targets)
    terms = softplus(difference)
    if log_weights is not None:
        terms = log_weights.masked_fill(~kept, 0.0).exp() * terms
    loss = torch.where(kept, terms, 0.0).sum(1)
    refuse_infinite("ovo_loss", loss, suspect="its log_weights overflow, or hold")
    return loss if present is None else loss.masked_fill(~present, 0.0)


def lifted_loss(
    scores: Float[Tensor, "anchors candidates"],
    targets: Bool[Tensor, "anchors candidates"] | Int[Tensor, " anchors"] | None = None,
    *,
    margin: float = 1.0,
    link: Callable[[Tensor], Tensor] = torch.relu,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, " anchors"]:
    r"""Computes the lifted structured loss, generalised to one term per anchor: its far positives, its near negatives.

    .. math::
        L_i = \ell\Bigl(\log \sum_{p \in P(i)} e^{-s_{ip}} + \log \sum_{n \in N(i)} w_{in} e^{s_{in} + m}\Bigr)

    The scores are negated distances in the papers. With one positive and `softplus` as link it is
    `additive_margin_loss`; the hinge (the default) is its zero-temperature limit.

    Arguments:
        scores: as in `kpair_loss`; the self pair is absent (:math:`-\infty`).
        targets: the positives: a mask, or one column per anchor, or None for the diagonal.
        margin: m, in score units.
        link: elementwise function :math:`\ell`.
        log_weights: as in `kpair_loss`; what stands at positives is ignored.

    Returns:
        The loss of each anchor; 0 with gradient 0 for an anchor without a positive or without a negative,
        where the link's argument reads :math:`-\infty`.

    Raises:
        ValueError: as `supcon_loss`, and for a margin that is not finite.

    Example:
        >>> scores = torch.tensor([[-torch.inf, -1.0, -0.5, -2.0]])
        >>> lifted_loss(scores, torch.tensor([[False, True, True, False]]))
        tensor([0.4741])

    References:
        | Deep Metric Learning via Lifted Structured Feature Embedding (Oh Song et al., 2016)
        | https://arxiv.org/abs/1511.06452
        | In Defense of the Triplet Loss for Person Re-Identification (Hermans et al., 2017)
        | https://arxiv.org/abs/1703.07737
    """
    scores, positive, negative, log_weights = check_positives("lifted_loss", scores, targets, log_weights)
    check_any_positive("lifted_loss", positive, negative)
    if not math.isfinite(margin):
        raise ValueError(f"lifted_loss: margin is {margin}, expected a finite number")
    if scores.numel() == 0:
        return scores.sum(1)
    # A shift of the row leaves the sum of the two logarithms alone.
    shifted = scores - largest((scores + log_weights).masked_fill(~negative, -torch.inf))
    far = logsumexp_or((-shifted).masked_fill(~positive, -torch.inf), -torch.inf)
    near = logsumexp_or((shifted + log_weights).masked_fill(~negative, -torch.inf), -torch.inf)
    complete = (far != -torch.inf) & (near != -torch.inf)
    argument = torch.where(complete, far + near + margin, 0.0)
    refuse_infinite("lifted_loss", argument)
    loss = torch.where(complete, link(argument), 0.0)
    refuse_infinite("lifted_loss", loss, suspect="its link returned")
    return loss


def multi_similarity_loss(
    scores: Float[Tensor, "anchors candidates"],
    targets: Bool[Tensor, "anchors candidates"] | Int[Tensor, " anchors"] | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, " anchors"]:
    r"""Computes the multi-similarity loss: positives below a base similarity are pulled, negatives above it pushed.

    .. math::
        L_i = \frac1\alpha \log\Bigl(1 + \sum_{p \in P(i)} e^{-\alpha (s_{ip} - \lambda)}\Bigr)
            + \frac1\beta \log\Bigl(1 + \sum_{n \in N(i)} w_{in} e^{\beta (s_{in} - \lambda)}\Bigr)

    The scores are measured against :math:`\lambda`, not against each other: a shift of a row changes the loss.

    Arguments:
        scores: as in `kpair_loss`, but cosines of temperature 1: the two temperatures are
            :math:`1/\alpha` and :math:`1/\beta`. The self pair is absent (:math:`-\infty`).
        targets: the positives: a mask, or one column per anchor, or None for the diagonal.
        alpha: :math:`\alpha`, sharpness on the positives.
        beta: :math:`\beta`, sharpness on the negatives.
        base: :math:`\lambda`, in score units; 0.5 as in the official code, the paper prints 1.
        log_weights: as in `kpair_loss`; what stands at positives is ignored. The paper's own mining drops
            pairs (:math:`-\infty`).

    Returns:
        The loss of each anchor. Without a positive the second term is left, without a negative the first;
        padding gives 0 with gradient 0.

    Raises:
        ValueError: as `supcon_loss`, and for an `alpha` or `beta` that is not positive and finite, or a `base`
            that is not finite.

    Example:
        >>> multi_similarity_loss(torch.tensor([[0.9, 0.6, 0.1], [0.2, 0.4, 0.3]]))
        tensor([0.2857, 0.3991])

    References:
        | Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning (Wang et al., 2019)
        | https://arxiv.org/abs/1904.06627
    """
    scores, positive, negative, log_weights = check_positives("multi_similarity_loss", scores, targets, log_weights)
    if not (0 < alpha < math.inf and 0 < beta < math.inf and math.isfinite(base)):
        raise ValueError(
            f"multi_similarity_loss: got alpha = {alpha}, beta = {beta} and base = {base}, "
            "expected finite numbers, alpha and beta above 0"
        )
    if scores.numel() == 0:
        return scores.sum(1)
    pulled = _log1p_sum(-scores, torch.zeros_like(scores), positive, offset=base, sharpness=alpha)
    pushed = _log1p_sum(scores, log_weights, negative, offset=-base, sharpness=beta)
    loss = pulled + pushed
    refuse_infinite("multi_similarity_loss", loss)
    return loss


def _log1p_sum(x: Tensor, log_weights: Tensor, kept: Tensor, *, offset: float, sharpness: float) -> Tensor:
    r"""Row-wise :math:`\frac1k \log(1 + \sum_j w_j e^{k (x_j + c)})` over what is kept.

    The differences within a row are taken first: multiplied by k, scores of 1e4 would lose the digits between them.
    """
    shift = largest((x + log_weights / sharpness).masked_fill(~kept, -torch.inf))
    log_sum = logsumexp_or((sharpness * (x - shift) + log_weights).masked_fill(~kept, -torch.inf), -torch.inf)
    return softplus(log_sum + sharpness * (shift.squeeze(1) + offset)) / sharpness


def sigmoid_loss(
    scores: Float[Tensor, "anchors candidates"],
    targets: Bool[Tensor, "anchors candidates"] | Int[Tensor, " anchors"] | None = None,
    *,
    bias: float | Float[Tensor, ""] = -10.0,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> Float[Tensor, " anchors"]:
    r"""Computes the sigmoid loss (SigLIP): every pair is classified on its own, as a positive or not.

    .. math::
        L_i = \sum_j w_{ij} \log\bigl(1 + e^{-z_{ij} (s_{ij} + b)}\bigr), \qquad
        z_{ij} = \begin{cases} 1 & j \in P(i) \\ -1 & \text{otherwise} \end{cases}

    A column knows nothing of the others: a shift of a row changes the loss. The scale of the scores is
    the critic's temperature; the paper starts at 1/10, and learns it together with b.

    Arguments:
        scores: as in `kpair_loss`; an absent candidate has no term.
        targets: the positives: a mask, or one column per anchor, or None for the diagonal.
        bias: b, in score units, a number or a learnt scalar. Its sign is that of the paper's algorithm 1; the
            equation printed there has the opposite one.
        log_weights: as in `kpair_loss`; what stands at positives is ignored.

    Returns:
        The loss of each anchor, in nats. An anchor without a positive has the terms of its negatives,
        padding gives 0 with gradient 0.

    Raises:
        ValueError: as `supcon_loss`, and for a bias that is not a finite scalar.

    Example:
        >>> sigmoid_loss(torch.tensor([[10.0, 0.0], [10.0, 20.0]]))
        tensor([0.6932, 0.6932])

    References:
        | Sigmoid Loss for Language Image Pre-Training (Zhai et al., 2023)
        | https://arxiv.org/abs/2303.15343
    """
    scores, positive, negative, log_weights = check_positives("sigmoid_loss", scores, targets, log_weights)
    if isinstance(bias, Tensor):
        if bias.ndim:
            raise ValueError(f"sigmoid_loss: bias has shape {tuple(bias.shape)}, expected a scalar")
        finite = not eager_on_cpu(bias) or bool(torch.isfinite(bias))
    else:
        finite = math.isfinite(bias)
    if not finite:
        raise ValueError(f"sigmoid_loss: bias is {bias}, expected a finite number")
    if scores.numel() == 0:
        return scores.sum(1)
    present = positive | negative
    logits = (scores + bias).masked_fill(~present, 0.0)
    weights = log_weights.masked_fill(~present, 0.0).exp()
    terms = weights * softplus(torch.where(positive, -logits, logits))
    loss = torch.where(present, terms, 0.0).sum(1)
    refuse_infinite("sigmoid_loss", loss, suspect="its log_weights overflow, or hold")
    return loss
