r"""Both directions of the K-pair loss from one set of tiles: rows and columns summed together, then weighed together.

With :math:`r_i` and :math:`c_j` the sums of :math:`e^{s_{ij}}` over the negatives of a row and of a column, and
:math:`p` the score of the positive, left out of them,

.. math::
    L_i = \operatorname{softplus}(\log r_i - p_i), \qquad
    \frac{\partial L}{\partial s_{ij}} = e^{s_{ij}} \Bigl(\frac{1}{r_i + e^{p_i}} + \frac{1}{c_j + e^{p_j}}\Bigr)
    \text{ off the positives.}

Leaving the positive out keeps the digits of a small loss, and makes the loss of a row without negatives exactly zero.
Scores are held in units of log 2: `exp2` is about three times as fast as `exp`.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from contrastive.factors import UnitRows
from contrastive.gemm import fast_products
from contrastive.rows import softplus
from contrastive.scores import eager_on_cpu

__all__ = [
    "LN2",
    "LOG2E",
    "Absent",
    "absent_in",
    "checked_mask",
    "exponents",
    "losses_of",
    "number_of",
    "parts",
    "refuse_undefined",
    "two_directions",
]

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)

# Which candidates are absent: ``(rows [m], columns [n]) -> Bool[m, n]``, asked part by part.
Absent = Callable[[Tensor, Tensor], Tensor]

# 512 x 512 floats stay in a core's second-level cache and still fill its matrix units (measured); an
# accelerator wants fewer and larger products.
_TILE, _TILE_ON_ACCELERATORS = 512, 4096


def two_directions(
    function: str,
    u: Tensor,
    v: Tensor | None,
    scale: Tensor | float,
    *,
    unit: bool,
    absent: Absent | None,
    stored: bool,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """The mean loss of both directions between the rows of `u` and of `v`, and the gradients of `u`, `v` and `scale`.

    Columns of `v` beyond the rows of `u` are candidates of the rows and nothing else. Without `v` the rows of `u` are
    two views, one after the other (NT-Xent): by symmetry the upper triangle of tiles is enough.

    Arguments:
        function: name of the public caller, for messages.
        u: anchors, at least one.
        v: candidates; None means NT-Xent.
        scale: as in `contrastive.factors.Factors`.
        unit: as in `contrastive.factors.Factors`.
        absent: which pairs are absent; not with NT-Xent.
        stored: whether the scores of the first pass are kept for the second.
        needed: which of the three gradients are.

    Raises:
        ValueError: for an undefined score, or an absent positive; names the row.
    """
    tiles = _Tiles(u, v, number_of(scale, unit=unit), unit=unit, absent=absent, stored=stored)
    with fast_products(u, tiles.rows * tiles.columns * u.shape[1]):
        sums = tiles.sum_up()
        losses = sums.close(tiles.positive, masked=absent is not None)[: tiles.rows if v is None else 2 * tiles.rows]
        value = losses.mean()
        refuse_undefined(function, value, losses, tiles.positive[: tiles.rows])
        if not any(needed):
            return value, [None, None, None]
        return value, tiles.weigh(sums, scale if isinstance(scale, Tensor) and needed[2] else None)


class _Tiles:
    """The matrix of scores, tile by tile, twice."""

    def __init__(
        self, u: Tensor, v: Tensor | None, alpha: float, *, unit: bool, absent: Absent | None, stored: bool
    ) -> None:
        self.triangle = v is None
        self.alpha = alpha
        self.absent = absent
        self.anchors = UnitRows(u, unit=unit)
        self.candidates = self.anchors if v is None else UnitRows(v, unit=unit)
        self.scaled = self.candidates.scaled(alpha * LOG2E)
        self.rows, self.columns = u.shape[0], self.scaled.shape[0]
        # The positive of row i stands in column i, or, among two views, i + half; the first `paired` rows tell of all.
        self.half = self.rows // 2 if self.triangle else 0
        self.paired = self.half if self.triangle else self.rows
        # Sums and positives of rows, then of columns; in the triangle they are one. A column beyond the pairs is a
        # candidate only: nothing is left of the share of its negatives beside an infinite positive.
        self.positive = u.new_full((self.rows if self.triangle else self.rows + self.columns,), math.inf)
        side = _TILE if u.device.type == "cpu" else _TILE_ON_ACCELERATORS
        self.row_parts, self.column_parts = list(parts(self.rows, side)), list(parts(self.columns, side))
        self.kept = u.new_empty(self.rows, self.columns) if stored else None
        self.buffer = u.new_empty(0 if stored else min(side, self.rows) * min(side, self.columns))

    def sum_up(self) -> "_FixedShift | _RunningMaxima":
        """The first pass: sums over the negatives of every row and column, and the positives' scores."""
        shift = self._shared_shift()
        columns_from = None if self.triangle else self.rows
        sums = (
            _RunningMaxima(self.positive, columns_from)
            if shift is None
            else _FixedShift(self.positive, columns_from, shift)
        )
        second = self.half if self.triangle else self.rows  # where the other mention of a positive stands
        for rows in self.row_parts:
            left = self.anchors[rows]
            for columns in self._columns(rows):
                tile = self._form(left, rows, columns)
                for diagonal, where in self._positives(tile, rows, columns):
                    self.positive[where] = diagonal
                    self.positive[where.start + second : where.stop + second] = diagonal
                    diagonal.fill_(-math.inf)
                sums.add(tile, rows, None if self._on_diagonal(rows, columns) else columns)
        return sums

    def weigh(self, sums: "_FixedShift | _RunningMaxima", scale: Tensor | None) -> list[Tensor | None]:
        """The second pass: gradients of the factors, and of `scale` unless None."""
        du = torch.zeros_like(self.anchors.rows)
        dv = du if self.triangle else torch.zeros_like(self.scaled)
        each = (1.0 if self.triangle else 0.5) / self.rows
        along: list[Tensor] = []
        for rows in self.row_parts:
            left = self.anchors[rows]
            for columns in self._columns(rows):
                tile = sums.ready_(self._form(left, rows, columns)) if self.kept is None else self.kept[rows, columns]
                sums.weigh_(tile, rows, columns)
                for diagonal, where in self._positives(tile, rows, columns):
                    diagonal.copy_(sums.at_positives(where, slice(where.start + self.half, where.stop + self.half)))
                du[rows].addmm_(tile, self.scaled[columns])
                if not self._on_diagonal(rows, columns):
                    dv[columns].addmm_(tile.T, self.scaled[rows] if self.triangle else left)
            if not self.triangle:
                if scale is not None:
                    along.append((left * du[rows]).sum(dtype=torch.float64))
                self.anchors.pull_back_(du[rows], rows, each * LN2, left, 1.0)
        length = self.alpha * LOG2E
        if self.triangle:
            for rows in self.row_parts:
                if scale is not None:
                    along.append((self.anchors[rows] * du[rows]).sum(dtype=torch.float64))
                self.anchors.pull_back_(du[rows], rows, each * LN2, self.scaled[rows], length)
        else:
            for columns in self.column_parts:
                self.candidates.pull_back_(dv[columns], columns, each * self.alpha, self.scaled[columns], length)
        dscale = None
        if scale is not None:  # the scores are homogeneous in it, and a pair of two views is met from both ends
            dscale = (torch.stack(along).sum() * (each * LN2 / self.alpha / (2 if self.triangle else 1))).to(scale)
            dscale = dscale.reshape(scale.shape)
        return [du, None if self.triangle else dv, dscale]

    def _columns(self, rows: slice) -> list[slice]:
        return [c for c in self.column_parts if c.start >= rows.start] if self.triangle else self.column_parts

    def _on_diagonal(self, rows: slice, columns: slice) -> bool:
        """Whether a tile of the triangle holds both a pair and its mirror image, so that its rows tell of all."""
        return self.triangle and rows == columns

    def _form(self, left: Tensor, rows: slice, columns: slice) -> Tensor:
        shape = rows.stop - rows.start, columns.stop - columns.start
        tile = self.buffer[: shape[0] * shape[1]].view(shape) if self.kept is None else self.kept[rows, columns]
        torch.mm(left, self.scaled[columns].T, out=tile)
        if self.absent is not None:
            tile.masked_fill_(absent_in(self.absent, rows, columns, tile.device), -math.inf)
        if self._on_diagonal(rows, columns):
            tile.fill_diagonal_(-math.inf)  # the self pair
        return tile

    def _positives(self, tile: Tensor, rows: slice, columns: slice) -> Iterator[tuple[Tensor, slice]]:
        """The positives that stand in a tile, as views of it, and the rows that tell of them."""
        start = max(rows.start, columns.start - self.half)
        stop = min(rows.stop, columns.stop - self.half, self.paired)
        if start < stop:
            i = slice(start - rows.start, stop - rows.start)
            j = slice(start + self.half - columns.start, stop + self.half - columns.start)
            yield tile[i, j].diagonal(), slice(start, stop)
            if self._on_diagonal(rows, columns):  # and their mirror images
                yield tile[j, i].diagonal(), slice(start, stop)

    def _shared_shift(self) -> float | None:
        """One shift that no row or column overflows with, nor loses digits; None where there may be none.

        Scores lie within a bound, and every row and column holds its positive: a log-sum is no smaller.
        """
        bound = self.anchors.largest_norm()
        bound *= bound if self.triangle else self.candidates.largest_norm()
        bound = abs(self.alpha) * LOG2E * bound * 1.0001
        highest, lowest = exponents(self.scaled.dtype, self.columns)
        if bound <= min(highest, -lowest):
            return 0.0
        if not bound < math.inf:
            return None
        smallest = math.inf
        for rows in self.row_parts:
            some = slice(rows.start, min(rows.stop, self.paired))
            if some.start < some.stop:
                partners = self.scaled[some.start + self.half : some.stop + self.half]
                smallest = min(smallest, float((self.anchors[some] * partners).sum(1).amin()))
        return bound - highest if bound - (smallest - 1e-4 * bound) <= highest - lowest else None


