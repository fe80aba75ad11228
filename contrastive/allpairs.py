r"""The hardest negatives of every row of one set, exactly, without its matrix of scores.

Products of matrices are the cost, and bfloat16 halves it. Such products filter (`contrastive.codes`): a pair that may
be among the best within the error passes, and those few have their scores computed anew in float64.

>>> rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
>>> AllPairs("example", rows).top(1).ids.flatten()
tensor([1, 0, 3, 2])
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from contrastive import _faiss, gemm, neighbours
from contrastive.codes import Codes, faster_dtype
from contrastive.errors import InputError
from contrastive.neighbours import Ranking

__all__ = ["AllPairs"]

# Rows and columns of a block of products, and the columns whose maximum is compared before any of them; measured.
HEIGHT, WIDTH = 1024, 4096
_GROUP = 64
# The first block is this wide: nothing is known of its rows yet, so all of it passes.
_FIRST_WIDTH = 512
# Pairs that a strip may hold back.
LIMIT = 2**22
# Numbers of the rows whose scores are computed anew at a time: they stay in the cache.
_NUMBERS = 2**17


class AllPairs:
    r"""Rows prepared for the search of each one's hardest negatives among the others.

    A pair (i, j) counts if :math:`j \ne i`, their classes differ, and their score is not above the threshold. A score
    is computed in float64 from the two rows alone, once the search has found the pair: no digit depends on blocks,
    threads or the library of products.

    Arguments:
        function: name of the caller, for messages.
        rows: finite, as `contrastive.neighbours.as_rows` returns them.
        metric: as in `contrastive.search`.
        classes: of every row; rows of one class are no negatives of each other.
        threshold: in units of the score: what scores above it is no negative.
        index: a FAISS factory string, for an approximate search; its finds are scored as all others are.
        nprobe: of an inverted file, how many of its lists are searched.

    Raises:
        InputError: for an unknown metric or index, a threshold that is NaN, scores that overflow.
    """

    def __init__(
        self,
        function: str,
        rows: Float[Tensor, "rows dim"],
        *,
        metric: str = "cosine",
        classes: Int64[Tensor, " rows"] | None = None,
        threshold: float | None = None,
        index: str | None = None,
        nprobe: int = 32,
    ) -> None:
        if threshold is not None and math.isnan(threshold):
            raise InputError(f"{function}: threshold is {threshold}, expected a score")
        self.function, self.metric, self.threshold = function, metric, threshold
        self.rows, _ = neighbours.prepared(function, rows, rows, metric, neighbours.precision(rows))
        self.classes = None if classes is None else classes.to(rows.device)
        self._filter: Codes | None = None
        self._index = None
        if index is not None:
            numbers, by_product = self.rows.float().cpu().numpy(), metric != "euclidean"
            self._index = _faiss.build(function, numbers, [numbers], index, inner_product=by_product, nprobe=nprobe)

    def top(self, k: int, anchors: Int64[Tensor, " anchors"] | None = None, *, exact: bool = False) -> Ranking:
        r"""Finds the k hardest negatives of some rows.

        Arguments:
            k: how many, from 1 to the number of rows less 1.
            anchors: the numbers of these rows; None: all.
            exact: search exactly, although there is an index.

        Returns:
            Ids and float32 scores, hardest first, equal scores by id; -1 and :math:`-\infty` where there are fewer.

        Raises:
            InputError: for a `k` that does not fit.
        """
        if len(self.rows) < 2:
            raise InputError(f"{self.function}: got a single row, expected at least two")
        if isinstance(k, bool) or not 1 <= k < len(self.rows):
            raise InputError(f"{self.function}: k is {k}, expected 1 to {len(self.rows) - 1}, the other rows")
        anchors = torch.arange(len(self.rows)) if anchors is None else anchors
        search = self._strip if exact or self._index is None else self._by_index
        anchors, height = anchors.to(self.rows.device), max(1, min(HEIGHT, LIMIT // (8 * k)))
        parts = [search(k, anchors[start : start + height]) for start in range(0, len(anchors), height)]
        return Ranking(torch.cat([part.ids for part in parts]), torch.cat([part.scores for part in parts]))

    def _strip(self, k: int, anchors: Tensor) -> Ranking:
        if self._filter is None:
            dtype = faster_dtype(self.rows.device, self.rows.shape[1])
            self._filter = Codes.of(self.rows, self.metric, dtype)
        pairs = self._filtered(self._filter, k, anchors)
        # Rows that crowd within the error of bfloat16 make more work behind the filter than it saves.
        if self._filter.dtype == torch.bfloat16 and (pairs is None or len(pairs[0]) > 16 * k * len(anchors)):
            self._filter = Codes.of(self.rows, self.metric, torch.float32)
            pairs = self._filtered(self._filter, k, anchors) if pairs is None else pairs
        if pairs is None:  # scores that are equal within rounding: a collapsed encoder
            pairs = self._ranked(k, anchors)
        return self._ranking(k, anchors, *pairs)

    def _filtered(self, codes: Codes, k: int, anchors: Tensor) -> tuple[Tensor, Tensor] | None:
        """All pairs that may be among the k best of their anchor, and few others; None where there are too many.

        Pairs are a place among the anchors, and a row.
        """
        strip = _Strip(codes, k, self.rows[anchors], self._ceiling(anchors, codes.scale))
        for start, end in _blocks(len(self.rows), max(_FIRST_WIDTH, 4 * k)):
            place, column, value = strip.above(start, end)
            counts = self._counts(anchors[place], column)
            strip.keep(place[counts], column[counts], value[counts])
            if strip.held > LIMIT:
                return None
        return strip.kept()

    def _counts(self, row: Tensor, column: Tensor) -> Tensor:
        """Whether a pair is one of two rows, and of two classes."""
        differ = row != column
        return differ if self.classes is None else differ & (self.classes[row] != self.classes[column])

    def _ceiling(self, anchors: Tensor, scale: float) -> Tensor | None:
        """The threshold in the units of the filter's products, for each anchor."""
        if self.threshold is None:
            return None
        x = self.rows[anchors].double()
        ceiling = x.new_full((len(x),), self.threshold + abs(self.threshold) * 2.0**-22)
        if self.metric == "euclidean":
            ceiling = (ceiling + x.square().sum(1)) / 2
        return ceiling.mul(scale**2).float()

    def _ranked(self, k: int, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """By ranking whole blocks of scores, as `contrastive.search` does: rounding decides between near equals."""
        x = self.rows[anchors]
        width = min(len(self.rows), max(neighbours.BLOCK_WIDTH, 4 * k))
        best: tuple[Tensor, Tensor] | None = None
        for start in range(0, len(self.rows), width):
            y = self.rows[start : start + width]
            scores = neighbours.similarity(x, y, self.metric)
            if self.metric == "euclidean":
                scores = scores - x.square().sum(1, keepdim=True)
            columns = torch.arange(start, start + len(y), device=x.device)
            counts = self._counts(anchors[:, None], columns)
            if self.threshold is not None:
                counts &= scores <= self.threshold
            best = neighbours.with_block(best, scores.masked_fill_(~counts, -torch.inf), start, k)
        assert best is not None
        place, rank = (best[0] > -torch.inf).nonzero(as_tuple=True)
        return place, best[1][place, rank]

    def _by_index(self, k: int, anchors: Tensor) -> Ranking:
        """What the index finds; of anchors that are left with fewer than k, it is asked for more."""
        ids = torch.full((len(anchors), k), -1, dtype=torch.int64, device=self.rows.device)
        scores = torch.full((len(anchors), k), -torch.inf, device=self.rows.device)
        asked, left = _faiss.candidates(self._index) * (k + 1), torch.arange(len(anchors), device=self.rows.device)
        while len(left):
            asked = min(asked, len(self.rows))
            found = _faiss.search(self._index, self.rows[anchors[left]].float().cpu().numpy(), asked)
            columns = torch.from_numpy(found).to(self.rows.device)
            place, rank = (columns >= 0).nonzero(as_tuple=True)
            ranking = self._ranking(k, anchors[left], place, columns[place, rank])
            ids[left], scores[left] = ranking.ids, ranking.scores
            # -1: its lists hold no more.
            left = left[(ranking.ids[:, -1] < 0) & (columns[:, -1] >= 0) & (asked < len(self.rows))]
            asked *= 4
        return Ranking(ids, scores)

    def _ranking(self, k: int, anchors: Tensor, place: Tensor, column: Tensor) -> Ranking:
        """The k best of the pairs that were found, by their scores computed anew."""
        row = anchors[place]
        scores = self.score(row, column)
        counts = self._counts(row, column)
        if self.threshold is not None:
            counts &= scores <= self.threshold
        place, column, scores = place[counts], column[counts], scores[counts]
        # By place, then score, then id: the last key first, each sort keeping the order of the one before.
        order = column.argsort(stable=True)
        order = order[scores[order].argsort(descending=True, stable=True)]
        order = order[place[order].argsort(stable=True)]
        place, column, scores = place[order], column[order], scores[order]
        rank = torch.arange(len(place), device=place.device) - _starts(place, len(anchors))[place]
        kept = rank < k
        ids = torch.full((len(anchors), k), -1, dtype=torch.int64, device=place.device)
        values = torch.full((len(anchors), k), -torch.inf, dtype=torch.float32, device=place.device)
        ids[place[kept], rank[kept]], values[place[kept], rank[kept]] = column[kept], scores[kept]
        return Ranking(ids, values)

    def score(self, row: Int64[Tensor, " pairs"], column: Int64[Tensor, " pairs"]) -> Float32[Tensor, " pairs"]:
        """The scores of pairs, each from its two rows alone.

        Arguments:
            row: of each pair.
            column: of each pair.
        """
        parts = [self.rows.new_empty(0, dtype=torch.float32)]
        step = max(1, _NUMBERS // self.rows.shape[1])
        for start in range(0, len(row), step):
            x = self.rows[row[start : start + step]].double()
            y = self.rows[column[start : start + step]].double()
            value = -(x - y).square_().sum(1) if self.metric == "euclidean" else x.mul_(y).sum(1)
            parts.append(value.float() + 0.0)  # no negative zero
        return torch.cat(parts)


# --- the filter -------------------------------------------------------------------------------------------------------


def _blocks(rows: int, first: int) -> Iterator[tuple[int, int]]:
    """Columns of the blocks: narrow ones to begin with, and what is no multiple of a group by itself."""
    start, width = 0, -(-first // _GROUP) * _GROUP
    whole = rows - rows % _GROUP
    while start < whole:
        end = min(start + width, whole)
        yield start, end
        start, width = end, max(width, min(2 * width, WIDTH))
    if whole < rows:
        yield whole, rows


class _Strip:
    """Some rows against all: what has passed the filter, and the floor that rises with it.

    Arguments:
        codes: of all.
        k: how many of each row are looked for.
        x: the rows.
        ceiling: of each row, the product above which a pair does not count; None: there is none.
    """

    def __init__(self, codes: Codes, k: int, x: Tensor, ceiling: Tensor | None) -> None:
        self._x, error, reach = codes.queries(x)
        self._y, self._k = codes.rows, k
        error = (error + 1.01 * codes.rounding * reach).float()
        # A pair below its ceiling by more than the error counts for sure, one above by more does not.
        self._surely = None if ceiling is None else ceiling - error
        self._at_most = None if ceiling is None else ceiling + error
        # The k-th best product less its error is a score that k pairs reach: one that may reach it is no lower.
        self._slack = 2.0 * error
        self._floor = torch.full_like(error, -torch.inf)
        self._best = error.new_full((len(x), k), -torch.inf)
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._new: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting = 0
        self.held = 0  # pairs that passed
        self._products = self._x.new_empty(0)

    def above(self, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Row (of the strip), column and product of the pairs that pass, in order."""
        rows, width = len(self._x), end - start
        if self._products.numel() < rows * width:
            self._products = self._x.new_empty(rows * width)
        products = self._products[: rows * width].view(rows, width)
        with torch.autocast(self._x.device.type, enabled=False), gemm.fast_products(self._x, rows * width * 128):
            torch.mm(self._x, self._y[start:end].T, out=products)
        row, column, value = _passing(products, self._floor)
        value = value.float()
        if self._at_most is not None:
            counts = value <= self._at_most[row]
            row, column, value = row[counts], column[counts], value[counts]
        return row, column + start, value

    def keep(self, row: Tensor, column: Tensor, value: Tensor) -> None:
        """Keeps pairs; the floor rises when there are enough new ones to be worth it."""
        self._new.append((row, column, value))
        self._waiting += len(row)
        self.held += len(row)
        if 4 * self._waiting >= self._k * len(self._x):
            self._raise_floor()

    def kept(self) -> tuple[Tensor, Tensor]:
        """Row and column of all that pass the last floor."""
        self._raise_floor()
        ((row, column, _),) = self._pairs
        return row, column

    def _raise_floor(self) -> None:
        if not self._new:
            return
        row, _, value = _joined(self._new)
        if self._surely is not None:
            counts = value <= self._surely[row]
            row, value = row[counts], value[counts]
        order = row.argsort(stable=True)
        row, value = row[order], value[order]
        place = torch.arange(len(row), device=row.device) - _starts(row, len(self._x))[row]
        fresh = self._best.new_full((len(self._x), int(place.max()) + 1 if len(place) else 0), -torch.inf)
        fresh[row, place] = value
        self._best = torch.cat([self._best, fresh], 1).topk(self._k, dim=1).values
        self._floor = torch.maximum(self._floor, self._best[:, -1] - self._slack)
        row, column, value = _joined([*self._pairs, *self._new])
        passing = value >= self._floor[row]
        self._pairs, self._new, self._waiting = [(row[passing], column[passing], value[passing])], [], 0
        self.held = int(passing.sum())


def _passing(products: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of the products that reach their row's floor, in order."""
    rows, width = products.shape
    if width % _GROUP == 0:
        # Few pass, once there is a floor: the maxima of groups tell where. Columns of equal remainder are a group.
        groups = products.view(rows, _GROUP, -1)
        row, group = (_maxima(groups, bool((floor > 0).all())) >= floor[:, None]).nonzero(as_tuple=True)
        if 8 * len(row) <= rows * width // _GROUP:
            members = groups[row, :, group]
            which, place = (members >= floor[row][:, None]).nonzero(as_tuple=True)
            return row[which], place * groups.shape[2] + group[which], members[which, place]
    row, column = (products >= floor[:, None]).nonzero(as_tuple=True)
    return row, column, products[row, column]


def _maxima(groups: Tensor, positive: bool) -> Tensor:
    """The maximum over the second of three dimensions, or anything that is not positive if `positive` ones matter only.

    Taken of the bits, as integers: torch is several times faster at these. Their order is that of the numbers where
    the sign is positive; where it is negative the other bits are turned over.
    """
    keys = groups.view(torch.int16 if groups.element_size() == 2 else torch.int32)
    sign, rest = 8 * groups.element_size() - 1, torch.iinfo(keys.dtype).max
    if positive:
        return keys.amax(1).view(groups.dtype)
    largest = (keys ^ ((keys >> sign) & rest)).amax(1)
    return (largest ^ ((largest >> sign) & rest)).view(groups.dtype)


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    row, column, value = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return row, column, value


def _starts(row: Tensor, rows: int) -> Tensor:
    """Where each row's entries begin in a list that is sorted by row."""
    counts = torch.bincount(row, minlength=rows)
    return counts.cumsum(0) - counts
