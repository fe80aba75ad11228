r"""Exact nearest neighbours, and retrieval evaluated by them.

>>> import torch
>>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
>>> search(embeddings, embeddings, 1, exclude_self=True).ids.flatten()
tensor([1, 0, 3, 2])
>>> evaluate_retrieval(embeddings, ["a", "a", "b", "b"], ks=(1,)).mean["recall@1"]
1.0
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from contrastive import _faiss
from contrastive.errors import InputError
from contrastive.metrics import retrieval_metrics

__all__ = ["Labels", "Ranking", "RetrievalResult", "Rows", "evaluate_retrieval", "instance_recall", "search"]

Rows: TypeAlias = Tensor | NDArray[Any]
"""Embeddings, one a row: a floating-point tensor or array of shape [rows, dim]."""

Labels: TypeAlias = Tensor | NDArray[Any] | Sequence[str] | Sequence[int]
"""Class labels, one a row: integers of any size, or strings."""

Metric: TypeAlias = Literal["cosine", "inner_product", "euclidean"]
Backend: TypeAlias = Literal["auto", "torch", "faiss"]

DEFAULT_KS: Sequence[int] = (1, 5, 10, 100)
RESAMPLES = 1000

# Elements of a block of scores (32 MB in float32), its widest side, and entries of a ranking held at a time.
BLOCK = 2**23
BLOCK_WIDTH = 2**14
RANKING_BLOCK = 2**22
# Rows and columns of which a product has whole multiples; measured with MKL on an AMD processor, in both precisions.
_WHOLE = (4, 128)


@dataclass(frozen=True)
class Ranking:
    """The nearest gallery items of each query, best first.

    Arguments:
        ids: rows of the gallery.
        scores: their scores, larger is nearer: the cosine, the inner product, or the negative
            squared distance. float32, or float64 where the search ran in float64. Items of equal
            score stand in the order of their ids.
    """

    ids: Int64[Tensor, "queries k"]
    scores: Float[Tensor, "queries k"]


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics of retrieval: fractions in [0, 1].

    Arguments:
        mean: name of the metric (``"recall@1"``, ``"precision@1"``, ``"r_precision"``, ``"map@r"``)
            to its mean over the queries that count.
        per_query: name to the values of these queries.
        interval: name to the ends of the 95 % percentile bootstrap interval of the mean, over
            queries (1000 resamples, always the same seed).
        queries: the rows of the queries that count.
        excluded: how many queries were left out, having no relevant item.
        dropped: the default k that lie beyond the gallery.
    """

    mean: dict[str, float]
    per_query: dict[str, Float32[Tensor, " queries"]]
    interval: dict[str, tuple[float, float]]
    queries: Int64[Tensor, " queries"]
    excluded: int = 0
    dropped: tuple[int, ...] = ()


