r"""Masks: negatives that are dropped, or kept alone, for what is known of anchors and candidates.

A fact is an integer a row: a label, a group, an id. A pair has one fact, so where there are as many columns as pairs,
the pairs' serve: a symmetric loss meets its queue in one direction only.
"""

import math
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrastive.factors import normalize, product
from contrastive.ranking import columns_of_largest
from contrastive.scores import MiningFacts, check_rows, check_targets, eager_on_cpu, negatives
from miners._rows import SCORED, refuse_broken_rows
from miners.miner import Miner, check_count

__all__ = ["detect_false_negatives", "duplicates", "empty_rows", "false_negatives", "same_group", "same_label"]


def same_label(labels: Int[Tensor, " anchors"], candidates: Int[Tensor, " candidates"] | None = None) -> Miner:
    r"""Drops the negatives that have the anchor's label: known false negatives, by class or by cluster.

    .. math::
        w_{ij} = 0 \text{ if } c_j = c_i, \; j \ne t(i), \text{ else } 1

    Which negatives are left depends on the data, so nothing bounds mutual information.

    Arguments:
        labels: :math:`c_i`, the label of each pair; any integers, pseudo-labels included, compared exactly.
        candidates: :math:`c_j`, the label of each column, where there are others than the pairs': the pairs' and then
            the queue's. Where a matrix has as many columns as pairs, `labels` serve.

    Raises:
        ValueError: for labels that are no integers, and, when called, for scores with another number of columns, or
            anchors without a label.

    Example:
        >>> same_label(torch.tensor([7, 8, 7]))(torch.zeros(3, 3), torch.arange(3))
        tensor([[0., 0., -inf],
                [0., 0., 0.],
                [-inf, 0., 0.]])

        With a queue:

        >>> from contrastive import Cosine, KPairLoss
        >>> from miners import Queue
        >>> x, y, labels = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([7, 8, 7])
        >>> queue = Queue(8, 4)
        >>> queue.enqueue(torch.randn(5, 4), torch.tensor([7, 7, 8, 9, 9]))
        >>> miner = same_label(labels, torch.cat([labels, queue.ids()]))
        >>> loss = KPairLoss(Cosine(), miner=miner)(x, y, negatives=queue.keys())

    References:
        | SINCERE: Supervised Information Noise-Contrastive Estimation REvisited (Feeney and Hughes, 2023)
        | https://arxiv.org/abs/2309.14277
    """
    own, others = _checked("same_label", "labels", labels, candidates)
    return Miner(
        partial(_by_fact, function="same_label", what="labels", own=own, others=others, drop=True),
        name=_name("same_label", "labels", own, others),
        facts=MiningFacts(why="drops negatives by their label: what is left is not drawn like the positive"),
    )


def same_group(groups: Int[Tensor, " anchors"], candidates: Int[Tensor, " candidates"] | None = None) -> Miner:
    r"""Keeps only the negatives of the anchor's group: its speaker, sequence or image (CPC).

    .. math::
        w_{ij} = 1 \text{ if } g_j = g_i, \text{ else } 0

    Such negatives share a cause with the anchor, so in general nothing bounds :math:`I(X;Y)` (``docs/theory.md``,
    theorem D): what is bounded is :math:`I(X; Y \mid \text{group})`. That is at most :math:`I(X;Y)` where the group is
    a function of the anchor (corollary A.2), which only the user can know.

    Arguments:
        groups: :math:`g_i`, the group of each pair; any integers, compared exactly.
        candidates: :math:`g_j`, the group of each column, as in `same_label`.

    Raises:
        ValueError: as `same_label`.

    Example:
        >>> same_group(torch.tensor([0, 0, 1]))(torch.zeros(3, 3), torch.arange(3))
        tensor([[0., 0., -inf],
                [0., 0., -inf],
                [-inf, -inf, 0.]])

    References:
        | Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018)
        | https://arxiv.org/abs/1807.03748
        | On Mutual Information Maximization for Representation Learning (Tschannen et al., 2020)
        | https://arxiv.org/abs/1907.13625
    """
    own, others = _checked("same_group", "groups", groups, candidates)
    why = (
        "keeps negatives that share the anchor's group, which bounds I(X;Y | group): at most I(X;Y) only where the "
        "group is a function of the anchor (corollary A.2), otherwise nothing bounds I(X;Y)"
    )
    return Miner(
        partial(_by_fact, function="same_group", what="groups", own=own, others=others, drop=False),
        name=_name("same_group", "groups", own, others),
        facts=MiningFacts(why=why),
    )


