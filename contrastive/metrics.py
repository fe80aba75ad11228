r"""Retrieval metrics from a matrix of hits: one value per query, in [0, 1], never NaN.

``hits[i, j]`` says whether the item at rank j (from 0) of query i is relevant; ``relevant[i]`` is
:math:`R_i`, how many relevant items the whole gallery holds. A query without any relevant item has no
such value: leave it out and count it, as `contrastive.evaluate_retrieval` does.

>>> import torch
>>> hits = torch.tensor([[True, False, True], [False, True, True]])
>>> recall_at(hits, 1)
tensor([1., 0.])
>>> map_at_r(hits, torch.tensor([3, 2]))
tensor([0.5556, 0.2500])
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from contrastive.errors import InputError

__all__ = [
    "average_precision",
    "map_at_r",
    "precision_at",
    "r_precision",
    "recall_at",
    "reciprocal_rank",
    "retrieval_metrics",
]


def recall_at(hits: Bool[Tensor, "queries depth"], k: int) -> Float32[Tensor, " queries"]:
    r"""Computes recall@k: whether any of the first k items is relevant.

    .. math::
        \text{recall@}k_i = \max_{j \le k} h_{ij}

    This is the recall@k of metric learning and nearest-neighbour search, also called CMC@k; the
    share of *all* relevant items found among the first k is another quantity.

    Arguments:
        hits: h, in order of rank.
        k: how many items count, from 1 to the depth.

    Returns:
        0 or 1 for each query.

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
    return hits[:, :k].any(1).float()


def precision_at(hits: Bool[Tensor, "queries depth"], k: int) -> Float32[Tensor, " queries"]:
    r"""Computes precision@k: the share of the first k items that is relevant.

    .. math::
        P_i(k) = \frac1k \sum_{j \le k} h_{ij}

    Arguments:
        hits: h, in order of rank.
        k: how many items count, from 1 to the depth.

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
    return hits[:, :k].sum(1) / float(k)


def r_precision(hits: Bool[Tensor, "queries depth"], relevant: Int[Tensor, " queries"]) -> Float32[Tensor, " queries"]:
    r"""Computes R-precision: precision at R, the number of relevant items.

    .. math::
        \frac{1}{R_i} \sum_{j \le R_i} h_{ij}

    Arguments:
        hits: h, in order of rank, at least as deep as the largest R.
        relevant: :math:`R_i \ge 1`.

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
    return _r_precision(_counts(hits), relevant)


def map_at_r(hits: Bool[Tensor, "queries depth"], relevant: Int[Tensor, " queries"]) -> Float32[Tensor, " queries"]:
    r"""Computes mean average precision at R: R-precision that rewards the order.

    .. math::
        \frac{1}{R_i} \sum_{j \le R_i} P_i(j)\, h_{ij}, \qquad P_i(j) = \frac1j \sum_{l \le j} h_{il}

    Arguments:
        hits: h, in order of rank, at least as deep as the largest R.
        relevant: :math:`R_i \ge 1`.

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
    return _average_precision(hits, _counts(hits), relevant, stop=relevant)


def average_precision(
    hits: Bool[Tensor, "queries depth"], relevant: Int[Tensor, " queries"]
) -> Float32[Tensor, " queries"]:
    r"""Computes average precision over the ranking; its mean over queries is mAP.

    .. math::
        \frac{1}{R_i} \sum_{j} P_i(j)\, h_{ij}

    A relevant item that the ranking does not reach counts as 0: a ranking that is cut off reads too
    low, never too high.

    Arguments:
        hits: h, in order of rank; as deep as the gallery for the exact value.
        relevant: :math:`R_i \ge 1`.

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
    return _average_precision(hits, _counts(hits), relevant, stop=None)


def reciprocal_rank(hits: Bool[Tensor, "queries depth"]) -> Float32[Tensor, " queries"]:
    r"""Computes the reciprocal rank of the first relevant item; its mean over queries is MRR.

    .. math::
        \max_j \frac{h_{ij}}{j}

    Arguments:
        hits: h, in order of rank.

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
    return (hits / _ranks(hits)).amax(1)


def retrieval_metrics(
    hits: Bool[Tensor, "queries depth"], relevant: Int[Tensor, " queries"], *, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, Float32[Tensor, " queries"]]:
    """Computes what `contrastive.evaluate_retrieval` reports, from one cumulative sum.

    Arguments:
        hits: in order of rank, at least as deep as the largest k and the largest R.
        relevant: R of each query, at least 1.
        ks: the k of recall@k.

    Returns:
        One value per query under ``"recall@k"`` for each k, ``"precision@1"``, ``"r_precision"`` and
        ``"map@r"``.

    Raises:
        InputError: some k or R does not fit the depth, or some R is 0.

    Example:
        >>> retrieval_metrics(torch.tensor([[False, True]]), torch.tensor([1]), ks=(2,))["recall@2"]
        tensor([1.])
    """
    for k in ks:
        _check_depth("retrieval_metrics", hits, k)
    _check_relevant("retrieval_metrics", hits, relevant)
    counts = _counts(hits)
    metrics = {f"recall@{k}": (counts[:, k - 1] > 0).float() for k in ks}
    metrics["precision@1"] = counts[:, 0].float()
    metrics["r_precision"] = _r_precision(counts, relevant)
    metrics["map@r"] = _average_precision(hits, counts, relevant, stop=relevant)
    return metrics


def _counts(hits: Bool[Tensor, "queries depth"]) -> Int[Tensor, "queries depth"]:
    """How many hits up to and including each rank: what all of these metrics are made of."""
    return hits.cumsum(1, dtype=torch.int32)


def _ranks(hits: Bool[Tensor, "queries depth"]) -> Float32[Tensor, " depth"]:
    return torch.arange(1, hits.shape[1] + 1, device=hits.device, dtype=torch.float32)


def _r_precision(
    counts: Int[Tensor, "queries depth"], relevant: Int[Tensor, " queries"]
) -> Float32[Tensor, " queries"]:
    return counts.gather(1, relevant[:, None].long() - 1).squeeze(1) / relevant.float()


def _average_precision(
    hits: Bool[Tensor, "queries depth"],
    counts: Int[Tensor, "queries depth"],
    relevant: Int[Tensor, " queries"],
    stop: Int[Tensor, " queries"] | None,
) -> Float32[Tensor, " queries"]:
    ranks = _ranks(hits)
    counted = hits if stop is None else hits & (ranks <= stop[:, None])
    return torch.where(counted, counts / ranks, 0.0).sum(1) / relevant


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