def search(
    queries: Rows,
    gallery: Rows,
    k: int,
    *,
    metric: Metric = "cosine",
    backend: Backend = "auto",
    exclude_self: bool = False,
) -> Ranking:
    r"""Finds the k nearest gallery items of every query, exactly.

    The score is :math:`\cos(x, y)`, :math:`x^\top y` or :math:`-\lVert x - y \rVert^2`. Items of equal
    score are ordered by id, also where the cut at k falls between them: a gallery sorted by class
    is then not a fair one, which matters for collapsed embeddings only. Both back ends return the
    same ids but for scores that differ by rounding. Memory beyond inputs and result is bounded.

    Arguments:
        queries: shape [queries, dim], finite. Half precision is raised to float32.
        gallery: shape [gallery, dim], on the device of `queries`.
        k: how many to return, 1 to the size of the gallery (less 1 with `exclude_self`).
        metric: ``"cosine"`` (a zero vector has cosine 0 to everything), ``"inner_product"`` or
            ``"euclidean"``.
        backend: ``"torch"`` computes on the device and in the precision of its input; ``"faiss"``
            computes in float32 on the CPU, or on a GPU it finds; ``"auto"`` chooses FAISS for
            float32 on the CPU where it is installed (not on macOS, where its OpenMP runtime clashes
            with torch's), else torch.
        exclude_self: the gallery is the queries, and row i must not return itself. It is left out by
            its id: exact duplicates of it stay.

    Returns:
        The ranking, on the device of `queries`.

    Raises:
        InputError: for shapes, dtypes or a `k` that do not fit, NaN or infinite values, scores that
            overflow, FAISS asked for but not there.

    Example:
        >>> gallery = torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 3.0]])
        >>> search(torch.tensor([[1.0, 0.0]]), gallery, 2).ids
        tensor([[1, 2]])

    References:
        | Billion-scale similarity search with GPUs (Johnson et al., 2017)
        | https://arxiv.org/abs/1702.08734
    """
    queries, gallery = as_pair("search", queries, gallery, ("queries", "gallery"))
    if exclude_self and len(queries) != len(gallery):
        raise InputError(
            f"search: exclude_self=True with {len(queries)} queries and a gallery of {len(gallery)}, "
            "expected the same rows as both"
        )
    largest = len(gallery) - exclude_self
    if isinstance(k, bool) or not 1 <= k <= largest:
        rest = " without the query itself" if exclude_self else ""
        raise InputError(f"search: k is {k}, expected 1 to {largest}, the size of the gallery{rest}")
    own = torch.arange(len(queries), device=queries.device) if exclude_self else None
    ids, scores = [], []
    for _, strip_ids, strip_scores in _strips("search", queries, gallery, k, metric, backend, own):
        ids.append(strip_ids)
        scores.append(strip_scores)
    return Ranking(torch.cat(ids), torch.cat(scores))


