r"""Nearest neighbours, and retrieval evaluated by them.

>>> import torch
>>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
>>> search(embeddings, embeddings, 1, exclude_self=True).ids.flatten()
tensor([1, 0, 3, 2])
>>> evaluate_retrieval(embeddings, ["a", "a", "b", "b"], ks=(1,)).mean["recall@1"]
1.0
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from contrastive.assessment import (
    DEFAULT_KS,
    DEFAULT_METRICS,
    METRICS,
    Assessment,
    RetrievalResult,
    fitting_ks,
    result_of,
)
from contrastive.errors import InputError
from contrastive.neighbours import (
    RANKING_BLOCK,
    Backend,
    Metric,
    Progress,
    Ranking,
    Rows,
    Search,
    Target,
    as_pair,
    as_rows,
    distances,
    even_width,
    filled_up,
    in_order_of_ids,
    own_rows,
    precision,
    prepared,
    raised,
    rows_in_order,
    similarity,
    unit_rows,
)
from contrastive.relevance import Labels, Relevant, label_ids
from contrastive.shards import Shard, search_shards

__all__ = [
    "METRICS",
    "RANKING_BLOCK",
    "Backend",
    "Labels",
    "Metric",
    "Ranking",
    "Relevant",
    "RetrievalResult",
    "Rows",
    "Shard",
    "as_pair",
    "as_rows",
    "evaluate_retrieval",
    "instance_recall",
    "label_ids",
    "raised",
    "search",
    "similarity",
    "unit_rows",
]


def search(
    queries: Rows | Shard,
    gallery: Rows | Shard,
    k: int,
    *,
    metric: Metric = "cosine",
    backend: Backend = "auto",
    exclude_self: bool | Int64[Tensor, " queries"] = False,
    gallery_ids: Int64[Tensor, " gallery"] | None = None,
    nprobe: int = 32,
    on_progress: Progress | None = None,
) -> Ranking:
    r"""Finds the k nearest gallery items of every query, exactly unless a FAISS index is asked for.

    The score is :math:`\cos(x, y)`, :math:`x^\top y` or :math:`-\lVert x - y \rVert^2`. Items of equal
    score are ordered by id, also where the cut at k falls between them: by row, or by `gallery_ids`, and then no order
    of the rows matters. Both exact back ends return the same ids but for scores that differ by rounding. Memory beyond
    inputs and result is bounded; a memory-mapped gallery is read a block at a time.

    Arguments:
        queries: shape [queries, dim], finite. Half precision is raised to float32. With a `Shard` as gallery a `Shard`,
            or rows that are the same on all ranks.
        gallery: shape [gallery, dim], on the device of `queries`; or a `Shard` of rows that several ranks hold.
        k: how many to return, 1 to the size of the gallery (less 1 with `exclude_self`).
        metric: ``"cosine"`` (a zero vector has cosine 0 to everything), ``"inner_product"`` or
            ``"euclidean"``.
        backend: ``"torch"`` computes on the device and in the precision of its input; ``"faiss"``
            computes in float32 on the CPU, or on a GPU it finds; ``"auto"`` takes FAISS for
            float32 on the CPU where it is installed (not on macOS, where its OpenMP runtime clashes
            with torch's), else torch. Without a GPU it then searches as exactly in less time: cheap products of
            torch leave out what cannot be near, FAISS scores the rest. A FAISS factory string such as
            ``"IVF4096,Flat"`` or ``"HNSW32"`` builds that index and searches approximately; what it finds is scored
            exactly.
        exclude_self: the gallery is the queries, and row i must not return itself. It is left out by
            its id: exact duplicates of it stay. Or the id that each query has in the gallery, where the queries are
            some of its rows.
        gallery_ids: what to call the rows of the gallery, each once; None: 0, 1, ...
        nprobe: of an inverted file (IVF), how many of its lists are searched.
        on_progress: is told how many steps of the search are done, and of how many.

    Returns:
        The ranking, on the device of `queries`; of a `Shard` for this rank's own rows.

    Raises:
        InputError: for shapes, dtypes or a `k` that do not fit, NaN or infinite values, scores that
            overflow, ids that repeat, FAISS asked for but not there.

    Example:
        >>> gallery = torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 3.0]])
        >>> search(torch.tensor([[1.0, 0.0]]), gallery, 2).ids
        tensor([[1, 2]])
        >>> search(torch.tensor([[1.0, 0.0]]), gallery, 2, gallery_ids=torch.tensor([7, 40, 12])).ids
        tensor([[40, 12]])

    References:
        | Billion-scale similarity search with GPUs (Johnson et al., 2017)
        | https://arxiv.org/abs/1702.08734
    """
    if isinstance(gallery, Shard):
        if gallery_ids is not None:
            raise InputError("search: gallery_ids are given, and a shard has its own")
        return search_shards(
            "search",
            queries,
            gallery,
            k,
            metric=metric,
            backend=backend,
            exclude_self=exclude_self,
            nprobe=nprobe,
            on_progress=on_progress,
        )
    if isinstance(queries, Shard):
        raise InputError("search: queries are a shard and the gallery is not, expected a shard as well")
    queries, gallery = as_pair("search", queries, gallery, ("queries", "gallery"))
    if exclude_self is True and len(queries) != len(gallery):
        raise InputError(
            f"search: exclude_self=True with {len(queries)} queries and a gallery of {len(gallery)}, "
            "expected the same rows as both"
        )
    ids: Tensor | None = None
    if gallery_ids is not None:
        ids, order = in_order_of_ids("search", gallery_ids, gallery)
        gallery = rows_in_order(gallery, order)
        exclude_self = gallery_ids if exclude_self is True else exclude_self
    own = own_rows("search", exclude_self, queries, len(gallery), ids)
    largest = len(gallery) - (own is not None)
    if isinstance(k, bool) or not 1 <= k <= largest:
        rest = " without the query itself" if own is not None else ""
        raise InputError(f"search: k is {k}, expected 1 to {largest}, the size of the gallery{rest}")
    target = Target("search", gallery, metric=metric, backend=backend, nprobe=nprobe)
    found = Search("search", queries, target, own=own, progress=on_progress)
    parts = [(strip_ids, strip_scores) for _, strip_ids, strip_scores in found.rankings(k)]
    ranked, scores = (torch.cat(column) for column in zip(*parts, strict=True))
    return Ranking(ranked if ids is None else torch.where(ranked < 0, -1, ids[ranked.clamp_min(0)]), scores)


def evaluate_retrieval(
    embeddings: Rows | Shard,
    labels: Labels | None = None,
    *,
    gallery: Rows | Shard | None = None,
    gallery_labels: Labels | None = None,
    relevant: Relevant | None = None,
    gallery_ids: Int64[Tensor, " gallery"] | None = None,
    ks: Sequence[int] = DEFAULT_KS,
    metrics: Sequence[str] = DEFAULT_METRICS,
    metric: Metric = "cosine",
    backend: Backend = "auto",
    nprobe: int = 32,
    sample: int | None = None,
    on_progress: Progress | None = None,
) -> RetrievalResult:
    r"""Evaluates embeddings by retrieval: what is relevant should be near.

    Without a gallery every row searches among all the others (leave one out; the row itself is left
    out by its id). A gallery item is relevant if its label is the query's; where rows have several labels each, if
    they share one; or if `relevant` lists it. A query without any
    relevant item counts for nothing and is counted in ``excluded``; it stays in the gallery.

    Items of equal score have no order: every metric is then its mean over all of their orders, in closed form, so
    that neither the order of rows nor that of ids has a part in it. Collapsed embeddings read chance. (Of ``"knn"``
    the votes are shared out, and the majority of shares decides: of a collapsed encoder it is the largest class.)

    Arguments:
        embeddings: shape [queries, dim], finite; or a `Shard`, with the labels or lists of its own rows.
        labels: one a row: integers (of 64 bits, compared exactly) or strings. Or several a row: collections
            of them, or a matrix of 0 and 1.
        gallery: shape [gallery, dim], or a `Shard`: search in these rows instead. Nothing is left out of them.
        gallery_labels: their labels, of the same kind as `labels`.
        relevant: in the place of labels, for each query the ids of its relevant items, or their grades by id (0: not
            relevant). The captions of an image, say.
        gallery_ids: what `relevant` calls the rows of the gallery; None: 0, 1, ...
        ks: the k of the metrics at k. Of the default, those beyond the gallery are dropped and listed in
            ``dropped``.
        metrics: of ``"recall"`` (any hit among the first k), ``"cmc"`` (the same under its other name),
            ``"coverage"`` (the share of all relevant items among the first k: the recall of information retrieval),
            ``"precision"``, ``"ndcg"`` (by grade, or number of labels shared) and ``"knn"`` (majority vote, where a row
            has one label), at every k, or as ``"recall@3"`` at one; ``"r_precision"``, ``"map@r"``; and ``"map"`` and
            ``"mrr"`` of the whole gallery, or ``"map@10"``, ``"mrr@10"`` of the first. The whole is counted; it is
            ranked, at length, where an index or several ranks search.
        metric: as in `search`.
        backend: as in `search`. With an approximate one ``index_recall`` says what it missed.
        nprobe: as in `search`.
        sample: search for so many of the queries that count, drawn by a fixed seed, in the whole gallery; None: for all
            of them. The intervals over queries are those of such a draw.
        on_progress: as in `search`.

    Returns:
        Mean, values and interval under the name of each metric, ``"recall@1"``: see `contrastive.metrics`.

    Raises:
        InputError: as `search`; labels that do not fit the rows; no query with a relevant item; a k
            that was passed and exceeds the gallery; a name that is no metric.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
        >>> result = evaluate_retrieval(embeddings, ["a", "b", "a", "c"], ks=(1, 2))
        >>> {name: round(value, 2) for name, value in result.mean.items()}
        {'recall@1': 0.0, 'recall@2': 1.0, 'precision@1': 0.0, 'r_precision': 0.0, 'map@r': 0.0}
        >>> result.excluded
        2
        >>> captions = torch.tensor([[0.1, 0.9], [1.0, 0.1], [0.9, 0.0]])
        >>> evaluate_retrieval(embeddings[::3], gallery=captions, relevant=[[1, 2], [0]], ks=(2,)).mean["recall@2"]
        1.0

    References:
        | A Metric Learning Reality Check (Musgrave et al., 2020)
        | https://arxiv.org/abs/2003.08505
    """
    assessment = Assessment(
        "evaluate_retrieval",
        embeddings,
        labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
        relevant=relevant,
        gallery_ids=gallery_ids,
        ks=ks,
        metrics=metrics,
        metric=metric,
        backend=backend,
        nprobe=nprobe,
        sample=sample,
    )
    return assessment.result(assessment.parts(on_progress=on_progress))


def instance_recall(
    queries: Rows, gallery: Rows, *, ks: Sequence[int] = (1,), metric: Metric = "cosine"
) -> RetrievalResult:
    r"""Computes recall@k where row i of the gallery is the one relevant item of query i.

    With :math:`g_i` items that score higher than the own one and :math:`t_i` that score the same (the own one
    included),

    .. math::
        \text{recall@}k_i = \min\Bigl(1, \max\Bigl(0, \frac{k - g_i}{t_i}\Bigr)\Bigr),

    which is 0 or 1 without ties, and with ties the expected value over their orders: collapsed
    embeddings read chance, k / gallery. Nothing is ranked: higher and equal scores are counted.

    Arguments:
        queries: shape [queries, dim], finite.
        gallery: shape [gallery, dim]; rows beyond the number of queries are distractors.
        ks: each k from 1 to the size of the gallery.
        metric: as in `search`.

    Returns:
        Mean, values and interval under ``"recall@k"`` for each k.

    Raises:
        InputError: as `search`; fewer gallery rows than queries.

    Example:
        >>> views = torch.eye(3)
        >>> instance_recall(views, views.roll(1, 0), ks=(1, 2, 3)).mean
        {'recall@1': 0.0, 'recall@2': 0.5, 'recall@3': 1.0}

    References:
        | Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021)
        | https://arxiv.org/abs/2103.00020
    """
    name = "instance_recall"
    x, y = as_pair(name, queries, gallery, ("queries", "gallery"))
    if len(y) < len(x):
        raise InputError(f"{name}: {len(x)} queries and a gallery of {len(y)}, expected at least one row per query")
    ks, _ = fitting_ks(name, ks, len(y))
    if not ks:
        raise InputError(f"{name}: ks is empty, expected at least one k")
    x, y = prepared(name, x, y, metric, precision(x))
    higher = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    equal = torch.zeros_like(higher)
    side = even_width(len(y), 1024)  # of products of one shape, or equal rows need not score the same
    for start in range(0, len(x), side):
        strip = x[start : start + side]
        rows = slice(start, start + len(strip))
        own = _all_scores(strip, y[start : start + side], side, metric).diagonal()[: len(strip), None]
        own = own.contiguous()
        for first in range(0, len(y), side):
            scores = _all_scores(strip, y[first : first + side], side, metric)
            if first == start:  # the same numbers again, but no device need promise that
                scores.diagonal().copy_(own.squeeze(1))
            higher[rows] += (scores > own).sum(1)
            equal[rows] += (scores == own).sum(1)
    per_query = {f"recall@{k}": ((k - higher) / equal).clamp(0.0, 1.0).float() for k in ks}
    return result_of(per_query, torch.arange(len(x), device=x.device))


def _all_scores(x: Tensor, y: Tensor, side: int, metric: Metric) -> Tensor:
    """As `search` scores: by distances where those are asked for, which near duplicates are told apart by."""
    scores = similarity(x, filled_up(y, side), metric)[:, : len(y)]
    return distances(x, y, scores) if metric == "euclidean" else scores
