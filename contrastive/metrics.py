r"""Retrieval metrics from a matrix of hits: one value per query, in [0, 1], never NaN.

``hits[i, j]`` says whether the item at rank j (from 0) of query i is relevant; ``relevant[i]`` is
:math:`R_i`, how many relevant items the whole gallery holds. A query without any relevant item has no
such value: leave it out and count it, as `contrastive.evaluate_retrieval` does.

Two quantities are called recall@k. `recall_at` asks whether *any* relevant item is among the first k (metric
learning, nearest-neighbour search; CMC in re-identification), `coverage_at` which share of *all* relevant items is
(information retrieval). They agree where a query has one relevant item.

Items of equal score have no order of their own. With ``ties=`` a metric is its expected value over all orders of
equal items (McSherry and Najork, 2008), in closed form: no order of the data, and no order of ids, changes it. Without,
the order of `hits` counts.

>>> import torch
>>> hits = torch.tensor([[True, False, True], [False, True, True]])
>>> recall_at(hits, 1)
tensor([1., 0.])
>>> map_at_r(hits, torch.tensor([3, 2]))
tensor([0.5556, 0.2500])
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

from contrastive.errors import InputError
from contrastive.ranking import ascending

__all__ = [
    "Ties",
    "average_precision",
    "chance_of_none",
    "coverage_at",
    "knn_at",
    "map_at_r",
    "ndcg_at",
    "precision_at",
    "r_precision",
    "recall_at",
    "reciprocal_rank",
    "retrieval_metrics",
    "tie_groups",
]

# Votes are sums of shares such as 1/3.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Ties:
    """For each item of a ranking the group of equal score that it belongs to.

    Arguments:
        group: its number, from 0 in order of rank.
        before: how many items rank above the group.
        size: items in the group, of the whole gallery.
        hits: relevant items in the group, of the whole gallery.
    """

    group: Int64[Tensor, "queries depth"]
    before: Int64[Tensor, "queries depth"]
    size: Int64[Tensor, "queries depth"]
    hits: Int64[Tensor, "queries depth"]

    def average(
        self, gains: Float[Tensor, "queries depth"], last: Float[Tensor, " queries"] | None = None
    ) -> Float64[Tensor, "queries depth"]:
        """The mean gain of each item's group, which is the expected gain at its rank.

        Arguments:
            gains: in order of rank.
            last: the sum of gains in the group of the last item, of the whole gallery; None: it ends with the ranking.

        Returns:
            The gains for `ndcg_at`.
        """
        sums = torch.zeros_like(gains, dtype=torch.float64).scatter_add_(1, self.group, gains.double())
        if last is not None:
            sums.scatter_(1, self.group[:, -1:], last.double()[:, None])
        return sums.gather(1, self.group) / self.size


def tie_groups(
    scores: Float[Tensor, "queries depth"],
    hits: Bool[Tensor, "queries depth"],
    *,
    last_size: Int[Tensor, " queries"] | None = None,
    last_hits: Int[Tensor, " queries"] | None = None,
) -> Ties:
    """Finds the groups of equal score.

    Arguments:
        scores: in order of rank, not increasing.
        hits: whether the item at each rank is relevant.
        last_size: items in the group of the last item, of the whole gallery; None: the group ends with the ranking.
        last_hits: relevant items among them.

    Returns:
        The groups.

    Example:
        >>> hits = torch.tensor([[False, True, False]])
        >>> ties = tie_groups(torch.tensor([[0.9, 0.9, 0.1]]), hits)
        >>> recall_at(hits, 1), recall_at(hits, 1, ties=ties)
        (tensor([0.]), tensor([0.5000]))

    References:
        | Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores
        | (McSherry and Najork, 2008)
        | https://doi.org/10.1007/978-3-540-78646-7_38
    """
    begins = torch.ones_like(hits)
    begins[:, 1:] = scores[:, 1:] != scores[:, :-1]
    group = begins.cumsum(1) - 1
    of_group = torch.zeros_like(group)
    size, hit = (of_group.scatter_add(1, group, each) for each in (torch.ones_like(group), hits.long()))
    if last_size is not None:
        size.scatter_(1, group[:, -1:], last_size.long()[:, None])
    if last_hits is not None:
        hit.scatter_(1, group[:, -1:], last_hits.long()[:, None])
    before = (size.cumsum(1) - size).gather(1, group)
    return Ties(group, before, size.gather(1, group), hit.gather(1, group))


def recall_at(hits: Bool[Tensor, "queries depth"], k: int, *, ties: Ties | None = None) -> Float32[Tensor, " queries"]:
    r"""Computes recall@k: whether any of the first k items is relevant.

    .. math::
        \text{recall@}k_i = \max_{j \le k} h_{ij}

    This is the recall@k of metric learning and nearest-neighbour search, also called CMC@k; the
    share of *all* relevant items found among the first k is another quantity, `coverage_at`.

    Arguments:
        hits: h, in order of rank.
        k: how many items count, from 1 to the depth.
        ties: groups of equal score; None: the order of `hits` counts.

    Returns:
        0 or 1 for each query, with ties also between.

    Raises:
        InputError: `k` is not in [1, depth].

    Example:
        >>> recall_at(torch.tensor([[False, True], [False, False]]), 2)
        tensor([1., 0.])

    References:
        | Product Quantization for Nearest Neighbor Search (Jégou et al., 2011)
        | https://inria.hal.science/inria-00514462
        | Deep Metric Learning via Lifted Structured Feature Embedding (Song et al., 2016)
        | https://arxiv.org/abs/1511.06452
    """
    _check_depth("recall_at", hits, k)
    return _any(hits, ties, k) if ties is not None else hits[:, :k].any(1).float()


def coverage_at(
    hits: Bool[Tensor, "queries depth"], relevant: Int[Tensor, " queries"], k: int, *, ties: Ties | None = None
) -> Float32[Tensor, " queries"]:
    r"""Computes the share of all relevant items that is found among the first k.

    .. math::
        \frac{1}{R_i} \sum_{j \le k} h_{ij}

    This is the recall@k of information retrieval, scikit-learn, ranx and torchmetrics. It cannot reach 1 where
    :math:`R_i > k`.

    Arguments:
        hits: h, in order of rank.
        relevant: :math:`R_i \ge 1`.
        k: how many items count, from 1 to the depth.
        ties: groups of equal score; None: the order of `hits` counts.

    Returns:
        The share for each query.

    Raises:
        InputError: `k` is not in [1, depth]; some R is 0, or smaller than the number of hits.

    Example:
        >>> coverage_at(torch.tensor([[True, False], [False, False]]), torch.tensor([4, 1]), 2)
        tensor([0.2500, 0.0000])

    References:
        | Introduction to Information Retrieval, section 8.4 (Manning et al., 2008)
        | https://nlp.stanford.edu/IR-book/
    """
    _check_depth("coverage_at", hits, k)
    _check_relevant("coverage_at", hits, relevant, deep=False)
    return _at(_counts(hits, ties), k) / relevant.float()


def precision_at(
    hits: Bool[Tensor, "queries depth"], k: int, *, ties: Ties | None = None
) -> Float32[Tensor, " queries"]:
    r"""Computes precision@k: the share of the first k items that is relevant.

    .. math::
        P_i(k) = \frac1k \sum_{j \le k} h_{ij}

    Arguments:
        hits: h, in order of rank.
        k: how many items count, from 1 to the depth.
        ties: groups of equal score; None: the order of `hits` counts.

    Returns:
        The share for each query. A query with fewer than k relevant items cannot reach 1.

    Raises:
        InputError: `k` is not in [1, depth].

    Example:
        >>> precision_at(torch.tensor([[False, True], [False, False]]), 2)
        tensor([0.5000, 0.0000])

    References:
        | Introduction to Information Retrieval, section 8.4 (Manning et al., 2008)
        | https://nlp.stanford.edu/IR-book/
    """
    _check_depth("precision_at", hits, k)
    return _at(_counts(hits, ties), k) / float(k)


def r_precision(
    hits: Bool[Tensor, "queries depth"], relevant: Int[Tensor, " queries"], *, ties: Ties | None = None
) -> Float32[Tensor, " queries"]:
    r"""Computes R-precision: precision at R, the number of relevant items.

    .. math::
        \frac{1}{R_i} \sum_{j \le R_i} h_{ij}

    Arguments:
        hits: h, in order of rank, at least as deep as the largest R.
        relevant: :math:`R_i \ge 1`.
        ties: groups of equal score; None: the order of `hits` counts.

    Returns:
        The share for each query; 1 where all relevant items come first.

    Raises:
        InputError: some R is 0, or the ranking is not deep enough.

    Example:
        >>> r_precision(torch.tensor([[True, False, True]]), torch.tensor([2]))
        tensor([0.5000])

    References:
        | A Metric Learning Reality Check (Musgrave et al., 2020)
        | https://arxiv.org/abs/2003.08505
    """
    _check_relevant("r_precision", hits, relevant)
    return _r_precision(_counts(hits, ties), relevant)


def map_at_r(
    hits: Bool[Tensor, "queries depth"], relevant: Int[Tensor, " queries"], *, ties: Ties | None = None
) -> Float32[Tensor, " queries"]:
    r"""Computes mean average precision at R: R-precision that rewards the order.

    .. math::
        \frac{1}{R_i} \sum_{j \le R_i} P_i(j)\, h_{ij}, \qquad P_i(j) = \frac1j \sum_{l \le j} h_{il}

    Arguments:
        hits: h, in order of rank, at least as deep as the largest R.
        relevant: :math:`R_i \ge 1`.
        ties: groups of equal score; None: the order of `hits` counts.

    Returns:
        The value of each query; never more than `r_precision`.

    Raises:
        InputError: some R is 0, or the ranking is not deep enough.

    Example:
        >>> map_at_r(torch.tensor([[True, False, True]]), torch.tensor([3]))
        tensor([0.5556])

    References:
        | A Metric Learning Reality Check (Musgrave et al., 2020)
        | https://arxiv.org/abs/2003.08505
    """
    _check_relevant("map_at_r", hits, relevant)
    return _average_precision(hits, relevant, ties, stop=relevant)


def average_precision(
    hits: Bool[Tensor, "queries depth"], relevant: Int[Tensor, " queries"], *, ties: Ties | None = None
) -> Float32[Tensor, " queries"]:
    r"""Computes average precision over the ranking; its mean over queries is mAP.

    .. math::
        \frac{1}{R_i} \sum_{j} P_i(j)\, h_{ij}

    A relevant item that the ranking does not reach counts as 0: a ranking that is cut off reads too
    low, never too high.

    Arguments:
        hits: h, in order of rank; as deep as the gallery for the exact value.
        relevant: :math:`R_i \ge 1`.
        ties: groups of equal score; None: the order of `hits` counts.

    Returns:
        The value of each query.

    Raises:
        InputError: some R is 0, or smaller than the number of hits.

    Example:
        >>> average_precision(torch.tensor([[True, False, True]]), torch.tensor([2]))
        tensor([0.8333])

    References:
        | Introduction to Information Retrieval, section 8.4 (Manning et al., 2008)
        | https://nlp.stanford.edu/IR-book/
    """
    _check_relevant("average_precision", hits, relevant, deep=False)
    return _average_precision(hits, relevant, ties, stop=None)


def reciprocal_rank(hits: Bool[Tensor, "queries depth"], *, ties: Ties | None = None) -> Float32[Tensor, " queries"]:
    r"""Computes the reciprocal rank of the first relevant item; its mean over queries is MRR.

    .. math::
        \max_j \frac{h_{ij}}{j}

    Arguments:
        hits: h, in order of rank.
        ties: groups of equal score; None: the order of `hits` counts.

    Returns:
        The value of each query; 0 where the ranking holds no relevant item.

    Example:
        >>> reciprocal_rank(torch.tensor([[False, True], [False, False]]))
        tensor([0.5000, 0.0000])

    References:
        | The TREC-8 Question Answering Track Report (Voorhees, 1999)
        | https://trec.nist.gov/pubs/trec8/papers/qa_report.pdf
    """
    _check_depth("reciprocal_rank", hits, 1)
    return _reciprocal_rank(hits, ties)


def ndcg_at(
    gains: Float[Tensor, "queries depth"], ideal: Float[Tensor, "queries width"], k: int
) -> Float32[Tensor, " queries"]:
    r"""Computes the normalised discounted cumulative gain at k.

    .. math::
        \frac{\sum_{j \le k} g_{ij} / \log_2(j + 1)}{\sum_{j \le k} g^*_{ij} / \log_2(j + 1)}

    The gain is what is passed: relevance as it is graded (as in scikit-learn), or :math:`2^g - 1` of a grade g
    (Burges et al., 2005). Where scores tie pass `Ties.average` of the gains.

    Arguments:
        gains: g, at least 0, in order of rank.
        ideal: :math:`g^*`, the gains of all relevant items of the gallery, in decreasing order, filled up with
            zeros; those beyond k do not matter.
        k: how many items count, from 1 to the depth.

    Returns:
        The value of each query.

    Raises:
        InputError: `k` is not in [1, depth]; a query has no gain to be had, or gains more than its ideal.

    Example:
        >>> ndcg_at(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[3.0, 1.0]]), 2)
        tensor([0.5213])

    References:
        | Cumulated gain-based evaluation of IR techniques (Järvelin and Kekäläinen, 2002)
        | https://doi.org/10.1145/582415.582418
    """
    _check_depth("ndcg_at", gains, k)
    best = _discounted(ideal, min(k, ideal.shape[1]))
    if not bool((best > 0).all()):
        raise InputError(
            f"ndcg_at: query {int((best > 0).int().argmin())} has no item of positive gain, expected at least 1; "
            "leave such queries out and count them"
        )
    value = _discounted(gains, k) / best
    if bool((value > 1 + 1e-6).any()):
        raise InputError(f"ndcg_at: query {int(value.argmax())} gains more than its ideal, expected all gains in it")
    return value.clamp_max(1.0).float()


def knn_at(
    classes: Int[Tensor, "queries depth"],
    truth: Int[Tensor, " queries"],
    k: int,
    *,
    ties: Ties | None = None,
    last: Float[Tensor, "queries classes"] | None = None,
) -> Float32[Tensor, " queries"]:
    r"""Computes whether the majority of the k nearest neighbours is right: k-NN accuracy.

    .. math::
        \frac{[y_i \in M_i]}{|M_i|}, \qquad M_i = \arg\max_c \sum_{j \le k} [c_{ij} = c]

    Classes with equally many votes share the answer, so that no order of classes matters. A group of equal score that
    is cut at k votes with the share of it that fits, so that no order of the data matters either. For votes weighted by
    score see `contrastive.probing.knn_vote`.

    Arguments:
        classes: c, of the item at each rank.
        truth: y.
        k: neighbours that vote, from 1 to the depth.
        ties: groups of equal score; None: the order of `classes` counts.
        last: how many items of each class the last item's group holds, of the whole gallery; None: the group ends with
            the ranking.

    Returns:
        1, 0, or between them where classes draw.

    Raises:
        InputError: `k` is not in [1, depth].

    Example:
        >>> knn_at(torch.tensor([[0, 1, 1], [0, 1, 2]]), torch.tensor([1, 2]), 3)
        tensor([1.0000, 0.3333])

    References:
        | Nearest Neighbor Pattern Classification (Cover and Hart, 1967)
        | https://doi.org/10.1109/TIT.1967.1053964
    """
    _check_depth("knn_at", classes, k)
    if ties is None:
        weight, classes = torch.ones_like(classes[:, :k], dtype=torch.float32), classes[:, :k]
    else:
        weight = ((k - ties.before) / ties.size.double()).clamp(0.0, 1.0)
    if last is not None and ties is not None:
        share, beyond = weight[:, -1:], ties.group == ties.group[:, -1:]
        votes = last.double() * share
        votes.scatter_add_(1, classes.long(), weight.masked_fill(beyond, 0.0))
        most = votes.amax(1, keepdim=True) - _ROUNDING
        inside = truth < votes.shape[1]
        own = votes.gather(1, truth.long().clamp_max(votes.shape[1] - 1)[:, None])
        return torch.where(inside & (own >= most).squeeze(1), 1.0 / (votes >= most).sum(1), 0.0).float()
    own = torch.where(classes == truth[:, None], weight, 0.0).sum(1)
    if ties is None:
        classes = ascending(classes)
    else:
        classes, order = classes.sort(dim=1)
        weight = weight.gather(1, order)
    # Of each class the votes up to each item of it, the last of which are all.
    others = (classes[:, 1:] != classes[:, :-1]).logical_not_()
    first = torch.nn.functional.pad(others, (1, 0)).logical_not_()
    final = torch.nn.functional.pad(others, (0, 1)).logical_not_()
    upto = weight.cumsum(1)
    before = torch.where(first, upto - weight, 0.0).cummax(1).values
    votes = (upto - before).masked_fill_(~final, 0.0)
    most = votes.amax(1) - _ROUNDING
    return torch.where(own >= most, 1.0 / (votes >= most[:, None]).sum(1), 0.0).float()


def retrieval_metrics(
    hits: Bool[Tensor, "queries depth"],
    relevant: Int[Tensor, " queries"],
    names: Sequence[str],
    *,
    ties: Ties | None = None,
) -> dict[str, Float32[Tensor, " queries"]]:
    """Computes several metrics of hits from one cumulative sum.

    Arguments:
        hits: in order of rank, as deep as the metrics ask for.
        relevant: R of each query, at least 1.
        names: ``"recall@k"`` (any hit; ``"cmc@k"`` is the same), ``"coverage@k"`` (share of the relevant),
            ``"precision@k"``, ``"mrr@k"`` and ``"map@k"`` for any number k; ``"r_precision"``, ``"map@r"``; ``"mrr"``
            and ``"map"``, of the ranking as deep as it is.
        ties: groups of equal score; None: the order of `hits` counts.

    Returns:
        One value per query under each name.

    Raises:
        InputError: for a name that is no metric, some k or R that does not fit the depth, some R of 0.

    Example:
        >>> retrieval_metrics(torch.tensor([[False, True]]), torch.tensor([1]), ["recall@2", "mrr"])
        {'recall@2': tensor([1.]), 'mrr': tensor([0.5000])}
    """
    deep = any(name in ("r_precision", "map@r") for name in names)
    _check_relevant("retrieval_metrics", hits, relevant, deep=deep)
    counts = _counts(hits, ties)
    metrics = {}
    for name in names:
        kind, _, at = name.partition("@")
        if at.isdecimal():
            _check_depth("retrieval_metrics", hits, int(at))
        k = int(at) if at.isdecimal() else hits.shape[1]
        match kind, at:
            case (("recall" | "cmc"), _) if at.isdecimal():
                metrics[name] = (_at(counts, k) > 0).float() if ties is None else _any(hits, ties, k)
            case "coverage", _ if at.isdecimal():
                metrics[name] = _at(counts, k) / relevant.float()
            case "precision", _ if at.isdecimal():
                metrics[name] = _at(counts, k) / float(k)
            case "r_precision", "":
                metrics[name] = _r_precision(counts, relevant)
            case "map", "r":
                metrics[name] = _average_precision(hits, relevant, ties, stop=relevant, counts=counts)
            case "map", _ if at.isdecimal() or "@" not in name:
                metrics[name] = _average_precision(hits, relevant, ties, stop=relevant.new_tensor(k), counts=counts)
            case "mrr", _ if at.isdecimal() or "@" not in name:
                metrics[name] = _reciprocal_rank(hits, ties, k)
            case _:
                raise InputError(f"retrieval_metrics: {name!r} is no metric of hits, expected one such as 'recall@10'")
    return metrics


# --- formulas; with ties, expected values in float64 ------------------------------------------------------------------


def _counts(hits: Tensor, ties: Ties | None) -> Tensor:
    """How many hits up to and including each rank, int32 or, expected, float64: what these metrics are made of."""
    if ties is None:
        return hits.cumsum(1, dtype=torch.int32)
    return _above(hits, ties) + ties.hits * _place(ties) / ties.size.double()


def _above(hits: Tensor, ties: Ties) -> Tensor:
    """How many hits rank above each item's group."""
    counts = torch.nn.functional.pad(hits.cumsum(1), (1, 0))
    return counts.gather(1, ties.before)