def duplicates(
    ids: Int[Tensor, " anchors"] | None = None,
    candidates: Int[Tensor, " candidates"] | None = None,
    *,
    threshold: float | None = None,
) -> Miner:
    r"""Drops the negatives that are the anchor's own item again, by id or by score.

    .. math::
        w_{ij} = 0 \text{ if } d_j = d_i \text{ or } s_{ij} \ge \theta, \; j \ne t(i), \text{ else } 1

    An id finds what was drawn twice, or an older key of the item in a queue; a threshold finds near copies. What is
    dropped depends on the data, so nothing bounds mutual information.

    Arguments:
        ids: :math:`d_i`, the item of each pair; any integers, compared exactly. None: by score alone.
        candidates: :math:`d_j`, the item of each column, as in `same_label`.
        threshold: :math:`\theta`, in units of the scores: a cosine of 0.95 at temperature 0.1 is 9.5. None: by id
            alone.

    Raises:
        ValueError: as `same_label`; where neither ids nor a threshold are given, for candidates' ids alone, or a
            threshold that is not finite.

    Example:
        >>> scores = torch.tensor([[1.0, 0.2, 0.9], [0.2, 1.0, 0.3], [0.9, 0.3, 1.0]])
        >>> duplicates(torch.tensor([5, 6, 5]))(scores, torch.arange(3))
        tensor([[0., 0., -inf],
                [0., 0., 0.],
                [-inf, 0., 0.]])
        >>> duplicates(threshold=0.25)(scores, torch.arange(3))
        tensor([[0., 0., -inf],
                [0., 0., -inf],
                [-inf, -inf, 0.]])
    """
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"duplicates: threshold is {threshold}, expected a finite score or None")
    facts = MiningFacts(why="drops copies of the anchor's item: how many there are depends on the data")
    if ids is None:
        if threshold is None or candidates is not None:
            given = "nothing" if candidates is None else "ids of candidates"
            raise ValueError(f"duplicates: got {given}, expected ids of the anchors, a threshold or both")
        return Miner(partial(_near, threshold=threshold), name=f"duplicates(threshold={threshold})", facts=facts)
    own, others = _checked("duplicates", "ids", ids, candidates)
    return Miner(
        partial(_copies, own=own, others=others, threshold=threshold),
        name=_name("duplicates", "ids", own, others, "" if threshold is None else f", threshold={threshold}"),
        facts=facts,
    )


