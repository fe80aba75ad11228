"""The k largest entries of every row of scores, and the largest of every column, without ranking the others."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from contrastive.scores import eager_on_cpu

__all__ = [
    "ascending",
    "columns_of_largest",
    "in_order",
    "largest",
    "largest_in_order",
    "largest_of_columns",
    "merged",
    "sorted_rows",
]

# Measured, on one thread. torch finds 32 maxima at once and others one by one; numpy ranks up to 128 numbers in
# registers, four times as fast as torch, but is worth its call only for more than a few.
_GROUPS, _FEWEST_MEMBERS = 128, 4
_FEWEST_TO_PARTITION, _WIDEST_TO_PARTITION = 5, 512


def largest(scores: Float[Tensor, "rows columns"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Finds the k largest entries of each row and their columns, in any order.

    Arguments:
        scores: no NaN; of equal entries any are taken.
        k: how many, at most the number of columns.

    >>> values, columns = largest(torch.tensor([[0.1, 0.9, 0.5]]), 1)
    >>> values, columns
    (tensor([[0.9000]]), tensor([[1]]))
    """
    columns = columns_of_largest(scores, k)
    return scores.gather(1, columns), columns


def largest_of_columns(
    scores: Float[Tensor, "rows columns"],
) -> tuple[Float[Tensor, " columns"], Int[Tensor, " columns"]]:
    """Finds the largest entry of each column and its row.

    Arguments:
        scores: no NaN; at least one row; of equal entries any is taken.

    >>> largest_of_columns(torch.tensor([[0.1, 0.9], [0.5, 0.2]]))
    (tensor([0.5000, 0.9000]), tensor([1, 0]))
    """
    # Maxima of a column in a group of rows cost a copy's time, and which row holds them is asked of one group only.
    (rows, columns), members = scores.shape, 16
    groups = rows // members
    if groups < _FEWEST_MEMBERS:
        found = scores.max(0)
        return found[0], found[1]
    dealt = groups * members
    chosen = scores[:dealt].reshape(groups, members, columns).amax(1).max(0)[1]
    places = members * chosen + torch.arange(members, device=scores.device)[:, None]
    rest = torch.arange(dealt, rows, device=scores.device)[:, None].expand(-1, columns)
    places = torch.cat([places, rest])
    values, at = scores.gather(0, places).max(0)
    return values, places.gather(0, at[None]).squeeze(0)


def columns_of_largest(scores: Float[Tensor, "rows columns"], k: int) -> Int[Tensor, "rows k"]:
    """Finds the columns of the k largest entries of each row, in any order.

    The columns are dealt to groups: the k largest entries lie in the k groups of the largest maxima, and finding maxima
    is far cheaper than ranking.

    Arguments:
        scores: as in `largest`.
        k: as in `largest`.
    """
    rows, columns = scores.shape
    if k == 1 and columns and eager_on_cpu(scores):  # numpy's argmax goes through a row ten times as fast as torch's
        return torch.from_numpy(scores.detach().numpy().argmax(1, keepdims=True))
    groups = _groups(k, columns)
    members = columns // groups
    if members < _FEWEST_MEMBERS or k > groups // 2:
        return _ranked(scores, k)
    dealt = groups * members  # column c is in group c % groups; the last few are in none
    chosen = _ranked(scores[:, :dealt].reshape(rows, members, groups).amax(1), k)
    places = chosen[:, None] + groups * torch.arange(members, device=scores.device)[:, None]
    places = places.flatten(1)
    if dealt < columns:
        places = torch.cat([places, torch.arange(dealt, columns, device=scores.device).expand(rows, -1)], 1)
    return places.gather(1, columns_of_largest(scores.gather(1, places), k))


def _groups(k: int, columns: int) -> int:
    """How many groups: few enough to rank in registers, or so many that groups and members are about as many."""
    few = _GROUPS if k <= _GROUPS // 4 else 2 * _GROUPS
    return few if k <= few // 4 else 32 * math.ceil(math.sqrt(k * columns) / 32)


def _ranked(scores: Tensor, k: int) -> Tensor:
    """The same by ranking them all."""
    columns = scores.shape[1]
    if k == 1:
        return scores.argmax(1, keepdim=True)
    if _FEWEST_TO_PARTITION <= k < columns <= _WIDEST_TO_PARTITION and eager_on_cpu(scores):
        return torch.from_numpy(np.argpartition(scores.detach().numpy(), columns - k, axis=1)[:, columns - k :])
    return scores.topk(k, dim=1, sorted=False).indices