def _place(ties: Ties) -> Tensor:
    """The place of each rank in its group, from 1."""
    return torch.arange(1, ties.size.shape[1] + 1, device=ties.size.device) - ties.before


def chance_of_none(size: Int64[Tensor, "*#n"], hits: Int64[Tensor, "*#n"], place: Int64[Tensor, "*#n"]) -> Tensor:
    r"""The chance that none of a group's hits is among its first m: :math:`\binom{t - h}{m} / \binom{t}{m}`.

    Arguments:
        size: t, of the group.
        hits: h.
        place: m.
    """
    t, h, m = size.double(), hits.double(), place.double()
    log = (t - h + 1).lgamma() + (t - m + 1).lgamma() - (t + 1).lgamma()
    chance = (log - (t - h - m + 1).clamp_min(1.0).lgamma()).exp().clamp_max(1.0)
    return torch.where(hits == 0, 1.0, torch.where(place > size - hits, 0.0, chance))


def _at(counts: Tensor, k: int) -> Tensor:
    return counts[:, k - 1].float()


def _any(hits: Tensor, ties: Ties, k: int) -> Tensor:
    missed = torch.where(_above(hits, ties) > 0, 0.0, chance_of_none(ties.size, ties.hits, _place(ties)))
    return (1.0 - missed[:, k - 1]).float()