def detect_false_negatives(
    support: Float[Tensor, "anchors views d"],
    candidates: Float[Tensor, "candidates d"],
    targets: Bool[Tensor, "anchors candidates"] | Int[Tensor, " anchors"] | None = None,
    *,
    k: int = 10,
    threshold: float = 0.7,
) -> Bool[Tensor, "anchors candidates"]:
    r"""Finds candidates that are probably of the anchor's class, by their likeness to several views of the anchor.

    .. math::
        F(i) = \operatorname{top}_k \{q_{ij}\} \cap \{j : q_{ij} > \theta\}, \qquad
        q_{ij} = \max_v \cos(z_{iv}, z_j)

    `false_negatives` drops them. To attract them instead, hand them to `contrastive.supcon_loss` together with the
    positives:

    >>> from contrastive import supcon_loss
    >>> x, y = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
    >>> found = detect_false_negatives(torch.stack([x, y], 1), y)
    >>> found
    tensor([[False,  True, False],
            [ True, False, False],
            [False, False, False]])
    >>> loss = supcon_loss(x @ y.T, found | torch.eye(3, dtype=torch.bool))

    Arguments:
        support: :math:`z_{iv}`, some views of each anchor, in the space of the candidates; they need not be those that
            are trained. Of any length.
        candidates: :math:`z_j`, the pairs' and then the queue's.
        targets: the anchor's own columns, which are never found and take no place among the k: a mask, or one column
            per anchor, or None for the diagonal. Candidates without own columns: a mask of False.
        k: how many candidates of an anchor are looked at, at least 1.
        threshold: :math:`\theta`, a cosine.

    Returns:
        The mask of F. Among equal cosines any count as the k largest. Cosines are formed in blocks: memory beyond the
        mask does not grow with the number of anchors.

    Raises:
        ValueError: for widths that differ, NaN or infinite values, a `k` below 1 or a `threshold` that is NaN.

    References:
        | Boosting Contrastive Self-Supervised Learning with False Negative Cancellation (Huynh et al., 2022)
        | https://arxiv.org/abs/2011.11765
    """
    views, rows = _checked_views("detect_false_negatives", support, candidates, k, threshold)
    if targets is not None and targets.dtype == torch.bool:
        if targets.shape != (len(views), len(rows)):
            raise ValueError(
                f"detect_false_negatives: targets are a mask of shape {tuple(targets.shape)}, "
                f"expected {(len(views), len(rows))}"
            )
        apart = targets.to(views.device)
    else:
        columns = check_targets("detect_false_negatives", len(views), len(rows), targets, views.device)
        apart = torch.zeros(len(views), len(rows), dtype=torch.bool, device=views.device)
        apart.scatter_(1, columns[:, None], True)
    return _detected(views, rows, apart, k, threshold)


def false_negatives(
    support: Float[Tensor, "anchors views d"],
    candidates: Float[Tensor, "candidates d"],
    *,
    k: int = 10,
    threshold: float = 0.7,
) -> Miner:
    r"""Drops the negatives that `detect_false_negatives` finds (elimination).

    .. math::
        w_{ij} = 0 \text{ if } j \in F(i), \text{ else } 1

    The target and absent candidates take no place among the k. Dropping the likeliest negatives, it leaves nothing that
    bounds mutual information (``docs/theory.md``, theorem D).

    Arguments:
        support: as in `detect_false_negatives`; row i belongs to pair i.
        candidates: as in `detect_false_negatives`, the pairs' first. Where a matrix has as many columns as pairs,
            these alone serve.
        k: as in `detect_false_negatives`.
        threshold: as in `detect_false_negatives`.

    Raises:
        ValueError: as `detect_false_negatives`, and, when called, for scores with another number of columns, or anchors
            without views.

    Example:
        >>> y = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
        >>> false_negatives(y[:, None], y)(y @ y.T, torch.arange(3))
        tensor([[0., -inf, 0.],
                [-inf, 0., 0.],
                [0., 0., 0.]])

    References:
        | Boosting Contrastive Self-Supervised Learning with False Negative Cancellation (Huynh et al., 2022)
        | https://arxiv.org/abs/2011.11765
    """
    views, rows = _checked_views("false_negatives", support, candidates, k, threshold)
    return Miner(
        partial(_eliminated, views=views, candidates=rows, k=k, threshold=threshold),
        name=f"false_negatives({len(views)} anchors, {len(rows)} candidates, k={k}, threshold={threshold})",
        facts=MiningFacts(why="drops the negatives that are likest to the anchor"),
    )


