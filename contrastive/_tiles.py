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
    """The matrix of scores, tile by tile, twice.

    Rows and columns come in parts, and what a tile needs of them is taken apart once a pass: beside a tile's products,
    which leave nothing of the interpreter in the cache, a slice costs as much as a sum over the tile's rows (measured).
    """

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
        self.side = _TILE if u.device.type == "cpu" else _TILE_ON_ACCELERATORS
        self.row_parts, self.column_parts = list(parts(self.rows, self.side)), list(parts(self.columns, self.side))
        self.right = torch.split(self.scaled, self.side)
        self.turned = [right.T for right in self.right]
        self.kept: dict[tuple[int, int], Tensor] | None = {} if stored else None
        self.buffer = u.new_empty(0 if stored else min(self.side, self.rows) * min(self.side, self.columns))
        self.places: dict[tuple[int, int], Tensor] = {}

    def sum_up(self) -> "_FixedShift | _RunningMaxima":
        """The first pass: sums over the negatives of every row and column, and the positives' scores."""
        shift = self._shared_shift()
        layout = self.positive, None if self.triangle else self.rows, self.side
        sums = _RunningMaxima(*layout) if shift is None else _FixedShift(*layout, shift=shift)
        second = self.half if self.triangle else self.rows  # where the other mention of a positive stands
        for i, rows in enumerate(self.row_parts):
            left = self.anchors[rows]
            for j in self._columns(i):
                tile = self._form(left, i, j)
                for diagonal, where in self._positives(tile, i, j):
                    self.positive[where] = diagonal
                    self.positive[where.start + second : where.stop + second] = diagonal
                    diagonal.fill_(-math.inf)
                sums.add(tile, i, None if self._on_diagonal(i, j) else j)
        return sums

    def weigh(self, sums: "_FixedShift | _RunningMaxima", scale: Tensor | None) -> list[Tensor | None]:
        """The second pass: gradients of the factors, and of `scale` unless None."""
        du = torch.zeros_like(self.anchors.rows)
        dv = du if self.triangle else torch.zeros_like(self.scaled)
        each = (1.0 if self.triangle else 0.5) / self.rows
        along: list[Tensor] = []
        of_rows, of_columns = torch.split(du, self.side), torch.split(dv, self.side)
        for i, rows in enumerate(self.row_parts):
            left = self.anchors[rows]
            for j in self._columns(i):
                tile = sums.ready_(self._form(left, i, j)) if self.kept is None else self.kept[i, j]
                sums.weigh_(tile, i, j)
                for diagonal, where in self._positives(tile, i, j):
                    diagonal.copy_(sums.at_positives(where, slice(where.start + self.half, where.stop + self.half)))
                of_rows[i].addmm_(tile, self.right[j])
                if not self._on_diagonal(i, j):
                    of_columns[j].addmm_(tile.T, self.right[i] if self.triangle else left)
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

    def _columns(self, i: int) -> range:
        """The tiles of a part of the rows."""
        return range(i if self.triangle else 0, len(self.column_parts))

    def _on_diagonal(self, i: int, j: int) -> bool:
        """Whether a tile of the triangle holds both a pair and its mirror image, so that its rows tell of all."""
        return self.triangle and i == j

    def _form(self, left: Tensor, i: int, j: int) -> Tensor:
        if self.kept is None:
            tile = torch.mm(left, self.turned[j], out=self._place(len(left), len(self.right[j])))
        else:
            tile = self.kept[i, j] = torch.mm(left, self.turned[j])
        if self.absent is not None:
            tile.masked_fill_(absent_in(self.absent, self.row_parts[i], self.column_parts[j], tile.device), -math.inf)
        if self._on_diagonal(i, j):
            tile.fill_diagonal_(-math.inf)  # the self pair
        return tile

    def _place(self, rows: int, columns: int) -> Tensor:
        """Where a tile that is not kept stands."""
        if (rows, columns) not in self.places:
            self.places[rows, columns] = self.buffer[: rows * columns].view(rows, columns)
        return self.places[rows, columns]

    def _positives(self, tile: Tensor, i: int, j: int) -> Iterator[tuple[Tensor, slice]]:
        """The positives that stand in a tile, as views of it, and the rows that tell of them."""
        rows, columns = self.row_parts[i], self.column_parts[j]
        start = max(rows.start, columns.start - self.half)
        stop = min(rows.stop, columns.stop - self.half, self.paired)
        if start < stop:
            down = slice(start - rows.start, stop - rows.start)
            across = slice(start + self.half - columns.start, stop + self.half - columns.start)
            yield tile[down, across].diagonal(), slice(start, stop)
            if self._on_diagonal(i, j):  # and their mirror images
                yield tile[across, down].diagonal(), slice(start, stop)

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
    """Sums over the negatives of every row, and from `columns_from` on, of every column; of rows alone if None.

    They are added to by parts of `side` rows and columns.
    """

    _by_row: list[Tensor]
    _by_column: tuple[Tensor, ...]
    _rest: Tensor

    def __init__(self, positive: Tensor, columns_from: int | None, side: int) -> None:
        self.sums = torch.zeros_like(positive)
        self._columns_from, self._side = columns_from, side

    def _parts(self, both: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Of what there is of every row and column: the parts of the rows, and those of the columns."""
        rows, columns = both[: self._columns_from], both[self._columns_from or 0 :]
        return torch.split(rows, self._side), torch.split(columns, self._side)

    def _keep(self, both: Tensor, rest: Tensor) -> None:
        """Keeps what `weigh_` reads, part by part, and the share of the negatives in each row and column."""
        by_row, self._by_column = self._parts(both)
        self._by_row = [part[:, None] for part in by_row]
        self._rest = rest

    def at_positives(self, rows: slice, columns: slice) -> Tensor:
        """The gradient at positives: what of the negatives' shares both of its ends lack."""
        first = self._columns_from or 0
        return -(self._rest[rows] + self._rest[first + columns.start : first + columns.stop])


class _FixedShift(_Sums):
    """Sums of exponentials relative to one shift."""

    def __init__(self, positive: Tensor, columns_from: int | None, side: int, *, shift: float) -> None:
        super().__init__(positive, columns_from, side)
        self._rows, self._columns = self._parts(self.sums)
        self._shift = shift

    def ready_(self, tile: Tensor) -> Tensor:
        """Turns a tile of scores, in place, into what `weigh_` expects; `add` does so as well."""
        return (tile.sub_(self._shift) if self._shift else tile).exp2_()

    def add(self, tile: Tensor, i: int, j: int | None) -> None:
        """Adds a tile to the sums of its part of the rows and, unless None, to those of its part of the columns."""
        self.ready_(tile)
        self._rows[i].add_(tile.sum(1))
        if j is not None:
            self._columns[j].add_(tile.sum(0))

    def close(self, positive: Tensor, *, masked: bool) -> Tensor:
        """Takes the positives' scores and returns all losses."""
        relative = positive - self._shift
        whole = relative.exp2().add_(self.sums)
        inverse = (whole.masked_fill_(whole == 0, math.inf) if masked else whole).reciprocal_()  # 0 for padding
        self._keep(inverse, self.sums * inverse)
        return losses_of(self.sums.log2(), relative, masked=masked)

    def weigh_(self, tile: Tensor, i: int, j: int) -> None:
        """Turns a tile, in place, into the gradient off the positives."""
        tile.mul_(self._by_row[i] + self._by_column[j])


class _RunningMaxima(_Sums):
    """Sums of exponentials relative to the largest score met so far, of every row and of every column."""

    def __init__(self, positive: Tensor, columns_from: int | None, side: int) -> None:
        super().__init__(positive, columns_from, side)
        # The lowest float, not -inf: an absent score relative to it is still -inf, not NaN.
        self._top = torch.full_like(positive, torch.finfo(positive.dtype).min)
        sums, tops = self._parts(self.sums), self._parts(self._top)
        self._rows, self._columns = (list(zip(*both, strict=True)) for both in zip(sums, tops, strict=True))

    def ready_(self, tile: Tensor) -> Tensor:
        """As in `_FixedShift`; here the scores are needed as they are."""
        return tile

    def add(self, tile: Tensor, i: int, j: int | None) -> None:
        """As in `_FixedShift`."""
        self._add(tile, *self._rows[i], 1)
        if j is not None:
            self._add(tile, *self._columns[j], 0)

    def _add(self, tile: Tensor, sums: Tensor, top: Tensor, dim: int) -> None:
        higher = torch.maximum(top, tile.amax(dim))
        exponentials = (tile - higher.unsqueeze(dim)).exp2_()
        sums.mul_(top.sub_(higher).exp2_()).add_(exponentials.sum(dim))
        top.copy_(higher)

    def close(self, positive: Tensor, *, masked: bool) -> Tensor:
        """As in `_FixedShift`."""
        log_sum = self.sums.log2().add_(self._top)
        whole = torch.logaddexp2(log_sum, positive)
        whole.masked_fill_(whole == -math.inf, math.inf)  # padding: a share of nothing
        self._keep(whole, (log_sum - whole).exp2_())
        return losses_of(log_sum, positive, masked=masked)

    def weigh_(self, tile: Tensor, i: int, j: int) -> None:
        """As in `_FixedShift`."""
        by_row = (tile - self._by_row[i]).exp2_()
        tile.sub_(self._by_column[j]).exp2_().add_(by_row)


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
