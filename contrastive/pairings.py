r"""Pairings: which candidate is an anchor's positive, which are no candidates at all, and what that leaves of a bound.

A system's negatives are masks on the one matrix of scores. A pairing reads them off *groups*, an integer for every
anchor and every candidate: the image a row was cut from, the video it is a frame of.

=================== ==================================== ============================= ======================
pairing             positive                             left out (absent)             nats
=================== ==================================== ============================= ======================
`in_batch`          candidate i of anchor i              nothing                       log K, if no two share
                                                                                       a group
`two_views`         the other view of the image          the anchor itself             log B, not log(2B - 1)
`other_groups`      every candidate of the own group,    the own others, from each     log of the number of
                    one after the other                  other's denominators          groups
`within_groups`     candidate i of anchor i              all other groups              none
`listed`            column 0 of a list: a queue's, a     further keys of the own item  none: stale keys
                    memory bank's
=================== ==================================== ============================= ======================

>>> import torch
>>> pairing = other_groups(torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1]))   # two images, two places each
>>> scores = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0]])
>>> contrast(scores, pairing)
tensor([0.3955, 0.3955])
>>> bound(scores, pairing).constant     # log 2: the places of an image are no independent negatives
0.693...
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrastive.bounds import Bound, infonce_bound
from contrastive.objectives import kpair_loss, supcon_loss
from contrastive.scores import WeighsNegatives, weighed

__all__ = [
    "Pairing",
    "bound",
    "contrast",
    "in_batch",
    "listed",
    "other_groups",
    "two_views",
    "within_groups",
]


@dataclass(frozen=True, eq=False)
class Pairing:
    r"""Which pairs are positives and which are absent, and the constant that turns the loss into nats.

    Arguments:
        targets: the column of each anchor's positive; or a mask of positives, each of which is told from the negatives
            alone: the other positives are left out of its denominator.
        absent: pairs that are no candidates; None where all are.
        count: K of :math:`\log K - L`, the number of candidates that are independent of each other; None where the
            negatives know the anchor, or an older critic scored them: then nothing bounds.
        reason: why, in one sentence.
    """

    targets: Int[Tensor, " anchors"] | Bool[Tensor, "anchors candidates"]
    absent: Bool[Tensor, "anchors candidates"] | None
    count: int | None
    reason: str

    def masked(self, scores: Float[Tensor, "anchors candidates"]) -> Float[Tensor, "anchors candidates"]:
        r"""The scores with :math:`-\infty` where a candidate is absent.

        Raises:
            ValueError: for scores of another shape than the pairing.
        """
        mask = self.absent if self.absent is not None else self.targets if self.targets.dtype == torch.bool else None
        expected = tuple(scores.shape) if mask is None else tuple(mask.shape)
        if tuple(scores.shape) != expected or len(scores) != len(self.targets):
            raise ValueError(
                f"Pairing: scores have shape {tuple(scores.shape)}, expected {len(self.targets)} anchors"
                + ("" if mask is None else f" and {mask.shape[1]} candidates")
            )
        return scores if self.absent is None else scores.masked_fill(self.absent, -torch.inf)


def contrast(
    scores: Float[Tensor, "anchors candidates"], pairing: Pairing, *, miner: WeighsNegatives | None = None
) -> Float[Tensor, " anchors"]:
    r"""Computes the K-pair loss of every anchor, of each of its positives against its negatives.

    .. math::
        L_i = \frac{1}{|P(i)|} \sum_{p \in P(i)} \log\Bigl(1 + \sum_{j \in N(i)} w_{ij} e^{s_{ij} - s_{ip}}\Bigr)

    With one positive it is `contrastive.kpair_loss`, with several `contrastive.supcon_loss` whose positives are not
    kept: AMDIM's and Deep InfoMax's multi-class loss, without a row for every positive.

    Arguments:
        scores: every anchor against every candidate.
        pairing: which pairs are what.
        miner: weighs the negatives; of several positives it sees the first.

    Returns:
        The loss of each anchor, in nats.

    Raises:
        ValueError: as `contrastive.kpair_loss`, and for scores of another shape than the pairing.

    Example:
        >>> rows = torch.arange(2)
        >>> contrast(torch.eye(2), in_batch(rows, rows))
        tensor([0.3133, 0.3133])
    """
    scores, targets = pairing.masked(scores), pairing.targets
    if targets.dtype != torch.bool:
        return kpair_loss(scores, targets, log_weights=_weights(miner, scores, targets))
    # The first positive is the one a miner compares with.
    first = targets.to(torch.int8).argmax(1)
    others = targets.scatter(1, first[:, None], False)
    log_weights = _weights(miner, scores.masked_fill(others, -torch.inf), first)
    return supcon_loss(scores, targets, log_weights=log_weights, keep_positives=False)


def _weights(miner: WeighsNegatives | None, scores: Tensor, targets: Tensor) -> Tensor | None:
    if miner is None:
        return None
    return weighed("contrast", miner, scores, targets, torch.arange(len(scores), device=scores.device))


def bound(
    scores: Float[Tensor, "anchors candidates"], pairing: Pairing, *, miner: WeighsNegatives | None = None
) -> Bound:
    r"""Says what the loss of a pairing may be called in nats.

    .. math::
        \log K - \frac1n \sum_i L_i \le I

    with K the pairing's `count`. Further columns only raise the loss, so a row that holds K independent candidates is
    bounded with :math:`\log K` however many others it holds.

    Arguments:
        scores: of held-out pairs.
        pairing: which pairs are what.
        miner: as in `contrast`.

    Returns:
        As `contrastive.infonce_bound`: without a guarantee the value is nan, and the reason says why.

    Example:
        >>> rows = torch.tensor([0, 0, 1, 1])     # two places each of two images
        >>> bound(torch.eye(4), in_batch(rows, rows)).status
        'not a bound'
    """
    targets, count = pairing.targets, pairing.count
    if count is None:
        return _none(pairing.reason)
    masked = pairing.masked(scores.detach())
    meant = torch.ones_like(masked, dtype=torch.bool) if pairing.absent is None else ~pairing.absent
    if targets.dtype != torch.bool and bool((meant.sum(1) == count).all()):
        return infonce_bound(masked, targets, miner=miner)  # counts what is present
    if bool((meant & (masked == -torch.inf)).any()):
        return _none("candidates of the pairing are absent (padding): how many are independent is not known")
    if miner is not None:
        return _none(f"{miner!r} weighs negatives that come in groups: no theorem covers it")
    loss = float(contrast(scores.detach(), pairing).double().mean())
    constant = math.log(count)
    return Bound(constant - loss, cap=constant, status="bound", constant=constant, reason=pairing.reason)


def _none(reason: str) -> Bound:
    nan = float("nan")
    return Bound(nan, cap=nan, status="not a bound", constant=nan, reason=reason, direction="neither")


def in_batch(anchors: Int[Tensor, " anchors"], candidates: Int[Tensor, " candidates"]) -> Pairing:
    r"""Pairs anchor i with candidate i; all others are its negatives.

    Where two of them share a group (patches of an image: CPC), the negatives know something of the anchor, and nothing
    bounds mutual information.

    Arguments:
        anchors: the group of each anchor.
        candidates: the group of each candidate.

    Raises:
        ValueError: for views of unequal length.

    Example:
        >>> in_batch(torch.arange(3), torch.arange(3)).count
        3
    """
    _check_equal("in_batch", anchors, candidates)
    own = torch.arange(len(anchors), device=anchors.device)
    # Of candidates that all differ an anchor's group may be its own candidate's only.
    elsewhere = torch.isin(anchors, candidates) & (anchors != candidates)
    alone = _count(candidates) == len(candidates) and not bool(elsewhere.any())
    reason = (
        "the other pairs of a batch are independent: log K - L is a lower bound (theorem A)"
        if alone
        else "negatives of the anchor's own group know something of it: nothing bounds (theorem D)"
    )
    return Pairing(own, None, len(candidates) if alone else None, reason)


def two_views(anchors: Int[Tensor, " anchors"], candidates: Int[Tensor, " candidates"]) -> Pairing:
    r"""Pairs the views of a batch with each other (NT-Xent): first all first views, then all second ones.

    Anchors and candidates are the same rows; a row is no candidate of itself. The negatives come two by two, so the
    constant is the logarithm of the number of images (corollary A.3).

    Arguments:
        anchors: the group (image) of each view, ``[2B]``; the halves are the same.
        candidates: the same.

    Raises:
        ValueError: for an odd number of rows, halves that differ, or candidates that differ from the anchors.

    Example:
        >>> two_views(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 0, 1])).targets
        tensor([2, 3, 0, 1])
    """
    _check_equal("two_views", anchors, candidates)
    half = len(anchors) // 2
    if not torch.equal(anchors, candidates):
        raise ValueError("two_views: anchors and candidates are of different groups, expected the same rows")
    if len(anchors) % 2 or not torch.equal(anchors[:half], anchors[half:]):
        raise ValueError(
            f"two_views: got {len(anchors)} rows, expected the first views of all images and then their second views"
        )
    rows = torch.arange(len(anchors), device=anchors.device)
    alone = _count(anchors) == half
    reason = (
        "every row holds one independent negative of each other image: log B - L is a lower bound (corollary A.3)"
        if alone
        else "negatives of the anchor's own group know something of it: nothing bounds (theorem D)"
    )
    return Pairing(
        rows.roll(half), torch.diag(torch.ones_like(rows, dtype=torch.bool)), half if alone else None, reason
    )


def other_groups(anchors: Int[Tensor, " anchors"], candidates: Int[Tensor, " candidates"]) -> Pairing:
    r"""Pairs an anchor with each candidate of its group; its negatives are the candidates of all other groups.

    The local terms of AMDIM and Deep InfoMax: a global feature against every place of the own image, told from all
    places of other images, which all positives share. Other places of the own image are in no denominator. It bounds
    mutual information where every group has as many candidates, as maps of features have places.

    Arguments:
        anchors: the group (image) of each anchor.
        candidates: the group of each candidate.

    Raises:
        ValueError: for an anchor whose group has no candidate.

    Example:
        >>> other_groups(torch.tensor([0, 1]), torch.tensor([0, 0, 1])).targets
        tensor([[ True,  True, False],
                [False, False,  True]])
    """
    positive = anchors[:, None] == candidates[None]
    orphaned = ~positive.any(1)
    if bool(orphaned.any()):
        row = int(orphaned.nonzero()[0])
        raise ValueError(f"other_groups: anchor {row} is of group {int(anchors[row])}, which has no candidate")
    # Of unequal groups some may have no candidate where the positive is in its own, and be told from it by that alone.
    sizes = torch.unique(candidates, return_counts=True)[1]
    alike = bool((sizes == sizes[:1]).all())
    reason = (
        "every row holds one independent negative of each other group: log of their number - L is a lower bound; "
        "with all columns counted it is none (corollary A.4)"
        if alike
        else "groups have different numbers of candidates, and what a place is tells some of them apart: nothing bounds"
    )
    return Pairing(positive, None, len(sizes) if alike else None, reason)


def within_groups(anchors: Int[Tensor, " anchors"], candidates: Int[Tensor, " candidates"]) -> Pairing:
    r"""Pairs anchor i with candidate i; its negatives are the other candidates of its group.

    Time-contrastive networks: another camera at the same moment, told from other moments of the same video. What the
    video shares cannot tell them apart, which is the purpose; and the negatives are not independent of the anchor.

    Arguments:
        anchors: the group (video) of each anchor.
        candidates: the group of each candidate.

    Raises:
        ValueError: for views of unequal length, or whose groups differ.

    Example:
        >>> within_groups(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])).absent
        tensor([[False, False,  True],
                [False, False,  True],
                [ True,  True, False]])
    """
    _check_equal("within_groups", anchors, candidates)
    if not torch.equal(anchors, candidates):
        row = int((anchors != candidates).nonzero()[0])
        raise ValueError(f"within_groups: row {row} is of group {int(anchors[row])} and of {int(candidates[row])}")
    own = torch.arange(len(anchors), device=anchors.device)
    reason = "the negatives are of the anchor's own group: nothing bounds (theorem D)"
    return Pairing(own, anchors[:, None] != candidates[None], None, reason)


def listed(items: Int[Tensor, " anchors"], candidates: Int[Tensor, "anchors k"]) -> Pairing:
    r"""Pairs every anchor with column 0 of its list; the other columns are a queue's (MoCo) or drawn of a bank (CMC).

    A further key of the anchor's own item is no negative of it, and absent.

    Arguments:
        items: the item of each anchor.
        candidates: the item of each candidate; column 0 is the anchor's own.

    Raises:
        ValueError: where column 0 is another item.

    Example:
        >>> listed(torch.tensor([4, 5]), torch.tensor([[4, 5, 4], [5, 0, 1]])).absent
        tensor([[False, False,  True],
                [False, False, False]])
    """
    if candidates.ndim != 2 or len(candidates) != len(items) or not torch.equal(candidates[:, 0], items):
        raise ValueError(
            f"listed: candidates have shape {tuple(candidates.shape)}, expected a row for each of {len(items)} items, "
            "the item itself in column 0"
        )
    absent = candidates == items[:, None]
    absent[:, 0] = False
    reason = "keys of older encoders are scored by another critic than the positive: nothing bounds (theorem D)"
    return Pairing(torch.zeros_like(items), absent, None, reason)


def _count(groups: Tensor) -> int:
    return len(torch.unique(groups))


def _check_equal(function: str, anchors: Tensor, candidates: Tensor) -> None:
    if anchors.shape != candidates.shape:
        raise ValueError(
            f"{function}: got views of unequal length, {len(anchors)} anchors and {len(candidates)} candidates"
        )