class _Sums:
    """Sums over the negatives of every row, and from `columns_from` on, of every column; of rows alone if None."""

    def __init__(self, positive: Tensor, columns_from: int | None) -> None:
        self.sums = torch.zeros_like(positive)
        self._offset = columns_from or 0

    def _of_columns(self, columns: slice) -> slice:
        return slice(columns.start + self._offset, columns.stop + self._offset)


class _FixedShift(_Sums):
    """Sums of exponentials relative to one shift."""

    def __init__(self, positive: Tensor, columns_from: int | None, shift: float) -> None:
        super().__init__(positive, columns_from)
        self._shift = shift

    def ready_(self, tile: Tensor) -> Tensor:
        """Turns a tile of scores, in place, into what `weigh_` expects; `add` does so as well."""
        return (tile.sub_(self._shift) if self._shift else tile).exp2_()

    def add(self, tile: Tensor, rows: slice, columns: slice | None) -> None:
        """Adds a tile to the sums of its rows and, unless None, of its columns."""
        self.ready_(tile)
        self.sums[rows] += tile.sum(1)
        if columns is not None:
            self.sums[self._of_columns(columns)] += tile.sum(0)

    def close(self, positive: Tensor, *, masked: bool) -> Tensor:
        """Takes the positives' scores and returns all losses."""
        relative = positive - self._shift
        whole = relative.exp2().add_(self.sums)
        self._inverse = (whole.masked_fill_(whole == 0, math.inf) if masked else whole).reciprocal_()  # 0 for padding
        self._rest = self.sums * self._inverse
        return losses_of(self.sums.log2(), relative, masked=masked)

    def weigh_(self, tile: Tensor, rows: slice, columns: slice) -> None:
        """Turns a tile, in place, into the gradient off the positives."""
        tile.mul_(self._inverse[rows, None] + self._inverse[self._of_columns(columns)])

    def at_positives(self, rows: slice, columns: slice) -> Tensor:
        """The gradient at positives."""
        return -(self._rest[rows] + self._rest[self._of_columns(columns)])