def _ranks(hits: Tensor) -> Float32[Tensor, " depth"]:
    return torch.arange(1, hits.shape[1] + 1, device=hits.device, dtype=torch.float32)


def _r_precision(counts: Tensor, relevant: Tensor) -> Tensor:
    return counts.gather(1, relevant[:, None].long() - 1).squeeze(1).float() / relevant.float()


def _average_precision(
    hits: Tensor, relevant: Tensor, ties: Ties | None, *, stop: Tensor | None, counts: Tensor | None = None
) -> Tensor:
    ranks = _ranks(hits)
    counted = torch.ones_like(hits) if stop is None else ranks <= stop.reshape(-1, 1)
    if ties is None:
        counts = _counts(hits, None) if counts is None else counts
        return torch.where(counted & hits, counts / ranks, 0.0).sum(1) / relevant
    # A hit stands at place m of its group with chance h / t, and then (m - 1)(h - 1)/(t - 1) others stand before it.
    size, group_hits = ties.size.double(), ties.hits.double()
    before = (_place(ties) - 1) * (group_hits - 1) / (size - 1).clamp_min(1.0)
    precision = (_above(hits, ties) + 1 + before) / ranks.double()
    return (torch.where(counted, group_hits / size * precision, 0.0).sum(1) / relevant).float()


