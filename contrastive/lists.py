"""Scores of lists: every anchor against candidates of its own, a few of many, without the matrix."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrastive.factors import Splits, factorises, factors_of, normalize, without_autocast
from contrastive.scores import as_float32

__all__ = ["list_scores"]


def list_scores(
    critic: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "anchors dx"],
    y: Float[Tensor, "candidates dy"],
    columns: Int[Tensor, "anchors k"],
) -> Float[Tensor, "anchors k"]:
    r"""Scores every anchor against its own list of candidates, for the cost of the list.

    .. math::
        s_{ik} = f(x_i, y_{c(i, k)})

    The same as ``critic(x, y).gather(1, columns)``. A critic that factorises, or splits (`Concat`), works on each row
    once and on K pairs an anchor; any other is called once an anchor.

    Arguments:
        critic: ``(x [N, d], y [M, d']) -> scores [N, M]``, a module or any callable.
        x: anchors.
        y: all candidates, of which each anchor sees some. For candidates that no other anchor sees, such as
            synthetic ones, ``[anchors, k, dy]`` flattened to rows, and ``arange(anchors * k).view(anchors, k)``.
        columns: :math:`c(i, k)`, the rows of `y` that anchor i sees; repeated ones are scored again.

    Returns:
        The scores, in at least float32.

    Raises:
        ValueError: for columns of another shape or dtype, or beyond the candidates.

    Example:
        >>> from contrastive.critics import InnerProduct
        >>> list_scores(InnerProduct(), torch.eye(2), torch.eye(2), torch.tensor([[0, 0, 1], [1, 0, 0]]))
        tensor([[1., 1., 0.],
                [1., 0., 0.]])
    """
    if columns.dtype != torch.int64 or columns.ndim != 2 or columns.shape[0] != x.shape[0]:
        raise ValueError(
            f"list_scores: columns have shape {tuple(columns.shape)} and dtype {columns.dtype}, "
            f"expected [{x.shape[0]}, k] and torch.int64"
        )
    if columns.device.type == "cpu" and columns.numel():
        smallest, largest = (int(end) for end in columns.aminmax())
        if smallest < 0 or largest >= len(y):
            raise ValueError(f"list_scores: columns lie in [{smallest}, {largest}], expected [0, {len(y) - 1}]")
    if factorises(critic):
        found = factors_of(critic, x, y)
        u, v = (normalize(z) if found.unit else z for z in (found.anchors, found.candidates))
        with without_autocast(u):
            return torch.bmm(_rows(v, columns), (u * found.scale)[:, :, None]).squeeze(2)
    splitting: object = critic
    if isinstance(splitting, Splits):
        u, v = splitting.split(x, y)
        return as_float32(splitting.pairs(u, _rows(v, columns)))
    rows = [critic(x[i : i + 1], y[columns[i]]) for i in range(len(x))]
    return as_float32(torch.cat(rows)) if rows else x.new_zeros(columns.shape)


def _rows(x: Tensor, columns: Tensor) -> Tensor:
    """The rows of each list; `index_select` because its gradient is several times as fast as that of indexing."""
    return x.index_select(0, columns.flatten()).view(*columns.shape, x.shape[1])