def evaluate_retrieval(
    embeddings: Rows,
    labels: Labels,
    *,
    gallery: Rows | None = None,
    gallery_labels: Labels | None = None,
    ks: Sequence[int] = DEFAULT_KS,
    metric: Metric = "cosine",
    backend: Backend = "auto",
) -> RetrievalResult:
    r"""Evaluates embeddings by retrieval: what has the same label should be near.

    Without a gallery every row searches among all the others (leave one out; the row itself is left
    out by its id). A gallery item is relevant if its label is the query's. A query without any
    relevant item counts for nothing and is counted in ``excluded``; it stays in the gallery.

    Arguments:
        embeddings: shape [queries, dim], finite.
        labels: one a row: integers (compared exactly, whatever their size) or strings.
        gallery: shape [gallery, dim]: search in these rows instead. Nothing is left out of them.
        gallery_labels: their labels, of the same kind as `labels`.
        ks: the k of recall@k. Of the default, those beyond the gallery are dropped and listed in
            ``dropped``.
        metric: as in `search`.
        backend: as in `search`.

    Returns:
        Mean, values and interval under ``"recall@k"`` for each k, ``"precision@1"``,
        ``"r_precision"`` and ``"map@r"``: see `contrastive.metrics`.

    Raises:
        InputError: as `search`; labels that do not fit the rows; no query with a relevant item; a k
            that was passed and exceeds the gallery.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
        >>> result = evaluate_retrieval(embeddings, ["a", "b", "a", "c"], ks=(1, 2))
        >>> {name: round(value, 2) for name, value in result.mean.items()}
        {'recall@1': 0.0, 'recall@2': 1.0, 'precision@1': 0.0, 'r_precision': 0.0, 'map@r': 0.0}
        >>> result.excluded
        2

    References:
        | A Metric Learning Reality Check (Musgrave et al., 2020)
        | https://arxiv.org/abs/2003.08505
    """
    name = "evaluate_retrieval"
    if (gallery is None) != (gallery_labels is None):
        missing = "gallery" if gallery is None else "gallery_labels"
        raise InputError(f"{name}: {missing} is missing, expected gallery and gallery_labels together")
    if gallery is embeddings:
        raise InputError(f"{name}: gallery is embeddings, expected other rows; leave it out to search among the others")
    alone = gallery is None
    if gallery is None:
        x = as_rows(name, "embeddings", embeddings)
        y = x
        query_classes = gallery_classes = label_ids(name, ("labels", labels, len(x)))[0].to(x.device)
    else:
        x, y = as_pair(name, embeddings, gallery, ("embeddings", "gallery"))
        query_classes, gallery_classes = (
            classes.to(x.device)
            for classes in label_ids(name, ("labels", labels, len(x)), ("gallery_labels", gallery_labels, len(y)))
        )
    counts = gallery_classes.bincount(minlength=int(query_classes.max()) + 1)
    relevant = counts[query_classes] - int(alone)
    kept = relevant.nonzero().squeeze(1)
    if len(kept) == 0:
        reason = "every label occurs once" if alone else "no label of the queries occurs in the gallery"
        raise InputError(f"{name}: no query has a relevant item ({reason})")
    ks, dropped = _fitting(name, ks, len(y) - alone)
    relevant = relevant[kept]
    depth = max([*ks, int(relevant.max())])
    own = kept if alone else None
    blocks: list[dict[str, Tensor]] = []
    for start, ids, _ in _strips(name, x, y, depth, metric, backend, own, rows=kept):
        block = slice(start, start + len(ids))
        hits = gallery_classes[ids] == query_classes[kept[block], None]
        blocks.append(retrieval_metrics(hits, relevant[block], ks=ks))
    per_query = {key: torch.cat([values[key] for values in blocks]) for key in blocks[0]}
    return _result(per_query, kept, excluded=len(x) - len(kept), dropped=dropped)


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
    ks, _ = _fitting(name, ks, len(y))
    if not ks:
        raise InputError(f"{name}: ks is empty, expected at least one k")
    x, y = _prepared(name, x, y, metric, x.dtype)
    higher = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    equal = torch.zeros_like(higher)
    side = 1024
    for start in range(0, len(x), side):
        strip = x[start : start + side]
        rows = slice(start, start + len(strip))
        own = similarity(strip, y[rows], metric).diagonal()[:, None].contiguous()
        for first in range(0, len(y), side):
            scores = similarity(strip, y[first : first + side], metric)
            if first == start:  # the same numbers again, but no device need promise that
                scores.diagonal().copy_(own.squeeze(1))
            higher[rows] += (scores > own).sum(1)
            equal[rows] += (scores == own).sum(1)
    per_query = {f"recall@{k}": ((k - higher) / equal).clamp(0.0, 1.0).float() for k in ks}
    return _result(per_query, torch.arange(len(x), device=x.device))


# --- validation -------------------------------------------------------------------------------------------------------


def as_rows(function: str, name: str, x: Rows) -> Float[Tensor, "rows dim"]:
    """The check of embeddings at the public boundary: a finite tensor [rows, dim] of float32 or float64, cut off."""
    if isinstance(x, np.ndarray):
        if x.dtype.kind != "f" or x.dtype.itemsize > 8:
            raise InputError(f"{function}: {name} has dtype {x.dtype}, expected a floating-point dtype")
        # A copy where torch cannot share: foreign byte order, negative strides, read-only memory.
        x = torch.from_numpy(np.require(x, dtype=x.dtype.newbyteorder("="), requirements=["C", "W"]))
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise InputError(f"{function}: {name} has dtype {x.dtype}, expected a floating-point dtype")
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(f"{function}: {name} has shape {tuple(x.shape)}, expected [rows, dim], neither of them 0")
    x = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
    finite = torch.isfinite(x).all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().squeeze(1)
        rows = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
        raise InputError(f"{function}: {name} holds NaN or infinity in {rows}, the first is row {int(bad[0])}")
    return x


