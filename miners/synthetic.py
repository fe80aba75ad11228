"""Synthetic negatives: more columns, mixed from the hardest ones."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrastive.factors import normalize
from contrastive.ranking import columns_of_largest
from contrastive.scores import check_rows, negatives

__all__ = ["mix_hardest"]


def mix_hardest(
    anchors: Float[Tensor, "anchors dx"],
    candidates: Float[Tensor, "candidates dy"],
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    hardest: int = 1024,
    pairs: int = 128,
    with_anchor: int = 0,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> tuple[Float[Tensor, "anchors synthetic dy"], Bool[Tensor, "anchors synthetic"]]:
    r"""Mixes every anchor's hardest negatives with each other, and with the anchor (MoCHi).

    .. math::
        h = \frac{\alpha n_k + (1 - \alpha) n_l}{\lVert \cdot \rVert}, \; \alpha \sim U(0, 1), \qquad
        h' = \frac{\beta x_i + (1 - \beta) n_l}{\lVert \cdot \rVert}, \; \beta \sim U(0, \tfrac12)

    with :math:`n_k, n_l` drawn from the hardest negatives of anchor i, with replacement. All are taken as unit rows,
    for a critic of directions (`Cosine`). Draws come from torch's global generator.

    Synthetic negatives are columns of their anchor's own:

    >>> from contrastive import Cosine, kpair_loss
    >>> from contrastive.lists import list_scores
    >>> critic, x, y = Cosine(), torch.randn(4, 8), torch.randn(4, 8)
    >>> scores = critic(x, y)
    >>> mixed, absent = mix_hardest(x, y, scores, hardest=2, pairs=3, with_anchor=1)
    >>> columns = torch.arange(16).view(4, 4)
    >>> extra = list_scores(critic, x, mixed.flatten(0, 1), columns).masked_fill(absent, -torch.inf)
    >>> kpair_loss(torch.cat([scores, extra], 1)).shape
    torch.Size([4])

    They are not drawn like the positive. Where the real negatives are, W of them, ``log(1 + W) - L`` still bounds
    mutual information, and synthetic ones only cost value (``docs/theory.md``, corollary B.3); counted in, they leave
    no bound.

    Arguments:
        anchors: :math:`x_i`; of the candidates' width where `with_anchor` is not 0.
        candidates: the columns of `scores`, such as a batch and then a queue.
        scores: by which negatives are hard.
        targets: column of each anchor's positive, which is never mixed; None means column i for anchor i.
        hardest: from how many negatives is drawn; a row with fewer uses those it has.
        pairs: how many mixtures of two negatives an anchor gets.
        with_anchor: how many mixtures of the anchor and a negative.
        log_weights: what a miner returned; negatives that it dropped take no part.

    Returns:
        The mixtures, first `pairs` and then `with_anchor` of every anchor, without gradient, in the dtype of the
        candidates; and whether they are absent: of an anchor without negatives they are zeros, to be scored
        :math:`-\infty`.

    Raises:
        ValueError: for shapes that do not fit, `hardest` below 1, or a negative number of mixtures.

    References:
        | Hard Negative Mixing for Contrastive Learning (Kalantidis et al., 2020)
        | https://arxiv.org/abs/2010.01028
    """
    for name, value, least in (("hardest", hardest, 1), ("pairs", pairs, 0), ("with_anchor", with_anchor, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"mix_hardest: {name} is {value!r}, expected an integer of at least {least}")
    scores, targets, log_weights = check_rows("mix_hardest", scores.detach(), targets, log_weights)
    if anchors.ndim != 2 or candidates.ndim != 2 or (len(anchors), len(candidates)) != tuple(scores.shape):
        raise ValueError(
            f"mix_hardest: got anchors of shape {tuple(anchors.shape)} and candidates of shape "
            f"{tuple(candidates.shape)} for scores of shape {tuple(scores.shape)}, expected [anchors, d] and "
            "[candidates, d]"
        )
    if with_anchor and anchors.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"mix_hardest: anchors have width {anchors.shape[1]} and candidates {candidates.shape[1]}, "
            "expected one width (or with_anchor=0)"
        )
    kept = negatives(scores, targets)
    if log_weights is not None:
        kept = kept & (log_weights != -torch.inf)
    count = kept.sum(1, keepdim=True).clamp_max(hardest)
    absent = (count == 0).expand(-1, pairs + with_anchor)
    if not absent.numel():
        return candidates.new_zeros(*absent.shape, candidates.shape[1]), absent
    ranked = _ranked(scores.masked_fill(~kept, -torch.inf), min(hardest, scores.shape[1]))
    rows = normalize(candidates.detach())
    first, second = (_drawn(rows, ranked, count, pairs) for _ in range(2))
    share = torch.rand(*first.shape[:2], 1, dtype=rows.dtype, device=rows.device)
    parts = [share * first + (1 - share) * second]
    if with_anchor:
        other = _drawn(rows, ranked, count, with_anchor)
        share = torch.rand(*other.shape[:2], 1, dtype=rows.dtype, device=rows.device) / 2
        parts.append(share * normalize(anchors.detach())[:, None] + (1 - share) * other)
    mixed = normalize(torch.cat(parts, 1)).masked_fill(absent[:, :, None], 0.0)
    return mixed.to(candidates.dtype), absent


def _ranked(scores: Tensor, k: int) -> Tensor:
    """The columns of the k largest scores of each row, the largest first."""
    columns = columns_of_largest(scores, k)
    return columns.gather(1, scores.gather(1, columns).argsort(1, descending=True))


def _drawn(rows: Tensor, ranked: Tensor, count: Tensor, draws: int) -> Tensor:
    """Some of the first `count` of each anchor's ranked candidates, with replacement: ``[anchors, draws, d]``."""
    place = (torch.rand(len(ranked), draws, device=ranked.device) * count).long()
    place = torch.minimum(place, (count - 1).clamp_min(0))
    return rows[ranked.gather(1, place)]
