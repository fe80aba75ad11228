"""Mixture-based representations: several features of a view share out the places of the other one (AMDIM)."""

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive.critics import score_penalty, soft_clip
from contrastive.objectives import each_positive_loss
from contrastive.pairings import Pairing

__all__ = ["mixture_loss", "responsibilities"]


def responsibilities(losses: Float[Tensor, "components ..."], sharpness: float) -> Float[Tensor, "components ..."]:
    r"""Shares each positive out among components: those that predict it well take more.

    .. math::
        q_j = \frac{e^{-\tau L_j}}{\sum_l e^{-\tau L_l}}

    Arguments:
        losses: :math:`L_j` of a positive by each component; minus it is the paper's :math:`s_{nce}`.
        sharpness: :math:`\tau`.

    Example:
        >>> responsibilities(torch.tensor([[0.0], [0.0]]), 1.0).flatten()
        tensor([0.5000, 0.5000])
    """
    return torch.softmax(-sharpness * losses, 0)


def mixture_loss(
    scores: Float[Tensor, "components anchors candidates"],
    pairing: Pairing,
    *,
    sharpness: float = 1.0,
    entropy: float = 1.0,
    clip: float | None = None,
    penalty: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Computes the loss of mixture-based representations, which AMDIM's authors published and did not release.

    .. math::
        \mathcal L = \operatorname{mean}_{i, p} \Bigl( \sum_j q_{jip}\, L_{jip} - \alpha H(q_{\cdot ip}) \Bigr)

    over the positives p of every anchor i, with :math:`L_{jip}` the K-pair loss of component j
    (`contrastive.objectives.each_positive_loss`), :math:`-L = s_{nce}`, and q of `responsibilities`. With
    :math:`\tau \alpha = 1` the q are the minimiser, and the loss is :math:`-\alpha \log \sum_j e^{-L_j / \alpha}`, a
    soft minimum over components.

    Its value is no estimate of mutual information: the best of several is taken.

    Arguments:
        scores: of every component's anchors against the candidates.
        pairing: with a mask of positives, `contrastive.pairings.other_groups`.
        sharpness: :math:`\tau`.
        entropy: :math:`\alpha`: the more, the more evenly the components are used.
        clip: as in `contrastive.terms.Term`.
        penalty: likewise.

    Raises:
        ValueError: for a pairing of one positive an anchor by column, and as `each_positive_loss`.

    Example:
        >>> from contrastive.pairings import other_groups
        >>> images = torch.arange(2)
        >>> mixture_loss(torch.eye(2)[None], other_groups(images, images))     # one component: the K-pair loss
        tensor(0.3133)

    References:
        | Learning Representations by Maximizing Mutual Information Across Views (Bachman et al., 2019)
        | https://arxiv.org/abs/1906.00910
    """
    positive = pairing.targets
    if positive.dtype != torch.bool:
        raise ValueError("mixture_loss: the pairing names columns, expected a mask of positives, as of `other_groups`")
    penalties = penalty * torch.stack([score_penalty(each) for each in scores]).mean() if penalty else 0.0
    clipped = [pairing.masked(each if clip is None else soft_clip(each, clip)) for each in scores]
    losses = torch.stack([each_positive_loss(each, positive)[positive] for each in clipped])
    q = responsibilities(losses, sharpness)
    uncertain = -(q * torch.log_softmax(-sharpness * losses, 0)).sum(0)
    return ((q * losses).sum(0) - entropy * uncertain).mean() + penalties