def as_pair(
    function: str, queries: Rows, gallery: Rows, names: tuple[str, str]
) -> tuple[Float[Tensor, "queries dim"], Float[Tensor, "gallery dim"]]:
    """Two sets of embeddings, of one width, device and precision (the wider of the two)."""
    x = as_rows(function, names[0], queries)
    y = x if gallery is queries else as_rows(function, names[1], gallery)
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"{function}: {names[0]} have shape {tuple(x.shape)} and {names[1]} {tuple(y.shape)}, "
            "expected the same width"
        )
    if x.device != y.device:
        raise InputError(f"{function}: {names[0]} are on {x.device} and {names[1]} on {y.device}, expected one device")
    dtype = torch.promote_types(x.dtype, y.dtype)
    x = x.to(dtype)
    return x, (x if gallery is queries else y.to(dtype))


def label_ids(function: str, *labels: tuple[str, Labels | None, int]) -> list[Int64[Tensor, " rows"]]:
    """Class numbers 0, 1, ... in sorted order, shared by all the labels given as (name, labels, number of rows).

    Compared as Python objects or as int64, never as floats: those merge ids above 2**24.
    """
    columns = [_label_column(function, name, values, rows) for name, values, rows in labels]
    kinds = {isinstance(column, list) for column in columns}
    if len(kinds) > 1:
        named = " and ".join(f"{name} are {type(values).__name__}" for name, values, _ in labels)
        raise InputError(f"{function}: {named}, expected integers in both or strings in both")
    if kinds == {True}:
        strings = [column for column in columns if isinstance(column, list)]
        number = {label: i for i, label in enumerate(sorted({label for column in strings for label in column}))}
        return [torch.tensor([number[label] for label in column]) for column in strings]
    tensors = [column for column in columns if isinstance(column, Tensor)]
    _, inverse = np.unique(torch.cat(tensors).numpy(), return_inverse=True)
    return list(torch.split(torch.from_numpy(inverse), [len(column) for column in tensors]))


def _label_column(function: str, name: str, labels: Labels | None, rows: int) -> Tensor | list[str]:
    """Integers as an int64 tensor on the CPU, strings as a list."""
    if labels is None:
        raise InputError(f"{function}: {name} are None, expected {rows} integers or strings")
    column: Tensor | NDArray[Any] | list[str]
    if isinstance(labels, Tensor | np.ndarray):
        column = labels
    else:
        strings = [isinstance(label, str) for label in labels]
        if not strings or (any(strings) and not all(strings)):
            raise InputError(
                f"{function}: {name} hold {sum(strings)} strings among {len(strings)}, "
                f"expected {rows} integers or strings"
            )
        column = [str(label) for label in labels] if strings[0] else np.array(labels)
    if isinstance(column, np.ndarray):
        if column.ndim == 1 and (column.dtype.kind in "UT" or _all_strings(column)):
            column = [str(label) for label in column]
        elif column.dtype.kind not in "iub" or (column.dtype == np.uint64 and bool((column >> np.uint64(63)).any())):
            raise InputError(f"{function}: {name} have dtype {column.dtype}, expected integers or strings")
        else:
            column = torch.from_numpy(column.astype(np.int64))
    if isinstance(column, Tensor):
        if column.is_floating_point() or column.is_complex():
            raise InputError(f"{function}: {name} have dtype {column.dtype}, expected integers or strings")
        if column.ndim != 1:
            raise InputError(f"{function}: {name} have shape {tuple(column.shape)}, expected [{rows}]")
        column = column.detach().to(device="cpu", dtype=torch.int64)
    if len(column) != rows:
        raise InputError(f"{function}: {len(column)} {name} for {rows} rows, expected one a row")
    return column


def _all_strings(column: NDArray[Any]) -> bool:
    return column.dtype == object and all(isinstance(label, str) for label in column)


