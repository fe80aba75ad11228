"""The nearest rows of a gallery: what `contrastive.retrieval` and `contrastive.gallery` search with.

Queries come in strips and galleries in blocks, so that memory is bounded beyond the rows themselves; rows that are
memory-mapped are read a block at a time. Rows in half precision stay as they are until they are read.
"""

import warnings
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from contrastive import _faiss, filtered
from contrastive.codes import Codes, faster_dtype
from contrastive.errors import InputError
from contrastive.gemm import fast_products
from contrastive.ranking import in_order, largest_in_order, merged

__all__ = [
    "Backend",
    "Metric",
    "Progress",
    "Ranking",
    "Rows",
    "Search",
    "Target",
    "as_pair",
    "as_rows",
    "distances",
    "even_width",
    "filled_up",
    "in_order_of_ids",
    "own_rows",
    "precision",
    "prepared",
    "raised",
    "refuse_backend",
    "refuse_others",
    "rows_in_order",
    "similarity",
    "unit_rows",
    "with_block",
]

Rows: TypeAlias = Tensor | NDArray[Any]
"""Embeddings, one a row: a floating-point tensor or array of shape [rows, dim]."""

Metric: TypeAlias = Literal["cosine", "inner_product", "euclidean"]
Backend: TypeAlias = Literal["auto", "torch", "faiss"] | str
"""Who searches, or a FAISS factory string: then the search is approximate."""

Progress: TypeAlias = Callable[[int, int], None]
"""Is told how many steps of the search are done, and of how many."""

# Elements of a block of scores (16 MB in float32), its widest side, and entries of a ranking held at a time.
BLOCK = 2**22
BLOCK_WIDTH = 2**14
RANKING_BLOCK = 2**22
# Numbers of a gallery that is prepared once and kept (1 GB in float32), and of a block of a larger one.
GALLERY_KEPT = 2**28
GALLERY_BLOCK = 2**25
# Entries of the rankings that are held while the blocks pass by, and queries. So many are enough to make reading and
# preparing the blocks for them cheap (a fiftieth of their time), and few enough to lose little where one is killed.
RANKINGS_HELD = 2**26
QUERIES_HELD = 2**14
# Rows and columns of which a product has whole multiples; measured with MKL on an AMD processor, in both precisions.
_WHOLE = (4, 128)
_ANY_SIZE = 2**62


@dataclass(frozen=True)
class Ranking:
    """The nearest gallery items of each query, best first.

    Arguments:
        ids: rows of the gallery, or its ids if it was given any.
        scores: their scores, larger is nearer: the cosine, the inner product, or the negative
            squared distance. float32, or float64 where the search ran in float64. Items of equal
            score stand in the order of their ids. An approximate search that finds fewer fills up with id -1 and score
            minus infinity.
    """

    ids: Int64[Tensor, "queries k"]
    scores: Float[Tensor, "queries k"]