def empty_rows(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    log_weights: Float[Tensor, "anchors candidates"] | None = None,
) -> Bool[Tensor, " anchors"]:
    r"""Finds the anchors that are left with their positive alone: their loss is 0, and they teach nothing.

    Arguments:
        scores: as in `contrastive.kpair_loss`.
        targets: as in `contrastive.kpair_loss`.
        log_weights: what a miner returned; None: no mining.

    Returns:
        Whether no negative is both present and of any weight. Padding (a row of nothing but :math:`-\infty`) is no
        anchor, and not counted.

    Raises:
        ValueError: for shapes and dtypes that do not fit.

    Example:
        >>> scores = torch.zeros(3, 3)
        >>> log_weights = same_label(torch.tensor([7, 7, 7]))(scores, torch.arange(3))
        >>> empty_rows(scores, log_weights=log_weights).sum()
        tensor(3)
    """
    scores, targets, log_weights = check_rows("empty_rows", scores, targets, log_weights)
    kept = negatives(scores, targets)
    if log_weights is not None:
        kept = kept & (log_weights != -torch.inf)
    return ~kept.any(1) & (scores != -torch.inf).any(1)


def _checked(function: str, what: str, own: Tensor, others: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both kinds of facts as int64; without candidates' the anchors' stand for them."""
    for facts in (own, *(() if others is None else (others,))):
        if not isinstance(facts, Tensor):
            raise ValueError(f"{function}: {what} are of type {type(facts).__name__}, expected a tensor of integers")
        if facts.dtype == torch.bool or facts.is_floating_point() or facts.is_complex():
            # A float32 merges numbers beyond 2^24.
            raise ValueError(f"{function}: {what} have dtype {facts.dtype}, expected an integer dtype")
        if facts.ndim != 1:
            raise ValueError(f"{function}: {what} have shape {tuple(facts.shape)}, expected one for each row")
    own = own.long()
    return own, own if others is None else others.long()


def _name(function: str, what: str, own: Tensor, others: Tensor, options: str = "") -> str:
    candidates = "" if others is own else f", {len(others)} candidates"
    return f"{function}({len(own)} {what}{candidates}{options})"


def _rows_of(function: str, what: str, count: int, scores: Tensor, anchors: Tensor | None) -> Tensor:
    """The numbers of the anchors whose rows these are, all of them below `count`."""
    if anchors is None:
        if len(scores) > count:
            raise ValueError(
                f"{function}: got {what} of {count} anchors, expected those of {len(scores)}, "
                "on several ranks of all ranks (gather_rows)"
            )
        return torch.arange(len(scores), device=scores.device)
    if anchors.shape != scores.shape[:1]:
        raise ValueError(f"{function}: anchors have shape {tuple(anchors.shape)}, expected [{len(scores)}]")
    anchors = anchors.to(scores.device)
    if eager_on_cpu(anchors) and not (int(anchors.min()) >= 0 and int(anchors.max()) < count):
        raise ValueError(
            f"{function}: got {what} of {count} anchors, "
            f"expected those of rows {int(anchors.min())} to {int(anchors.max())}"
        )
    return anchors


def _other_columns(function: str, what: str, own: int, others: int, scores: Tensor) -> ValueError:
    return ValueError(
        f"{function}: got {what} of {own} anchors and {others} candidates for scores of shape {tuple(scores.shape)}, "
        f"expected {' or '.join(str(n) for n in dict.fromkeys((others, own)))} columns; "
        f"with a queue also pass {what} of all candidates, on several ranks those of all ranks (gather_rows)"
    )


def _equal(function: str, what: str, scores: Tensor, anchors: Tensor | None, own: Tensor, others: Tensor) -> Tensor:
    """Which candidates have the anchor's fact."""
    rows = _rows_of(function, what, len(own), scores, anchors)
    if scores.shape[1] not in (len(others), len(own)):
        raise _other_columns(function, what, len(own), len(others), scores)
    own = own.to(scores.device)
    columns = others.to(scores.device) if scores.shape[1] == len(others) else own
    return own[rows][:, None] == columns


def _by_fact(
    scores: Tensor,
    targets: Tensor,
    anchors: Tensor | None,
    *,
    function: str,
    what: str,
    own: Tensor,
    others: Tensor,
    drop: bool,
) -> Tensor:
    equal = _equal(function, what, scores, anchors, own, others)
    return _without(scores, targets, equal if drop else ~equal)


def _near(scores: Tensor, targets: Tensor, anchors: Tensor | None, *, threshold: float) -> Tensor:
    return _without(scores, targets, scores >= threshold)


def _copies(
    scores: Tensor,
    targets: Tensor,
    anchors: Tensor | None,
    *,
    own: Tensor,
    others: Tensor,
    threshold: float | None,
) -> Tensor:
    copies = _equal("duplicates", "ids", scores, anchors, own, others)
    return _without(scores, targets, copies if threshold is None else copies | (scores >= threshold))


def _without(scores: Tensor, targets: Tensor, dropped: Tensor) -> Tensor:
    """Log-weights of 0 but for what is dropped; the target never is."""
    return torch.zeros_like(scores).masked_fill_(dropped.scatter(1, targets[:, None], False), -torch.inf)


def _checked_views(
    function: str, support: Tensor, candidates: Tensor, k: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Views and candidates as unit rows."""
    check_count(function, k)
    if math.isnan(threshold):
        raise ValueError(f"{function}: threshold is {threshold}, expected a cosine")
    if support.ndim != 3 or candidates.ndim != 2 or support.shape[2] != candidates.shape[1] or not support.shape[1]:
        raise ValueError(
            f"{function}: got support of shape {tuple(support.shape)} and candidates of shape "
            f"{tuple(candidates.shape)}, expected [anchors, views, d] and [candidates, d], with a view at least"
        )
    if not (support.is_floating_point() and candidates.is_floating_point()):
        raise ValueError(
            f"{function}: got support of dtype {support.dtype} and candidates of dtype {candidates.dtype}, "
            "expected floating-point dtypes"
        )
    refuse_broken_rows(function, "support", support)
    refuse_broken_rows(function, "candidates", candidates)
    views, rows = normalize(support.detach()), normalize(candidates.detach())
    dtype = torch.promote_types(views.dtype, rows.dtype)
    return views.to(dtype), rows.to(dtype)


def _detected(views: Tensor, candidates: Tensor, apart: Tensor, k: int, threshold: float) -> Tensor:
    """The mask of false negatives; `apart` are the columns that take no part."""
    found = torch.zeros_like(apart)
    if not found.numel():
        return found
    step = max(1, SCORED // (views.shape[1] * len(candidates)))
    for start in range(0, len(views), step):
        rows = slice(start, start + step)
        block = views[rows]
        likeness = product(block.flatten(0, 1), candidates).view(*block.shape[:2], -1).amax(1)
        likeness.masked_fill_(apart[rows], -torch.inf)
        columns = columns_of_largest(likeness, min(k, len(candidates)))
        values = likeness.gather(1, columns)
        found[rows] = found[rows].scatter(1, columns, values > threshold)
    return found


def _eliminated(
    scores: Tensor,
    targets: Tensor,
    anchors: Tensor | None,
    *,
    views: Tensor,
    candidates: Tensor,
    k: int,
    threshold: float,
) -> Tensor:
    rows = _rows_of("false_negatives", "views", len(views), scores, anchors)
    if scores.shape[1] not in (len(candidates), len(views)) or scores.shape[1] > len(candidates):
        raise _other_columns("false_negatives", "views", len(views), len(candidates), scores)
    apart = ~negatives(scores.detach(), targets)
    views, candidates = views.to(scores.device), candidates[: scores.shape[1]].to(scores.device)
    return _without(scores, targets, _detected(views[rows], candidates, apart, k, threshold))