def _fitting(function: str, ks: Sequence[int], largest: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The k to report, each once, and those of the default that the gallery is too small for."""
    for k in ks:
        if isinstance(k, bool) or k < 1 or (k > largest and ks is not DEFAULT_KS):
            raise InputError(f"{function}: ks holds {k}, expected 1 to {largest}, the items a query can retrieve")
    unique = tuple(dict.fromkeys(int(k) for k in ks))
    return tuple(k for k in unique if k <= largest), tuple(k for k in unique if k > largest)


# --- search -----------------------------------------------------------------------------------------------------------


def _prepared(function: str, x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows whose product (or distance) is the score: normalised for the cosine, centred for the distance."""
    if metric not in get_args(Metric):
        raise InputError(f"{function}: metric is {metric!r}, expected one of {', '.join(get_args(Metric))}")
    same = x is y
    if metric == "cosine":
        x = unit_rows(x).to(dtype)
        return x, (x if same else unit_rows(y).to(dtype))
    if metric == "euclidean":
        # Distances do not change; the digits that |x|^2 + |y|^2 - 2xy would cancel do.
        centre = y.mean(0, dtype=torch.float64).to(y.dtype)
        x = x - centre
        y = x if same else y - centre
    # By Cauchy and Schwarz no sum overflows below this: FAISS would not say so, it would leave items out.
    of_x, of_y = (float(torch.linalg.vector_norm(z, dim=1, dtype=torch.float64).max()) for z in (x, y))
    bound = 4.0 * max(of_x, of_y) ** 2 if metric == "euclidean" else of_x * of_y
    if not bound < torch.finfo(dtype).max:
        raise InputError(
            f"{function}: scores may reach {bound:.0e}, more than {str(dtype).removeprefix('torch.')} holds, "
            "expected embeddings of a smaller scale"
        )
    x = x.to(dtype).contiguous()
    return x, (x if same else y.to(dtype).contiguous())


def unit_rows(x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """Rows of length 1, zero rows left at zero; scaled first, so that no square overflows or underflows."""
    largest = x.abs().amax(1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)


def similarity(x: Tensor, y: Tensor, metric: str, squares: Tensor | None = None) -> Tensor:
    """Scores of a block up to a term of the row alone: x.y, or 2 x.y - |y|^2 for the distance.

    Equal rows must get equal scores wherever they stand and however blocks are cut, or ties are not decided by id. The
    libraries of matrix products round differently at borders and for a few rows, so these are filled up with zeros.
    """
    rows, columns = len(x), len(y)
    squares = y.square().sum(1) if squares is None and metric == "euclidean" else squares
    x, y = _filled_up(x, _WHOLE[0]), _filled_up(y, _WHOLE[1])
    with torch.autocast(x.device.type, enabled=False):  # it would compute in bfloat16
        if metric != "euclidean":
            return (x @ y.T)[:rows, :columns]
        assert squares is not None
        return torch.addmm(_filled_up(squares, _WHOLE[1]).neg(), x, y.T, alpha=2.0)[:rows, :columns]


def _filled_up(x: Tensor, multiple: int) -> Tensor:
    """Zeros after the last row, up to a multiple of so many; no copy where there is nothing to add."""
    missing = -len(x) % multiple
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


def _strips(
    function: str,
    x: Tensor,
    y: Tensor,
    k: int,
    metric: str,
    backend: str,
    own: Tensor | None,
    rows: Tensor | None = None,
) -> Iterator[tuple[int, Int64[Tensor, "strip k"], Float[Tensor, "strip k"]]]:
    """Searches strip by strip, for those who need not keep the ranking: yields (first query, ids, scores).

    Arguments:
        function: name of the caller, for messages.
        x: checked queries.
        y: checked gallery, of at least k rows (k + 1 with `own`).
        k: items per query.
        metric: as in `search`.
        backend: as in `search`.
        own: for each query (of `rows`) the gallery row it must not return, or None.
        rows: the queries to run; None means all.
    """
    use_faiss = _chooses_faiss(function, x, backend)
    x, y = _prepared(function, x, y, metric, torch.float32 if use_faiss else x.dtype)
    if rows is not None and len(rows) < len(x):
        x = x[rows]
    squares = y.square().sum(1) if metric == "euclidean" else None
    length = max(1, min(RANKING_BLOCK // (k + 2), 4096))
    for start in range(0, len(x), length):
        strip = x[start : start + length]
        strip_own = None if own is None else own[start : start + length]
        if use_faiss:
            scores, ids = _faiss_top(strip, y, k, metric, squares, strip_own)
        else:
            scores, ids = _torch_top(strip, y, k, metric, squares, strip_own)
        if squares is not None:
            scores, ids = _as_distances(strip, y, scores, ids)
        if bool((ids < 0).any()):  # a defect of a back end: labels[-1] would be read in silence
            raise RuntimeError(f"{function}: the back end returned fewer than {k} neighbours")
        yield start, ids, scores


def _chooses_faiss(function: str, x: Tensor, backend: str) -> bool:
    if backend not in get_args(Backend):
        raise InputError(f"{function}: backend is {backend!r}, expected one of {', '.join(get_args(Backend))}")
    if backend == "faiss" and not _faiss.available():
        raise InputError(f"{function}: backend is 'faiss', which is not installed: pip install 'kpair[faiss]'")
    if backend == "auto":
        return x.device.type == "cpu" and x.dtype == torch.float32 and _faiss.safe_by_default()
    return backend == "faiss"


def _torch_top(
    x: Tensor, y: Tensor, k: int, metric: str, squares: Tensor | None, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Exact top-k over blocks of scores; equal scores in the order of ids."""
    width = min(len(y), max(BLOCK_WIDTH, 4 * k))
    height = max(2, BLOCK // width)
    starts: Iterable[int] = range(0, len(x), height)
    parts = [
        _torch_rows(x[i : i + height], y, k, metric, squares, None if own is None else own[i : i + height], width)
        for i in starts
    ]
    return torch.cat([scores for scores, _ in parts]), torch.cat([ids for _, ids in parts])


def _torch_rows(
    x: Tensor, y: Tensor, k: int, metric: str, squares: Tensor | None, own: Tensor | None, width: int
) -> tuple[Tensor, Tensor]:
    best: tuple[Tensor, Tensor] | None = None
    for first in range(0, len(y), width):
        block = slice(first, first + width)
        scores = similarity(x, y[block], metric, None if squares is None else squares[block])
        if own is not None:
            inside = ((own >= first) & (own < first + scores.shape[1])).nonzero().squeeze(1)
            scores[inside, own[inside] - first] = -torch.inf
        best = with_block(best, scores, first, k)
    assert best is not None
    return best


def with_block(best: tuple[Tensor, Tensor] | None, scores: Tensor, first: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores so far and their columns, in order, after one more block of columns.

    Arguments:
        best: of the blocks before; None: there were none.
        scores: of the block.
        first: the column of its first.
        k: how many are kept.
    """
    values, columns = _largest(scores, min(k, scores.shape[1]))
    columns = columns + first
    if best is None:
        return values, columns
    # Both halves are in order, and the earlier ids come first.
    values, columns = torch.cat([best[0], values], 1), torch.cat([best[1], columns], 1)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], columns.gather(1, order[:, :k])


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns: the larger first, among equals the lower column."""
    columns = scores.shape[1]
    values, chosen = scores.topk(min(k + 1, columns), dim=1)
    if not bool((values[:, 1:] == values[:, :-1]).any()):
        return values[:, :k], chosen[:, :k]
    if columns > k:  # `topk` keeps any of those equal to the last: keep the first ones
        cut = (values[:, k] == values[:, k - 1]).nonzero().squeeze(1)
        last = values[cut, k - 1, None]
        some = scores[cut]
        equal = some == last
        above = some > last
        kept = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
        chosen = chosen[:, :k].clone()
        chosen[cut] = kept.nonzero()[:, 1].view(len(cut), k)
    chosen = chosen.sort(dim=1).values
    values, order = scores.gather(1, chosen).sort(dim=1, descending=True, stable=True)
    return values, chosen.gather(1, order)


def _faiss_top(
    x: Tensor, y: Tensor, k: int, metric: str, squares: Tensor | None, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same by FAISS. One more item is asked for, to see a tie at the cut: torch settles those rows."""
    asked = min(k + (own is not None) + 1, len(y))
    found = _faiss.knn(
        x.cpu().contiguous().numpy(), y.cpu().contiguous().numpy(), asked, inner_product=metric != "euclidean"
    )
    values, ids = (torch.from_numpy(part).to(x.device) for part in found)
    if own is not None:  # drop the own id; where it is not among them, the last
        kept = ids != own[:, None]
        kept[:, -1] &= ~kept.all(1)
        values, ids = values[kept].view(len(x), -1), ids[kept].view(len(x), -1)
    cut = (values[:, k] == values[:, k - 1]).nonzero().squeeze(1) if values.shape[1] > k else torch.empty(0)
    values, ids = _in_order(values[:, :k], ids[:, :k])
    if metric == "euclidean":
        values = values + x.square().sum(1, keepdim=True)
    if len(cut):
        values, ids = values.clone(), ids.clone()
        values[cut], ids[cut] = _torch_top(x[cut], y, k, metric, squares, None if own is None else own[cut])
    return values, ids


def _in_order(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The larger first, among equals the lower id."""
    gain = values[:, 1:] - values[:, :-1]
    if not bool((gain > 0).any() | ((gain == 0) & (ids[:, 1:] < ids[:, :-1])).any()):
        return values, ids
    ids, order = ids.sort(dim=1)
    values, second = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, second)


def _as_distances(x: Tensor, y: Tensor, scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Turns 2 x.y - |y|^2 into -|x - y|^2; where these cancel, as between near duplicates, it is computed anew."""
    length = x.square().sum(1, keepdim=True)
    scores = scores - length
    row, column = (scores > -1e-3 * length).nonzero(as_tuple=True)
    step = max(1, BLOCK // x.shape[1])
    for first in range(0, len(row), step):
        i, j = row[first : first + step], column[first : first + step]
        scores[i, j] = (x[i] - y[ids[i, j]]).square().sum(1).neg() + 0.0
    return _in_order(scores.clamp_max(0.0), ids)


# --- results ----------------------------------------------------------------------------------------------------------


def _result(
    per_query: dict[str, Tensor], queries: Tensor, *, excluded: int = 0, dropped: tuple[int, ...] = ()
) -> RetrievalResult:
    values = torch.stack([values.double() for values in per_query.values()], 1).cpu()
    ends = bootstrap_interval(values)
    return RetrievalResult(
        mean=dict(zip(per_query, values.mean(0).tolist(), strict=True)),
        per_query=per_query,
        interval={name: (low, high) for name, (low, high) in zip(per_query, ends.tolist(), strict=True)},
        queries=queries,
        excluded=excluded,
        dropped=dropped,
    )


def bootstrap_interval(
    values: Float64[Tensor, "queries metrics"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Float64[Tensor, "metrics 2"]:
    """The 95 % percentile bootstrap interval of each column's mean; the columns share their resamples.

    Arguments:
        values: one row a query.
        resamples: how many times the queries are drawn anew, with replacement.
        seed: of a generator of its own.

    Returns:
        The 2.5 % and the 97.5 % quantile of the resampled means.
    """
    rows = len(values)
    generator = np.random.default_rng(seed)
    means = []
    step = max(1, 2**20 // rows)
    for first in range(0, resamples, step):
        # How often each query is drawn, one resample at a time: the counts stay in the cache.
        times = [
            np.bincount(generator.integers(0, rows, rows), minlength=rows)
            for _ in range(first, min(first + step, resamples))
        ]
        means.append(torch.from_numpy(np.stack(times)).double() @ values / rows)
    return torch.quantile(torch.cat(means), torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).T
