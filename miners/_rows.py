"""What miners that read embeddings share: unit rows, their products, and a refusal."""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive.scores import as_float32, eager_on_cpu

__all__ = ["SCORED", "cosines", "refuse_broken_rows", "unit"]

# Scores that are formed at once.
SCORED = 2**22


def unit(x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """Rows of unit length in at least float32, without gradient; a zero row stays zero.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    x = as_float32(x.detach())
    # The largest entry first: squares of 1e-25 or 1e25 leave float32.
    largest = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_ones(*x.shape[:-1], 1)
    x = x / largest.masked_fill(largest == 0, 1.0)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scaled: Tensor = x / length.masked_fill(length == 0, 1.0)
    return scaled


def cosines(u: Float[Tensor, "n d"], v: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """The products of unit rows, whatever autocast says."""
    kind = u.device.type
    scope: AbstractContextManager[object] = nullcontext()
    if torch.is_autocast_enabled(kind):
        scope = torch.autocast(kind, enabled=False)
    with scope:
        return u @ v.T


def refuse_broken_rows(function: str, what: str, x: Tensor) -> None:
    """Names the first row that holds a NaN or an infinity; in eager mode on the CPU, like all checks of values."""
    if not eager_on_cpu(x):
        return
    broken = ~torch.isfinite(x).flatten(1).all(1)
    if bool(broken.any()):
        raise ValueError(
            f"{function}: row {int(broken.nonzero()[0])} of the {what} holds a NaN or infinite value, "
            "expected finite ones"
        )