class _RunningMaxima(_Sums):
    """Sums of exponentials relative to the largest score met so far, of every row and of every column."""

    def __init__(self, positive: Tensor, columns_from: int | None) -> None:
        super().__init__(positive, columns_from)
        # The lowest float, not -inf: an absent score relative to it is still -inf, not NaN.
        self._top = torch.full_like(positive, torch.finfo(positive.dtype).min)

    def ready_(self, tile: Tensor) -> Tensor:
        """As in `_FixedShift`; here the scores are needed as they are."""
        return tile

    def add(self, tile: Tensor, rows: slice, columns: slice | None) -> None:
        """As in `_FixedShift`."""
        self._add(tile, rows, 1)
        if columns is not None:
            self._add(tile, self._of_columns(columns), 0)

    def _add(self, tile: Tensor, part: slice, dim: int) -> None:
        higher = torch.maximum(self._top[part], tile.amax(dim))
        exponentials = (tile - higher.unsqueeze(dim)).exp2_()
        self.sums[part] = (self._top[part] - higher).exp2_().mul_(self.sums[part]).add_(exponentials.sum(dim))
        self._top[part] = higher

    def close(self, positive: Tensor, *, masked: bool) -> Tensor:
        """As in `_FixedShift`."""
        log_sum = self.sums.log2().add_(self._top)
        whole = torch.logaddexp2(log_sum, positive)
        self._whole = whole.masked_fill_(whole == -math.inf, math.inf)  # padding: a share of nothing
        self._rest = (log_sum - self._whole).exp2_()
        return losses_of(log_sum, positive, masked=masked)

    def weigh_(self, tile: Tensor, rows: slice, columns: slice) -> None:
        """As in `_FixedShift`."""
        by_row = (tile - self._whole[rows, None]).exp2_()
        tile.sub_(self._whole[self._of_columns(columns)]).exp2_().add_(by_row)

    def at_positives(self, rows: slice, columns: slice) -> Tensor:
        """As in `_FixedShift`."""
        return -(self._rest[rows] + self._rest[self._of_columns(columns)])


