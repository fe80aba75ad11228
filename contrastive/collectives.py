"""What the ranks of torch.distributed tell each other: the rows of every rank, with their gradient.

Without torch.distributed, or on one rank, everything here is the identity.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Group", "gather_rows", "mean_over_ranks", "padded", "rank_of", "row_counts", "sum_over_ranks", "world_size"]

# Of ranks; None: all. Builds of torch without c10d have no such class.
if TYPE_CHECKING:
    Group = dist.ProcessGroup | None
else:
    Group = Any


def world_size(group: Group = None) -> int:
    """How many ranks there are; 1 where torch.distributed is not in use.

    Arguments:
        group: of ranks; None: all.
    """
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank_of(group: Group = None) -> int:
    """The number of this rank; 0 where torch.distributed is not in use.

    Arguments:
        group: of ranks; None: all.
    """
    return dist.get_rank(group) if world_size(group) > 1 else 0


def row_counts(*tensors: Tensor, group: Group = None) -> list[int]:
    """How many rows each rank has; every rank must call.

    Arguments:
        tensors: rows of this rank, as many of each.
        group: of ranks; None: all.

    Raises:
        ValueError: on every rank, where a row of one of the tensors is longer on one rank than on another; and for
            tensors of different lengths.

    Example:
        >>> row_counts(torch.zeros(5, 3))
        [5]
    """
    if len({len(x) for x in tensors}) != 1:
        raise ValueError(f"row_counts: got {', '.join(str(len(x)) for x in tensors)} rows, expected as many of each")
    here = [len(tensors[0]), *(_row_bytes(x) for x in tensors)]
    if world_size(group) == 1:
        return here[:1]
    ranks = torch.stack(_gathered(torch.tensor(here, device=tensors[0].device), group)).tolist()
    for k, sizes in enumerate(zip(*(row[1:] for row in ranks), strict=True)):
        if len(set(sizes)) > 1:  # every rank sees it, so none is left waiting
            raise ValueError(
                f"row_counts: a row of tensor {k} has {', '.join(map(str, sizes))} bytes on ranks 0 to "
                f"{len(ranks) - 1}, expected the same width and dtype on all"
            )
    return [row[0] for row in ranks]


def gather_rows(*tensors: Tensor, lengths: Sequence[int] | None = None, group: Group = None) -> tuple[Tensor, ...]:
    r"""Gathers the rows of all ranks, one rank after the other; gradients find their way back.

    .. math::
        \frac{\partial}{\partial x^{(r)}} = \sum_s \frac{\partial \ell_s}{\partial X}\Big|_{\text{rows of } r}

    where rank s computes :math:`\ell_s` from all rows :math:`X`. This sum and the division by W of
    DistributedDataParallel are those of the mean :math:`\frac1W \sum_s \ell_s`: no other factor is needed.

    Every rank must call, in the same order as others, with as many tensors of the same widths and dtypes. Lengths may
    differ, 0 included.

    Arguments:
        tensors: rows of this rank, ``[n, ...]`` with the same n: embeddings with their gradient, labels, ids.
        lengths: what `row_counts` said of them; None: it is asked.
        group: of ranks; None: all.

    Returns:
        For each the rows of all ranks.

    Raises:
        ValueError: as `row_counts`.

    Example:
        >>> (labels,) = gather_rows(torch.tensor([7, 8]))
        >>> labels
        tensor([7, 8])
    """
    lengths = row_counts(*tensors, group=group) if lengths is None else list(lengths)
    if world_size(group) == 1 or not max(lengths):
        return tensors
    found: tuple[Tensor, ...] = _Gather.apply(lengths, group, *tensors)
    return found


def mean_over_ranks(value: Tensor, group: Group = None) -> Tensor:
    """The mean of a number over all ranks, without gradient: what a log should show of a loss.

    Each rank's loss is that of its own anchors, and no two are the same; their mean is that of the global batch.

    Arguments:
        value: of this rank.
        group: of ranks; None: all.

    Example:
        >>> mean_over_ranks(torch.tensor(2.0))
        tensor(2.)
    """
    total = value.detach().clone()
    if world_size(group) > 1:
        dist.all_reduce(total, group=group)
    return total / world_size(group)


def sum_over_ranks(x: Tensor, group: Group = None) -> Tensor:
    """The sum of a tensor over all ranks; its gradient is summed as well, as in `gather_rows`.

    Arguments:
        x: of this rank, of the same shape on all.
        group: of ranks; None: all.

    Example:
        >>> sum_over_ranks(torch.ones(2))
        tensor([1., 1.])
    """
    if world_size(group) == 1:
        return x
    total: Tensor = _Sum.apply(x, group)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.group), None  # a function of all ranks' gradients, as a second derivative needs


class _Gather(torch.autograd.Function):
    """All tensors in one function: every rank gathers them, and sends their gradients back, in the same order."""

    @staticmethod
    def forward(ctx: Any, lengths: list[int], group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.lengths, ctx.group = lengths, group
        found = tuple(_rows_of_all(x, lengths, group) for x in tensors)
        ctx.mark_non_differentiable(*(x for x in found if not x.is_floating_point()))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        asked = zip(gradients, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(_sum_of_shares(g, ctx.lengths, ctx.group) if a else None for g, a in asked)


def _rows_of_all(x: Tensor, lengths: list[int], group: Group) -> Tensor:
    """Rows of every rank, padded to the longest for the journey: messages of unequal length abort gloo's process."""
    # As bytes: not every back end knows every dtype.
    parts = _gathered(padded(x, max(lengths)).view(torch.uint8), group)
    return torch.cat([part.view(x.dtype)[:n] for part, n in zip(parts, lengths, strict=True)])


def _sum_of_shares(gradient: Tensor, lengths: list[int], group: Group) -> Tensor:
    """The sum over ranks of what each has for the rows of this one."""
    shares = [padded(part, max(lengths)) for part in torch.split(gradient, lengths)]
    own, rank = torch.empty_like(shares[0]), rank_of(group)
    try:
        dist.reduce_scatter(own, shares, group=group)
    except RuntimeError as error:  # a back end that has none refuses on every rank, before anything is sent
        if "support" not in str(error):
            raise
        everything = torch.stack(shares)
        dist.all_reduce(everything, group=group)
        own = everything[rank]
    return own[: lengths[rank]]


def padded(x: Tensor, length: int) -> Tensor:
    """A copy with zeros after it, `length` rows in all."""
    longer = x.new_zeros(length, *x.shape[1:])
    longer[: len(x)] = x
    return longer


def _gathered(x: Tensor, group: Group) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(world_size(group))]
    dist.all_gather(parts, x, group=group)
    return parts


def _row_bytes(x: Tensor) -> int:
    return x.shape[1:].numel() * x.element_size()