# --- a gallery, prepared ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """Where a product (or a distance) is the score: rows are normalised for the cosine, centred for the distance.

    Arguments:
        metric: as in `contrastive.search`.
        dtype: in which scores are computed.
        centre: of the gallery, for the distance: distances do not change, the digits that |x|^2 + |y|^2 - 2xy would
            cancel do.
        longest: the norm of the longest row of the gallery.
    """

    metric: str
    dtype: torch.dtype
    centre: Tensor | None
    longest: float

    @classmethod
    def of(
        cls, function: str, gallery: Tensor, metric: str, dtype: torch.dtype, *, centre: Tensor | None = None
    ) -> "Space":
        """Reads a gallery once, where the metric asks for it, and finds its centre unless it is known."""
        if metric not in get_args(Metric):
            raise InputError(f"{function}: metric is {metric!r}, expected one of {', '.join(get_args(Metric))}")
        if metric == "cosine":
            return cls(metric, dtype, None, 1.0)
        if metric == "euclidean" and centre is None:
            parts = torch.split(gallery, max(1, BLOCK // gallery.shape[1]))
            total = torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0)
            centre = (total / len(gallery)).to(precision(gallery))
        return cls(metric, dtype, centre, _longest(gallery, centre))

    def fits(self, function: str, queries: Tensor) -> None:
        """Refuses what overflows: FAISS would not say so, it would leave items out."""
        if self.metric == "cosine":
            return
        of_x = _longest(queries, self.centre)
        # By Cauchy and Schwarz no sum overflows below this.
        bound = 4.0 * max(of_x, self.longest) ** 2 if self.metric == "euclidean" else of_x * self.longest
        if not bound < torch.finfo(self.dtype).max:
            raise InputError(
                f"{function}: scores may reach {bound:.0e}, more than {str(self.dtype).removeprefix('torch.')} holds, "
                "expected embeddings of a smaller scale"
            )

    def error(self, x: Float[Tensor, "queries dim"]) -> Float[Tensor, " queries"]:
        """How far the scores of a back end may lie from those of pairs: both are rounded sums of `dim` products.

        Arguments:
            x: prepared queries.
        """
        of_x: Tensor = torch.linalg.vector_norm(x, dim=1)
        scale = 4.0 * of_x.clamp_min(self.longest).square() if self.metric == "euclidean" else of_x * self.longest
        return scale * (1.01 * (x.shape[1] + 32) * torch.finfo(self.dtype).eps)

    def __call__(self, x: Tensor) -> Tensor:
        if self.metric == "inner_product":
            return x.to(self.dtype).contiguous()
        placed = torch.empty(x.shape, dtype=self.dtype, device=x.device)
        step = max(1, BLOCK // x.shape[1])  # a whole gallery in one go would take several times its memory
        for part, place in zip(torch.split(x, step), torch.split(placed, step), strict=True):
            place.copy_(unit_rows(part) if self.metric == "cosine" else _less(part, self.centre))
        return placed


def _less(x: Tensor, centre: Tensor | None) -> Tensor:
    x = raised(x)
    return x if centre is None else x - centre.to(x.dtype)


def _longest(x: Tensor, centre: Tensor | None) -> float:
    """The norm of the longest row, less the centre."""
    longest = 0.0
    for part in torch.split(x, max(1, BLOCK // x.shape[1])):  # a mapped file is no array in memory
        centred = _less(part, centre)
        longest = max(longest, float(torch.linalg.vector_norm(centred, dim=1, dtype=torch.float64).max()))
    return longest


def prepared(function: str, x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Checked queries and gallery as rows of a `Space`."""
    space = Space.of(function, y, metric, dtype)
    space.fits(function, x)
    prepared_x = space(x)
    return prepared_x, (prepared_x if x is y else space(y))