# --- in order: the larger first, among equals the lower column --------------------------------------------------------


def largest_in_order(
    scores: Float[Tensor, "rows columns"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Finds the k largest entries of each row and their columns: the larger first, among equals the lower column.

    On the CPU the k-th largest of the groups' maxima tells what may be left out: what is not below it is little more
    than k entries, and these alone are sorted.

    Arguments:
        scores: no NaN.
        k: how many, at most the number of columns.

    >>> largest_in_order(torch.tensor([[0.1, 0.9, 0.5, 0.9]]), 2)
    (tensor([[0.9000, 0.9000]]), tensor([[1, 3]]))
    """
    return _largest_by_filter(scores, k) or _largest_by_topk(scores, k)


def _largest_by_filter(scores: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """None where it does not pay: for few columns, a large k, and where many entries are equal."""
    rows, columns = scores.shape
    groups = 4 * _GROUPS
    while groups < 3 * k:
        groups *= 2
    members = columns // groups
    if members < _FEWEST_MEMBERS or not eager_on_cpu(scores) or not rows:
        return None
    maxima = scores[:, : groups * members].reshape(rows, members, groups).amax(1).numpy()
    maxima.partition(groups - k, axis=1)
    entries = scores.numpy()
    kept = entries >= maxima[:, groups - k, None]
    counts = np.count_nonzero(kept, axis=1)
    widest = int(counts.max())
    if widest > 2 * k + 256:
        return None
    place = np.flatnonzero(kept)
    row = np.arange(rows).repeat(counts)
    column = place - row * columns
    at = np.arange(len(place)) - (counts.cumsum() - counts).repeat(counts)
    negated, found = np.full((rows, widest), np.inf, entries.dtype), np.full((rows, widest), columns)
    negated[row, at], found[row, at] = -entries[row, column], column
    values, ids = sorted_rows(negated, found)
    return values[:, :k], ids[:, :k]


def sorted_rows(negated: NDArray[Any], ids: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Sorts rows by their negated values, among equals by id: values and ids.

    Arguments:
        negated: of each row, no NaN: numpy sorts upward.
        ids: what they belong to.
    """
    order = negated.argsort(1)
    values, ids = np.take_along_axis(negated, order, 1), np.take_along_axis(ids, order, 1)
    return in_order(torch.from_numpy(np.negative(values, out=values)), torch.from_numpy(ids))


def _largest_by_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
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


def ascending(values: Shaped[Tensor, "rows columns"]) -> Shaped[Tensor, "rows columns"]:
    """Sorts each row upward, values alone.

    Arguments:
        values: no NaN.
    """
    if not eager_on_cpu(values):
        return values.sort(1).values
    return torch.from_numpy(np.sort(values.detach().numpy(), axis=1))  # several times as fast as torch's


def in_order(
    values: Float[Tensor, "rows k"], ids: Int[Tensor, "rows k"]
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Puts the larger first, among equals the lower id; rows that are in order already cost a look.

    Arguments:
        values: of each row.
        ids: what they belong to.
    """
    before, after = values[:, :-1], values[:, 1:]
    wrong = ((after > before) | ((after == before) & (ids[:, 1:] < ids[:, :-1]))).any(1).nonzero().squeeze(1)
    if len(wrong) == 0:
        return values, ids
    sorted_ids, order = ids[wrong].sort(dim=1)
    sorted_values, second = values[wrong].gather(1, order).sort(dim=1, descending=True, stable=True)
    values, ids = values.clone(), ids.clone()
    values[wrong], ids[wrong] = sorted_values, sorted_ids.gather(1, second)
    return values, ids


def merged(
    best: tuple[Tensor, Tensor] | None, found: tuple[Tensor, Tensor], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k best of two rankings in order, the ids of the first before those of the second.

    Arguments:
        best: values and ids; None: there is no first.
        found: likewise.
        k: how many are kept.
    """
    if best is None:
        return found
    values, ids = torch.cat([best[0], found[0]], 1), torch.cat([best[1], found[1]], 1)
    if eager_on_cpu(values):
        values, ids = sorted_rows(values.neg().numpy(), ids.numpy())
        return values[:, :k], ids[:, :k]
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], ids.gather(1, order[:, :k])
