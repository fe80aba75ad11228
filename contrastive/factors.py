r"""Critics that factorise: :math:`s_{ij} = \alpha\, u_i^\top v_j`, known by its factors before any score is formed.

What is known by its factors can be streamed (`contrastive.tiled`): a tile of scores is a product of some rows of each.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive.scores import as_float32, eager_on_cpu

__all__ = [
    "Factorises",
    "Factors",
    "Splits",
    "UnitRows",
    "factorises",
    "factors_of",
    "normalize",
    "product",
    "without_autocast",
]

# Rows whose norms are taken at once: in double precision, in a copy.
_ROWS = 4096
# Between it and its inverse the squares of a row can be summed as they are.
_SMALLEST_NORM = 1e-15


@dataclass(frozen=True)
class Factors:
    r"""The factors of a matrix of scores, :math:`s_{ij} = \alpha\, u_i^\top v_j`.

    Arguments:
        anchors: :math:`u`, one row per anchor; at least float32.
        candidates: :math:`v`, one row per candidate.
        scale: :math:`\alpha`; a tensor where it is learnt.
        unit: whether rows are scaled to unit length first (a zero row stays zero), so that
            :math:`|s_{ij}| \le \alpha`.

    Example:
        >>> Factors(torch.eye(2), 3 * torch.eye(2), scale=0.5).scores()
        tensor([[1.5000, 0.0000],
                [0.0000, 1.5000]])
    """

    anchors: Float[Tensor, "n d"]
    candidates: Float[Tensor, "m d"]
    scale: Tensor | float = 1.0
    unit: bool = False

    def scores(self) -> Float[Tensor, "n m"]:
        """Forms the matrix, in at least float32."""
        u, v = (normalize(z) if self.unit else as_float32(z) for z in (self.anchors, self.candidates))
        # The scale goes into the smaller matrix.
        return product(u * self.scale, v) if isinstance(self.scale, Tensor) or self.scale != 1.0 else product(u, v)


@runtime_checkable
class Factorises(Protocol):
    """A critic that factorises: offer `factors`, and the loss is streamed where the matrix would be large."""

    def factors(self, x: Float[Tensor, "n dx"], y: Float[Tensor, "m dy"]) -> Factors: ...  # noqa: D102


@runtime_checkable
class Splits(Protocol):
    """A critic that does what it can on single rows first, ``critic(x, y) == critic.pairs(*critic.split(x, y))``.

    `pairs` takes the candidates of all anchors ``[m, h]``, or a list for each ``[n, m, h]``.
    """

    def split(  # noqa: D102
        self, x: Float[Tensor, "n dx"], y: Float[Tensor, "m dy"]
    ) -> tuple[Float[Tensor, "n h"], Float[Tensor, "m h"]]: ...

    def pairs(self, x: Float[Tensor, "n h"], y: Float[Tensor, "*n m h"]) -> Float[Tensor, "n m"]: ...  # noqa: D102


# A protocol is slow to ask, and the criterion asks at every step: once a class. (A compiler warns of functools' cache.)
_known: dict[type, bool] = {}


def factorises(critic: object) -> TypeGuard[Factorises]:
    """Whether a critic is `Factorises`."""
    kind = type(critic)
    if kind not in _known:
        _known[kind] = issubclass(kind, Factorises) and _first(kind, "factors") <= _first(kind, "forward")
    return _known[kind]


def factors_of(critic: Factorises, x: Float[Tensor, "n dx"], y: Float[Tensor, "m dy"]) -> Factors:
    """A critic's factors in at least float32: under autocast those of somebody else's may come in half precision."""
    found = critic.factors(x, y)
    if found.anchors.dtype.itemsize > 2 and found.candidates.dtype.itemsize > 2:
        return found
    anchors = as_float32(found.anchors)
    same = found.anchors is found.candidates
    return replace(found, anchors=anchors, candidates=anchors if same else as_float32(found.candidates))


def _first(kind: type, name: str) -> int:
    """How far up a class inherits a method: factors that a subclass's own scores override tell nothing of them."""
    return next((k for k, base in enumerate(kind.__mro__) if name in vars(base)), len(kind.__mro__))