def _reciprocal_rank(hits: Tensor, ties: Ties | None, k: int | None = None) -> Tensor:
    k = hits.shape[1] if k is None else k
    if ties is None:
        return (hits / _ranks(hits))[:, :k].amax(1)
    place = _place(ties)
    first = chance_of_none(ties.size, ties.hits, place - 1) * ties.hits / (ties.size - place + 1).double()
    first = torch.where(_above(hits, ties) > 0, 0.0, first)
    return (first / _ranks(hits).double())[:, :k].sum(1).float()


def _discounted(gains: Tensor, k: int) -> Tensor:
    return gains[:, :k].double() @ torch.arange(2, k + 2, device=gains.device).double().log2().reciprocal()


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_depth(function: str, hits: Tensor, k: int) -> None:
    if isinstance(k, bool) or not 1 <= k <= hits.shape[1]:
        raise InputError(f"{function}: k is {k}, expected 1 to {hits.shape[1]}, the depth of the ranking")


def _check_relevant(function: str, hits: Tensor, relevant: Tensor, *, deep: bool = True) -> None:
    if relevant.shape != hits.shape[:1]:
        raise InputError(
            f"{function}: relevant has shape {tuple(relevant.shape)} for {len(hits)} queries, expected [{len(hits)}]"
        )
    if len(relevant) == 0:
        return
    if int(relevant.min()) < 1:
        raise InputError(
            f"{function}: query {int(relevant.argmin())} has {int(relevant.min())} relevant items, "
            "expected at least 1; leave such queries out and count them"
        )
    if deep and int(relevant.max()) > hits.shape[1]:
        raise InputError(
            f"{function}: the ranking is {hits.shape[1]} deep, expected at least {int(relevant.max())}, the largest R"
        )
    found = hits.sum(1)
    if bool((found > relevant).any()):
        row = int((found > relevant).nonzero()[0])
        raise InputError(
            f"{function}: query {row} has {int(found[row])} hits, expected at most {int(relevant[row])}, "
            "its number of relevant items"
        )
