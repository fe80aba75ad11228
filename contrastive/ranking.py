"""The k largest entries of every row of scores, and the largest of every column, without ranking the others."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrastive.scores import eager_on_cpu

__all__ = ["columns_of_largest", "largest", "largest_of_columns"]

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
