"""Exact search on the CPU: cheap products of matrices filter, and the few that pass are scored one by one.

FAISS ranks as it multiplies, in float32. Here a strip of queries is multiplied with a whole block of the gallery in the
type whose products are fastest (`contrastive.codes`); a score that k items of a query are known to reach tells what may
be left out within the error; what is left is little more than k items a query. Each of these is scored from its two
rows alone, so that equal rows have equal scores wherever they stand.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from contrastive import _faiss, gemm
from contrastive.codes import Codes
from contrastive.ranking import sorted_rows

__all__ = ["nearest", "pays"]

# Products held at a time, and the widest block of columns; the fewest groups of columns, and members of one; measured.
ENTRIES, WIDTH = 2**23, 2**16
_GROUPS, _MEMBERS = 512, 4
Array = NDArray[Any]


def pays(size: int, k: int) -> bool:
    """Whether a gallery is large enough to filter for so many items, and FAISS can score what passes.

    Arguments:
        size: of the gallery.
        k: items of each query, the own one counted.
    """
    return _groups(k) * _MEMBERS <= min(size, WIDTH // 2) and _faiss.scores_pairs()


def _groups(k: int) -> int:
    """How many groups columns are dealt to: so many that the k largest of them rarely share one."""
    return max(_GROUPS, 1 << (8 * k - 1).bit_length())


def nearest(
    x: Float32[Tensor, "queries dim"],
    y: Float32[Tensor, "gallery dim"],
    codes: Codes,
    k: int,
    own: Int64[Tensor, " queries"] | None = None,
) -> tuple[Float32[Tensor, "queries k"], Int64[Tensor, "queries k"], Bool[Tensor, " queries"]]:
    """Finds the k items of largest score of each query, equal scores by row.

    Arguments:
        x: queries, prepared.
        y: items, prepared; `pays` holds of them.
        codes: of the items.
        k: how many.
        own: of each query the item it must not return, if any.

    Returns:
        Scores, rows of the gallery, and the queries that are left to others: so many of their items are equal within
        the error that there is nothing to be gained.
    """
    width = -(-len(y) // -(-len(y) // WIDTH))
    height = min(len(x), max(1, ENTRIES // width))
    products = torch.empty(height * width, dtype=codes.rows.dtype)
    threads = torch.get_num_threads()
    # numpy works on one thread: as many parts of the rows are worked on at a time. A lone thread needs no pool.
    with ThreadPoolExecutor(threads, initializer=_faiss.use_one_thread) as pool:
        each = map if threads == 1 else pool.map
        found = []
        for start in range(0, len(x), height):
            strip = x[start : start + height]
            of_strip = None if own is None else own[start : start + height].numpy()
            queries, error, reach = codes.queries(strip)
            size = -(-len(strip) // threads)
            parts = [
                _Part(slice(i, i + size), strip, y, codes, k, of_strip, error, reach)
                for i in range(0, len(strip), size)
            ]
            for first in range(0, len(y), width):
                of_block = codes.rows[first : first + width]
                block = products[: len(strip) * len(of_block)].view(len(strip), len(of_block))
                with torch.autocast("cpu", enabled=False), gemm.fast_products(queries, block.numel() * x.shape[1]):
                    torch.mm(queries, of_block.T, out=block)
                keys = block.view(torch.int16 if block.element_size() == 2 else torch.int32).numpy()
                list(each(partial(_Part.add, products=keys, first=first), parts))
            found += [(part.values, part.ids, part.crowded) for part in parts]
    values, ids, crowded = (torch.from_numpy(np.concatenate(column)) for column in zip(*found, strict=True))
    return values, ids, crowded


class _Part:
    """Some rows of a strip: the best of each so far.

    Products are compared by their bits as integers, which numpy does fastest. Their order is that of the numbers where
    the sign is positive; where it is negative the other bits are turned over.

    Arguments:
        rows: which of the strip.
        x: queries of the strip.
        y: as in `nearest`, and so are `codes`, `k` and `own`.
        codes: of the items.
        k: how many.
        own: what each query of the strip must not return.
        error: of `Codes.queries`.
        reach: likewise.
    """

    def __init__(
        self, rows: slice, x: Tensor, y: Tensor, codes: Codes, k: int, own: Array | None, error: Tensor, reach: Tensor
    ) -> None:
        self.rows, self.codes, self.k = rows, codes, k
        self.x, self.y = x[rows].numpy(), y.numpy()
        self.own = None if own is None else own[rows]
        self.by_distance = codes.metric == "euclidean"
        # What a score lacks of twice a product, for the distance.
        self.squares = x[rows].double().square().sum(1).numpy() if self.by_distance else np.zeros(len(self.x))
        # Scores are sums in float32 too: the one that is known, and the one that is to reach it.
        scored = 4.0 * (x.shape[1] + 32) * 2.0**-24 * (reach[rows].numpy() + codes.scale**2 * self.squares)
        self.error = error[rows].numpy() + scored
        self.crowded = ~(self.error < 2.0**100)  # no number, or what it belongs to may overflow
        self.values = np.full((len(self.x), k), -np.inf, np.float32)
        self.ids = np.full((len(self.x), k), len(y))

    def add(self, products: Array, first: int) -> None:
        """Looks at one more block of products.

        Arguments:
            products: of the strip, their bits.
            first: the row of the gallery that the block begins with.
        """
        row, column = self._passing(products[self.rows], known=first > 0)
        column += first
        if self.own is not None:
            others = column != self.own[row]
            row, column = row[others], column[others]
        scores = _faiss.scores(self.x, row, self.y, column, inner_product=not self.by_distance)
        counts = np.bincount(row, minlength=len(self.x))
        place = np.arange(len(row)) - (counts.cumsum() - counts).repeat(counts)
        held = self.k if first else 0
        shape = len(self.x), held + max(int(counts.max()), self.k - held)
        negated, ids = np.full(shape, np.inf, np.float32), np.full(shape, len(self.y))
        negated[:, :held], ids[:, :held] = -self.values[:, :held], self.ids[:, :held]
        negated[row, held + place], ids[row, held + place] = -scores, column
        ranked = sorted_rows(negated, ids)
        self.values, self.ids = (array[:, : self.k].numpy() for array in ranked)

    def _passing(self, keys: Array, *, known: bool) -> tuple[Array, Array]:
        """Row and column of the products that may be among the best, in order."""
        lowest, turned = self._known() if known else self._of_groups(keys), False
        if lowest.min() <= 0:
            keys ^= (keys >> _last_bit(keys)) & np.iinfo(keys.dtype).max
            lowest, turned = self._known() if known else self._of_groups(keys, turned=True), True
        passing = keys >= _key(lowest, keys.dtype, turned=turned)
        if known and np.count_nonzero(passing) > 8 * self.k * len(keys):
            lowest = np.maximum(lowest, self._of_groups(keys, turned=turned))
            passing = keys >= _key(lowest, keys.dtype, turned=turned)
        place = np.flatnonzero(passing)
        row = place // keys.shape[1]
        self.crowded |= np.bincount(row, minlength=len(keys)) > 2 * self.k + 256
        if self.crowded.any():
            kept = ~self.crowded[row]
            row, place = row[kept], place[kept]
        return row, place - row * keys.shape[1]

    def _known(self) -> Array:
        """The least product of an item that scores as much as the k best so far."""
        scores = self.values[:, -1].astype(np.float64)
        products = (scores + self.squares) / 2 if self.by_distance else scores
        return np.where(self.crowded, np.inf, self.codes.scale**2 * products - self.error)

    def _of_groups(self, keys: Array, *, turned: bool = False) -> Array:
        """The least product of an item that may be among the k best of the block.

        Columns of equal remainder are a group. As many groups as are asked for have a maximum of at least the one that
        is returned less the error: so many items score no less.
        """
        asked, groups = self.k + (self.own is not None), _groups(self.k + 1)
        members = keys.shape[1] // groups
        maxima = keys[:, : groups * members].reshape(len(keys), members, groups).max(1)
        least = _number(np.partition(maxima, groups - asked, axis=1)[:, groups - asked], turned=turned)
        return np.where(self.crowded, np.inf, least - 1.01 * self.codes.rounding * np.abs(least) - 2.0 * self.error)


def _last_bit(keys: Array) -> int:
    return 8 * keys.itemsize - 1


def _key(numbers: Array, dtype: np.dtype[Any], *, turned: bool) -> Array:
    """The bits of the next lower product, one a row."""
    bits = np.nextafter(numbers.astype(np.float32), np.float32(-np.inf)).view(np.int32)
    if turned:
        bits ^= (bits >> 31) & np.iinfo(np.int32).max
    return (bits >> (32 - 8 * dtype.itemsize)).astype(dtype)[:, None]


def _number(keys: Array, *, turned: bool) -> Array:
    """What these are the bits of."""
    bits = keys.astype(np.int32) << (32 - 8 * keys.itemsize)
    if turned:
        bits ^= (bits >> 31) & np.iinfo(np.int32).max
    return bits.view(np.float32).astype(np.float64)