class Target:
    """A gallery that can be searched: checked rows, and whatever the back end makes of them.

    Arguments:
        function: name of the caller, for messages.
        rows: of `as_rows`.
        metric: as in `contrastive.search`.
        backend: as in `contrastive.search`.
        nprobe: of an inverted file, how many of its lists are searched.
        index: of these rows, if it was built before.
        space: where the rows of that index lie; None: it is found from the rows.
    """

    def __init__(
        self,
        function: str,
        rows: Tensor,
        *,
        metric: str,
        backend: str,
        nprobe: int = 32,
        index: Any | None = None,
        space: Space | None = None,
    ) -> None:
        self.by, factory = _chosen(function, rows, backend)
        dtype = torch.float32 if self.by != "torch" or factory is not None else precision(rows)
        self.rows, self.metric = rows, metric
        self.space = Space.of(function, rows, metric, dtype) if space is None else space
        self.blocks = _gallery_blocks(rows)
        self._kept: tuple[Tensor, Tensor | None] | None = None
        self._coded: tuple[int, Codes] | None = None
        self._code = faster_dtype(rows.device, rows.shape[1]) if self.by == "filter" else rows.dtype
        self.index = index
        if nprobe < 1:
            raise InputError(f"{function}: nprobe is {nprobe}, expected at least 1")
        if factory is not None and index is None:
            parts = (self.space(rows[first:end]).cpu().numpy() for first, end in self.blocks)
            sample = self.space(_sample(rows)).cpu().numpy()
            self.index = _faiss.build(
                function, sample, parts, factory, inner_product=metric != "euclidean", nprobe=nprobe
            )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def widest(self) -> int:
        """Rows of the largest block."""
        return max(end - first for first, end in self.blocks)

    def extended(self, function: str, rows: Tensor, more: Tensor) -> "Target":
        """The same gallery with more rows; an index takes them in, where it lies.

        Arguments:
            function: name of the caller, for messages.
            rows: all of them, the old and the new.
            more: the new ones.
        """
        longer = copy(self)
        longer.rows, longer.blocks = rows, _gallery_blocks(rows)
        longer._kept = longer._coded = None
        if self.index is None:
            longer.space = Space.of(function, rows, self.metric, self.space.dtype)
        else:
            longest = max(self.space.longest, _longest(more, self.space.centre))
            longer.space = replace(self.space, longest=longest) if self.metric != "cosine" else self.space
            for part in torch.split(more, max(1, GALLERY_BLOCK // more.shape[1])):
                self.index.add(self.space(part).cpu().numpy())
        return longer

    def block(self, first: int, end: int) -> tuple[Tensor, Tensor | None]:
        """Prepared rows, and their squared lengths for the distance."""
        if self._kept is not None:
            return self._kept
        y = self.space(self.rows[first:end])
        found = y, _squares(y) if self.metric == "euclidean" else None
        if len(self.blocks) == 1:
            self._kept = found
        return found

    def codes(self, first: int, y: Tensor) -> Codes:
        """Of the prepared rows of a block, for the filter; those of the last block are kept.

        Arguments:
            first: where the block begins.
            y: of `block`.
        """
        coded = self._coded  # another thread may search, too
        if coded is None or coded[0] != first:
            coded = self._coded = first, Codes.of(y, self.metric, self._code)
        return coded[1]

    def codes_in_float32(self) -> bool:
        """Takes codes of float32 from now on; says whether they had been others."""
        others = self._code != torch.float32
        if others:
            self._code, self._coded = torch.float32, None
        return others


def _sample(rows: Tensor) -> Tensor:
    """As many rows as a block holds, spread over the gallery: its beginning may be of one class."""
    count = max(1, GALLERY_BLOCK // rows.shape[1])
    if len(rows) <= count:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count].sort().values
    return rows[chosen.to(rows.device)]


def _squares(x: Tensor) -> Tensor:
    return torch.cat([part.square().sum(1) for part in torch.split(x, max(1, BLOCK // x.shape[1]))])


def _gallery_blocks(rows: Tensor) -> list[tuple[int, int]]:
    if rows.numel() <= GALLERY_KEPT:
        return [(0, len(rows))]
    step = max(1, GALLERY_BLOCK // rows.shape[1])
    return [(first, min(first + step, len(rows))) for first in range(0, len(rows), step)]


class Search:
    """Some queries against a gallery.

    Arguments:
        function: name of the caller, for messages.
        queries: of `as_rows`.
        target: the gallery.
        own: for each query the gallery row it must not return, or None; -1 for none of them.
        rows: the queries to run; None means all.
        progress: is told how far it is.
    """

    def __init__(
        self,
        function: str,
        queries: Tensor,
        target: Target,
        *,
        own: Int64[Tensor, " queries"] | None = None,
        rows: Int64[Tensor, " run"] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.function, self.target, self.progress = function, target, progress
        self.rows = torch.arange(len(queries), device=queries.device) if rows is None else rows
        self.own = own if own is None or rows is None else own[rows]
        target.space.fits(function, queries)
        self.queries = queries
        # A gallery searched by itself need not be prepared twice.
        self._shared = queries is target.rows and len(target.blocks) == 1

    @property
    def size(self) -> int:
        """How many rows the gallery has."""
        return len(self.target)

    @property
    def metric(self) -> str:
        """What is near."""
        return self.target.metric

    @property
    def approximate(self) -> bool:
        """Whether an index searches."""
        return self.target.index is not None

    def after(self, skip: int, progress: Progress | None = None) -> "Search":
        """The same search without the first queries.

        Arguments:
            skip: how many of them.
            progress: is told how far it is.
        """
        rest = copy(self)
        rest.rows, rest.progress = self.rows[skip:], progress
        rest.own = None if self.own is None else self.own[skip:]
        return rest

    def only(self, places: Int64[Tensor, " some"], progress: Progress | None = None) -> "Search":
        """The same search of some of the queries.

        Arguments:
            places: of these among the queries to run.
            progress: is told how far it is.
        """
        some = copy(self)
        some.rows, some.progress = self.rows[places], progress
        some.own = None if self.own is None else self.own[places]
        return some

    def strip(self, part: slice) -> Tensor:
        """Prepared queries."""
        rows = self.rows[part]
        if self._shared:
            return self.target.block(0, len(self.queries))[0][rows]
        return self.target.space(self.queries[rows])

    def rankings(
        self, k: int, *, exact: bool = False
    ) -> Iterator[tuple[slice, Int64[Tensor, "s k"], Float[Tensor, "s k"]]]:
        """Searches strip by strip, for those who need not keep the ranking: yields (part of the queries, ids, scores).

        Arguments:
            k: items per query; there are as many, the own one left out.
            exact: exactly, although there is an index.
        """
        count = len(self.rows)
        length = max(1, min(RANKING_BLOCK // (k + 2), 4096))
        by_index = self.target.index is not None and not exact
        blocks = [(0, len(self.target))] if by_index else self.target.blocks
        most = min(QUERIES_HELD, RANKINGS_HELD // (k + 2))
        held = length if len(blocks) == 1 else max(length, most // length * length)
        total, done = -(-count // length) * len(blocks), 0
        for start in range(0, count, held):
            parts = [slice(i, min(i + length, count)) for i in range(start, min(start + held, count), length)]
            best: list[tuple[Tensor, Tensor] | None] = [None] * len(parts)
            for first, end in blocks:
                for place, part in enumerate(parts):
                    found = self._by_index(part, k) if by_index else self._of_block(part, k, first, end)
                    best[place] = merged(best[place], found, k)
                    done += 1
                    if self.progress is not None:
                        self.progress(done, total)
            for place, part in enumerate(parts):
                of_part = best[place]
                assert of_part is not None
                scores, ids = of_part
                if not by_index and bool(
                    (ids < 0).any()
                ):  # a defect of a back end: labels[-1] would be read in silence
                    raise RuntimeError(f"{self.function}: the back end returned fewer than {k} neighbours")
                yield part, ids, scores
                best[place] = None

    def _of_block(self, part: slice, k: int, first: int, end: int) -> tuple[Tensor, Tensor]:
        x, own = self.strip(part), None if self.own is None else self.own[part] - first
        y, squares = self.target.block(first, end)
        k = min(k, len(y))
        if self.target.by == "filter" and filtered.pays(len(y), k + (own is not None)):
            scores, ids = self._filtered(x, y, k, own, first, squares)
            return scores, ids + first
        top = _torch_top if self.target.by == "torch" else _faiss_top
        find = top if squares is None else partial(_by_distance, top)
        scores, ids = find(x, y, k, self.target, squares, own)
        return scores, ids + first

    def _filtered(
        self, x: Tensor, y: Tensor, k: int, own: Tensor | None, first: int, squares: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scores, ids, crowded = filtered.nearest(x, y, self.target.codes(first, y), k, own)
        left = crowded.nonzero().squeeze(1)
        # Rows that crowd within the error of bfloat16, as those of an untrained encoder may, are told apart by float32.
        if 4 * len(left) > len(x) and self.target.codes_in_float32():
            again = self._filtered(x[left], y, k, None if own is None else own[left], first, squares)
            scores[left], ids[left] = again
        elif len(left):
            of_left = None if own is None else own[left]
            found = _torch_top(x[left], y, k, self.target, squares, of_left, by_distance=squares is not None)
            scores[left], ids[left] = found
        return scores, ids

    def _by_index(self, part: slice, k: int) -> tuple[Tensor, Tensor]:
        """What the index finds, scored exactly; -1 after the last."""
        x, device = self.strip(part), self.queries.device
        asked = min(_faiss.candidates(self.target.index) * (k + (self.own is not None)), len(self.target))
        found = torch.from_numpy(_faiss.search(self.target.index, x.cpu().numpy(), asked)).to(device)
        ids = found if self.own is None else found.masked_fill(found == self.own[part, None], -1)
        scores = self.scored(x, ids).masked_fill_(ids < 0, -torch.inf)
        # Equal scores by id, what is missing last.
        order = torch.where(ids < 0, len(self.target), ids).argsort(dim=1)
        scores, ids = scores.gather(1, order), ids.gather(1, order)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return scores[:, :k], ids.gather(1, order)[:, :k]

    def scored(self, x: Float[Tensor, "s dim"], ids: Int64[Tensor, "s items"]) -> Float[Tensor, "s items"]:
        """Scores of some items of each query, from their two rows alone: the same wherever these stand.

        Arguments:
            x: of `strip`.
            ids: rows of the gallery; of one below 0 the score means nothing.
        """
        parts = []
        step = max(1, BLOCK // max(1, ids.shape[1] * x.shape[1]))
        for of_x, of_ids in zip(torch.split(x, step), torch.split(ids, step), strict=True):
            y = self.target.space(self.target.rows[of_ids.clamp_min(0).flatten()]).view(*of_ids.shape, x.shape[1])
            y, queries = y.double(), of_x[:, None].double()
            if self.target.metric == "euclidean":
                parts.append((queries - y).square_().sum(2).neg_().to(x.dtype) + 0.0)
            else:
                parts.append(y.mul_(queries).sum(2).to(x.dtype))
        return torch.cat(parts)

    def settled(self, places: Int64[Tensor, " some"], k: int) -> tuple[Tensor, Tensor]:
        """Rankings of some queries, whose scores are those of `scores`: bit for bit, for they are read off these."""
        best: tuple[Tensor, Tensor] | None = None
        for items, block in self.scores(places):
            best = with_block(best, block, int(items[0]), k)
        assert best is not None
        return best

    def total(self, counts: Tensor) -> Tensor:
        """Of what was counted of `equal`: this process has seen them all."""
        return counts

    def scores(
        self, places: Int64[Tensor, " some"]
    ) -> Iterator[tuple[Int64[Tensor, " block"], Float[Tensor, "some block"]]]:
        """Scores of some queries against all items, block by block: yields (items, scores), the own one -inf."""
        x, own = self._some(places)
        # One width for all: of products of another shape the same two rows may score otherwise in the last bit.
        width = even_width(self.target.widest, max(1, BLOCK // len(x)))
        for start, end in self.target.blocks:
            y, squares = self.target.block(start, end)
            for first in range(0, len(y), width):
                z = y[first : first + width]
                of_z = None if squares is None else filled_up(squares[first : first + width], width)
                scores = similarity(x, filled_up(z, width), self.target.metric, of_z)[:, : len(z)]
                if squares is not None:
                    scores = distances(x, z, scores)
                _leave_out(scores, own, start + first)
                yield torch.arange(start + first, start + first + len(z), device=x.device), scores

    def equal(
        self, places: Int64[Tensor, " some"], values: Float[Tensor, "some 1"]
    ) -> Iterator[tuple[Int64[Tensor, " found"], Int64[Tensor, " found"]]]:
        """All items of one score, block by block: yields (which of the queries, items).

        Arguments:
            places: of the queries among those to run.
            values: the score of each, of `settled`.
        """
        for items, block in self.scores(places):
            row, column = (block == values).nonzero(as_tuple=True)
            yield row, items[column]

    def _some(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.target.block(0, len(self.queries))[0] if self._shared else None
        rows = self.rows[places]
        x = self.target.space(self.queries[rows]) if x is None else x[rows]
        return x, None if self.own is None else self.own[places]


def _leave_out(scores: Tensor, own: Tensor | None, first: int) -> None:
    if own is not None:
        inside = ((own >= first) & (own < first + scores.shape[1])).nonzero().squeeze(1)
        scores[inside, own[inside] - first] = -torch.inf


def in_order_of_ids(function: str, ids: Tensor, gallery: Tensor) -> tuple[Int64[Tensor, " gallery"], Tensor]:
    """The ids of a gallery in order, and the rows in that order.

    Raises:
        InputError: for ids that are no integers, repeat, are negative, or do not fit the rows.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.shape != gallery.shape[:1]:
        raise InputError(
            f"{function}: gallery_ids have dtype {ids.dtype} and shape {tuple(ids.shape)}, "
            f"expected {len(gallery)} integers"
        )
    ordered, order = ids.detach().to(gallery.device, torch.int64).sort()
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise InputError(f"{function}: gallery_ids hold {int(repeated[0])} more than once, expected each once")
    if int(ordered[0]) < 0:
        raise InputError(f"{function}: gallery_ids hold {int(ordered[0])}, expected ids of at least 0")
    return ordered, order


def rows_in_order(rows: Tensor, order: Int64[Tensor, " rows"]) -> Tensor:
    """The rows in an order, without a copy where it is the one they have: a mapped file stays one."""
    return rows if bool((order.diff() == 1).all()) else rows[order]


def own_rows(
    function: str, exclude_self: bool | Tensor, queries: Tensor, size: int, ids: Int64[Tensor, " gallery"] | None
) -> Int64[Tensor, " queries"] | None:
    """The gallery row that each query must not return, or None.

    Arguments:
        function: name of the caller, for messages.
        exclude_self: whether the gallery is the queries, or the id of each query, a tensor.
        queries: as many.
        size: of the gallery.
        ids: of the gallery's rows, in order; None: the row is the id.

    Raises:
        InputError: for ids that the gallery does not hold, and what is neither.
    """
    if isinstance(exclude_self, bool):
        return torch.arange(len(queries), device=queries.device) if exclude_self else None
    given: object = exclude_self
    if not isinstance(given, Tensor):
        kind = type(given).__name__
        raise InputError(f"{function}: exclude_self is of type {kind}, expected True, False or a tensor of ids")
    own = given.detach().to(queries.device)
    if own.is_floating_point() or own.is_complex() or own.dtype == torch.bool or own.shape != queries.shape[:1]:
        raise InputError(
            f"{function}: exclude_self has dtype {own.dtype} and shape {tuple(own.shape)}, "
            f"expected the ids of {len(queries)} queries"
        )
    own = own.to(torch.int64)
    rows = own if ids is None else torch.searchsorted(ids, own).clamp_max(size - 1)
    known = (rows >= 0) & (rows < size) if ids is None else ids[rows] == own
    if not bool(known.all()):
        missing = int(own[~known][0])
        raise InputError(f"{function}: exclude_self holds id {missing}, expected ids that the gallery holds")
    return rows


# --- rows -------------------------------------------------------------------------------------------------------------


def as_rows(function: str, name: str, x: Rows) -> Float[Tensor, "rows dim"]:
    """The check of embeddings at the public boundary: a finite tensor [rows, dim], cut off; half precision stays."""
    if isinstance(x, np.ndarray):
        if x.dtype.kind != "f" or x.dtype.itemsize > 8:
            raise InputError(f"{function}: {name} has dtype {x.dtype}, expected a floating-point dtype")
        # A copy where torch cannot share: foreign byte order, negative strides.
        x = np.require(x, dtype=x.dtype.newbyteorder("="), requirements=["C"])
        x = torch.from_numpy(x) if x.flags.writeable else _read_only(x)
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise InputError(f"{function}: {name} has dtype {x.dtype}, expected a floating-point dtype")
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(f"{function}: {name} has shape {tuple(x.shape)}, expected [rows, dim], neither of them 0")
    x = x.detach()
    step = max(1, BLOCK // x.shape[1])  # a memory map is read a block at a time
    finite = torch.cat([torch.isfinite(part).all(1) for part in torch.split(x, step)])
    if not bool(finite.all()):
        bad = (~finite).nonzero().squeeze(1)
        rows = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
        more = ", ".join(map(str, bad[1:6].tolist())) + (", ..." if len(bad) > 6 else "")
        raise InputError(
            f"{function}: {name} holds NaN or infinity in {rows}, the first is row {int(bad[0])}"
            + (f" (then {more})" if more else "")
        )
    return x


def _read_only(x: NDArray[Any]) -> Tensor:
    """Memory that must not be written to, such as a mapped file: nothing here does, and torch warns of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(x)


def precision(x: Tensor) -> torch.dtype:
    """In which rows are computed with: their own, but float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def raised(x: Tensor) -> Tensor:
    """Rows as they are computed with, see `precision`."""
    return x.to(precision(x))


def refuse_others(
    function: str, rows: tuple[str, torch.Size, torch.device], gallery: tuple[str, torch.Size, torch.device]
) -> None:
    """Checks that rows can be scored against a gallery.

    Arguments:
        function: name of the caller, for messages.
        rows: what they are called, their shape and device.
        gallery: likewise.

    Raises:
        InputError: for another width or device.
    """
    (name, shape, device), (other, its_shape, its_device) = rows, gallery
    if shape[1] != its_shape[1]:
        raise InputError(
            f"{function}: {name} have shape {tuple(shape)} and {other} {tuple(its_shape)}, expected the same width"
        )
    if device != its_device:
        raise InputError(f"{function}: {name} are on {device} and {other} on {its_device}, expected one device")


def as_pair(
    function: str, queries: Rows, gallery: Rows, names: tuple[str, str]
) -> tuple[Float[Tensor, "queries dim"], Float[Tensor, "gallery dim"]]:
    """Two sets of embeddings, of one width, device and `precision` (the wider of the two)."""
    x = as_rows(function, names[0], queries)
    y = x if gallery is queries else as_rows(function, names[1], gallery)
    refuse_others(function, (names[0], x.shape, x.device), (names[1], y.shape, y.device))
    if precision(x) == precision(y):
        return x, y
    return x.double(), y.double()


def unit_rows(x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """Rows of length 1, zero rows left at zero; scaled first, so that no square overflows or underflows."""
    x = raised(x)
    largest = x.abs().amax(1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)


def similarity(
    x: Tensor, y: Tensor, metric: str, squares: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Scores of a block up to a term of the row alone: x.y, or 2 x.y - |y|^2 for the distance.

    Equal rows must get equal scores wherever they stand and however blocks are cut, or ties are not decided by id. The
    libraries of matrix products round differently at borders and for a few rows, so these are filled up with zeros, and
    one library multiplies, be there few rows or many.

    Arguments:
        x: queries.
        y: items.
        metric: as in `contrastive.search`.
        squares: the items' squared lengths, if they are known.
        out: where the scores may be written; of at least as many numbers, filled-up rows included.
    """
    rows, columns = len(x), len(y)
    squares = y.square().sum(1) if squares is None and metric == "euclidean" else squares
    x, y = filled_up(x, _WHOLE[0]), filled_up(y, _WHOLE[1])
    place = None if out is None else out[: len(x) * len(y)].view(len(x), len(y))
    with torch.autocast(x.device.type, enabled=False), fast_products(x, _ANY_SIZE):  # autocast: in bfloat16
        if metric != "euclidean":
            return torch.mm(x, y.T, out=place)[:rows, :columns]
        assert squares is not None
        return torch.addmm(filled_up(squares, _WHOLE[1]).neg(), x, y.T, alpha=2.0, out=place)[:rows, :columns]


def even_width(size: int, most: int) -> int:
    """The width of blocks of columns that are all the same, whole multiples, and about as wide as they may be.

    Arguments:
        size: columns in all.
        most: columns of one block.
    """
    count = -(-size // most)
    return -(-size // (count * _WHOLE[1])) * _WHOLE[1]


def filled_up(x: Tensor, multiple: int) -> Tensor:
    """Zeros after the last row, up to a multiple of so many; no copy where there is nothing to add."""
    missing = -len(x) % multiple
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


def _chosen(function: str, x: Tensor, backend: str) -> tuple[Literal["torch", "faiss", "filter"], str | None]:
    """Who searches exactly, and the description of an index if one is to search approximately."""
    if backend == "auto":
        if x.device.type != "cpu" or precision(x) != torch.float32 or not _faiss.safe_by_default():
            return "torch", None
        return "faiss" if _faiss.gpu_count() else "filter", None
    refuse_backend(function, backend)
    if backend == "torch":
        return "torch", None
    return ("faiss", None) if backend == "faiss" else ("torch", backend)


def refuse_backend(function: str, backend: str) -> None:
    """Refuses a back end that is none, or whose library is missing.

    Arguments:
        function: name of the caller, for messages.
        backend: as in `contrastive.search`.

    Raises:
        InputError: for such a back end.
    """
    if backend in ("auto", "torch"):
        return
    if backend != "faiss" and not _faiss.is_factory(backend):
        raise InputError(
            f"{function}: backend is {backend!r}, expected one of auto, torch, faiss, "
            "or a FAISS factory string such as 'IVF4096,Flat'"
        )
    if not _faiss.available():
        raise InputError(f"{function}: backend is {backend!r}, which needs FAISS: pip install 'kpair[faiss]'")


def _torch_top(
    x: Tensor,
    y: Tensor,
    k: int,
    target: Target,
    squares: Tensor | None,
    own: Tensor | None,
    *,
    by_distance: bool = False,
) -> tuple[Tensor, Tensor]:
    """Exact top-k over blocks of scores, or of distances made of these; equal scores in the order of ids."""
    width = even_width(target.widest, max(BLOCK_WIDTH, 4 * k))
    height = max(2, BLOCK // width)
    starts = range(0, len(x), height)
    best: list[tuple[Tensor, Tensor] | None] = [None] * len(starts)
    # Fresh memory costs as much as half of the product.
    out = x.new_empty((min(height, len(x)) + _WHOLE[0]) * (width + _WHOLE[1]))
    for first in range(0, len(y), width):
        z, columns = filled_up(y[first : first + width], width), min(width, len(y) - first)
        of_z = None if squares is None else filled_up(squares[first : first + width], width)
        for place, i in enumerate(starts):
            scores = similarity(x[i : i + height], z, target.metric, of_z, out=out)[:, :columns]
            if by_distance:
                scores = distances(x[i : i + height], z, scores)
            _leave_out(scores, None if own is None else own[i : i + height], first)
            best[place] = with_block(best[place], scores, first, k)
    found = [part for part in best if part is not None]
    return torch.cat([scores for scores, _ in found]), torch.cat([ids for _, ids in found])


def with_block(best: tuple[Tensor, Tensor] | None, scores: Tensor, first: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores so far and their columns, in order, after one more block of columns.

    Arguments:
        best: of the blocks before; None: there were none.
        scores: of the block.
        first: the column of its first.
        k: how many are kept.
    """
    values, columns = largest_in_order(scores, min(k, scores.shape[1]))
    columns = columns + first
    return merged(best, (values, columns), k)


def _faiss_top(
    x: Tensor, y: Tensor, k: int, target: Target, squares: Tensor | None, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same by FAISS. One more item is asked for, to see a tie at the cut: torch settles those rows."""
    metric = target.metric
    asked = min(k + (own is not None) + 1, len(y))
    found = _faiss.knn(
        x.cpu().contiguous().numpy(), y.cpu().contiguous().numpy(), asked, inner_product=metric != "euclidean"
    )
    values, ids = (torch.from_numpy(part).to(x.device) for part in found)
    if own is not None and asked > k:  # drop the own id; where it is not among them, the last
        kept = ids != own[:, None]
        kept[:, -1] &= ~kept.all(1)
        values, ids = values[kept].view(len(x), -1), ids[kept].view(len(x), -1)
    elif own is not None:  # all of a block: the own id goes last
        values = values.masked_fill(ids == own[:, None], -torch.inf)
        values, order = values.sort(dim=1, descending=True, stable=True)
        ids = ids.gather(1, order)
    cut = (values[:, k] == values[:, k - 1]).nonzero().squeeze(1) if values.shape[1] > k else torch.empty(0)
    values, ids = in_order(values[:, :k], ids[:, :k])
    if metric == "euclidean":
        values = values + x.square().sum(1, keepdim=True)
    if len(cut):
        values, ids = values.clone(), ids.clone()
        values[cut], ids[cut] = _torch_top(x[cut], y, k, target, squares, None if own is None else own[cut])
    return values, ids


def _by_distance(
    top: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    y: Tensor,
    k: int,
    target: Target,
    squares: Tensor | None,
    own: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The k nearest by the distance; all of it is computed where 2 x.y - |y|^2 does not tell the last from the next.

    Arguments:
        top: finds them by 2 x.y - |y|^2.
        x: queries.
        y: items.
        k: at most as many as there are items.
        target: the gallery.
        squares: of the items.
        own: as in `Search`.
    """
    scores, ids = top(x, y, min(k + 1, len(y)), target, squares, own)
    unsure = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if scores.shape[1] > k:
        error = max(32, x.shape[1]) * torch.finfo(x.dtype).eps * x.square().sum(1)
        unsure = _cancels(x, scores[:, k - 1 : k]).squeeze(1) & (scores[:, k - 1] - scores[:, k] <= error)
    scores, ids = _as_distances(x, y, scores[:, :k], ids[:, :k])
    if bool(unsure.any()):
        of_some = None if own is None else own[unsure]
        scores[unsure], ids[unsure] = _torch_top(x[unsure], y, k, target, squares, of_some, by_distance=True)
    return scores, ids


def _cancels(x: Tensor, scores: Tensor) -> Tensor:
    """Where 2 x.y - |y|^2 has next to no digits of the distance left, as between near duplicates."""
    length = x.square().sum(1, keepdim=True)
    return scores - length > -1e-3 * length


def _as_distances(x: Tensor, y: Tensor, scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rankings by 2 x.y - |y|^2 as rankings by the distance, in its order."""
    return in_order(distances(x, y, scores, ids), ids)


def distances(
    x: Float[Tensor, "s dim"],
    y: Float[Tensor, "items dim"],
    scores: Float[Tensor, "s k"],
    ids: Int64[Tensor, "s k"] | None = None,
) -> Float[Tensor, "s k"]:
    """Turns 2 x.y - |y|^2 into -|x - y|^2; where these cancel, as between near duplicates, it is computed anew.

    Arguments:
        x: queries.
        y: items.
        scores: of `similarity`.
        ids: which items these are of; None: of the first, the second, ...
    """
    row, column = _cancels(x, scores).nonzero(as_tuple=True)
    scores = scores - x.square().sum(1, keepdim=True)
    step = max(1, BLOCK // x.shape[1])
    for first in range(0, len(row), step):
        i, j = row[first : first + step], column[first : first + step]
        item = j if ids is None else ids[i, j]
        scores[i, j] = (x[i] - y[item]).square().sum(1).neg() + 0.0
    return scores.clamp_max(0.0)