class UnitRows:
    """The rows of a factor, of unit length where asked; only their norms are kept, not a copy of them.

    Arguments:
        rows: one factor.
        unit: as in `Factors`; if False, the rows are as they are.
    """

    def __init__(self, rows: Float[Tensor, "n d"], *, unit: bool) -> None:
        self.rows = rows
        self._inverse: Tensor | None = None
        self._usual = True
        if unit:
            self._inverse, self._usual = _inverse_norms(rows)

    def __getitem__(self, part: slice) -> Float[Tensor, "m d"]:
        rows = self.rows[part]
        return rows if self._inverse is None else rows * self._inverse[part]

    def scaled(self, scale: float) -> Float[Tensor, "n d"]:
        """A copy of all rows, times `scale`."""
        if self._inverse is None:
            return self.rows * scale
        if self._usual:
            return self.rows * (self._inverse * scale)
        return (self.rows * self._inverse).mul_(scale)  # one after the other: 1e37 times 1e2 leaves float32

    def largest_norm(self) -> float:
        """The largest Euclidean length of a row; NaN where a row holds one."""
        if self._inverse is not None:
            return 1.0
        return float(torch.linalg.vector_norm(self.rows, dim=1).amax()) if self.rows.shape[0] else 0.0

    def pull_back_(
        self, gradient: Float[Tensor, "m d"], part: slice, factor: float, along: Float[Tensor, "m d"], length: float
    ) -> None:
        """Turns the gradient of some unit rows, times `factor`, into that of the rows; in place.

        The part along each row is taken out; `along` are the unit rows, times `length`, which the caller has at hand.
        """
        if self._inverse is None:
            gradient.mul_(factor)
            return
        inner = (along * gradient).sum(1, keepdim=True)
        gradient.addcmul_(along, inner, value=-1 / length**2)
        if self._usual:
            gradient.mul_(self._inverse[part] * factor)
        else:
            gradient.mul_(factor).mul_(self._inverse[part])


def normalize(x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    r"""Scales rows to unit length in at least float32; a zero row stays zero, with gradient zero.

    `torch.nn.functional.normalize` gives NaN for a zero row in half precision and a gradient of 1e12 in single.

    >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    x = as_float32(x)
    # The largest entry first: squares of 1e-25 or 1e25 leave float32.
    largest = x.detach().abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    nonzero = largest != 0  # a NaN is not zero: the row stays broken, and a loss names it
    scaled = x / largest.masked_fill(~nonzero, 1.0)
    # Of ones instead of zeros: the second derivative of a length is not a number at 0.
    length = torch.linalg.vector_norm(scaled.masked_fill(~nonzero, 1.0), dim=-1, keepdim=True)
    return torch.where(nonzero, scaled / length, 0.0)


def product(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """`x @ y.T` in at least float32, whatever autocast says."""
    with without_autocast(x):
        return as_float32(x) @ as_float32(y).T


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A scope in which products keep the type of their factors; autocast's own is entered only where it is on."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _inverse_norms(x: Tensor) -> tuple[Tensor, bool]:
    """One over the length of each row, as a column, and whether all are of a usual length.

    It is 0 for a zero row and NaN for a row that holds one.
    """
    if eager_on_cpu(x) and x.numel():
        norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        smallest, largest = norms.aminmax()
        if float(smallest) > _SMALLEST_NORM and float(largest) < 1 / _SMALLEST_NORM:
            return norms.reciprocal_(), True
    # In double precision the squares of 1e-25 and 1e25 do not leave the floats; doubles are divided by their largest.
    inverse = x.new_empty(x.shape[0], 1)
    for start in range(0, x.shape[0], _ROWS):
        part = slice(start, start + _ROWS)
        rows, largest = x[part], 1.0
        if x.dtype == torch.float64 and x.shape[1]:
            found = rows.abs().amax(1, keepdim=True)
            largest = found.masked_fill_(found < torch.finfo(x.dtype).tiny, 1.0)
            rows = rows / largest
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
        inverse[part] = (norms.reciprocal() / largest).masked_fill_(norms < torch.finfo(x.dtype).tiny, 0.0)
    return inverse, False