def number_of(scale: Tensor | float, *, unit: bool) -> float:
    """A scale as a number. A learnt one may start at 0, where its gradient is the limit: what is nearly 0 will do."""
    alpha, least = float(scale), 2.0**-40 if unit else 2.0**-100
    return math.copysign(least, alpha) if abs(alpha) < (least if unit else math.ulp(0.0)) else alpha


def parts(length: int, step: int) -> Iterator[slice]:
    """The consecutive slices of at most `step` items."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def exponents(dtype: torch.dtype, terms: int) -> tuple[float, float]:
    """The powers of two between which a sum of so many exponentials neither overflows nor loses digits to underflow."""
    info = torch.finfo(dtype)
    slack = math.log2(max(terms, 1)) + 2
    return math.log2(info.max) - slack, math.log2(info.tiny) - math.log2(info.eps) + slack


def absent_in(absent: Absent, rows: slice, columns: slice, device: torch.device) -> Tensor:
    """Which pairs of a tile are absent."""
    numbers = (torch.arange(s.start, s.stop, device=device) for s in (rows, columns))
    return checked_mask(absent(*numbers), rows.stop - rows.start, columns.stop - columns.start)


def checked_mask(mask: Tensor, rows: int, columns: int) -> Tensor:
    """What a function of absent pairs returned, if it is a mask of so many; a single row would broadcast in silence."""
    if mask.shape != (rows, columns) or mask.dtype != torch.bool:
        raise ValueError(
            f"absent: returned shape {tuple(mask.shape)} and dtype {mask.dtype} for {rows} rows and {columns} columns, "
            f"expected [{rows}, {columns}] and torch.bool"
        )
    return mask


def losses_of(log_sum: Tensor, positive: Tensor, *, masked: bool) -> Tensor:
    """Softplus of the difference, from units of log 2 to nats; 0 for padding, which only `masked` scores have."""
    difference = log_sum - positive
    if masked:
        difference.masked_fill_(log_sum == -math.inf, -math.inf)
    return softplus(difference.mul_(LN2))


def refuse_undefined(function: str, value: Tensor, losses: Tensor, positive: Tensor) -> None:
    """Names the first row whose loss is undefined; values are checked in eager mode on the CPU."""
    if not eager_on_cpu(value) or (math.isfinite(value) and float(positive.amax()) < math.inf):
        return
    losses, positive = losses.flatten(), positive.flatten()
    by_direction = losses.isfinite().view(-1, len(positive)) & (positive < math.inf)
    broken = ~(by_direction[0] if not by_direction[0].all() else by_direction.all(0))
    row = int(broken.nonzero()[0])
    if float(positive[row]) == -math.inf:
        raise ValueError(f"{function}: the target of row {row} is absent (-inf) while other candidates are present")
    raise ValueError(
        f"{function}: row {row} holds a NaN or +inf score, expected finite scores (-inf for an absent candidate)"
    )
