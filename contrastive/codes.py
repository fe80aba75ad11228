r"""Rows in a form whose products are cheap, and how far those products are off.

What is off is bounded by the norms of what rounding took away (Cauchy and Schwarz), so such products can filter: what
cannot be among the largest within the error is left out, and the few that are left have their scores computed anew. The
result is exact whatever the precision of the filter, which is chosen by the clock.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from contrastive import gemm

__all__ = ["Codes", "faster_dtype"]

_PART = 2**14


@dataclass(frozen=True)
class Codes:
    r"""A gallery's rows, rounded.

    A product of a query's code and a row's is :math:`c^2 x^\top y`, or :math:`c^2 (x^\top y - \lVert y \rVert^2 / 2)`
    for the distance, c a power of two that makes the longest row about 1 long; its result is rounded to `dtype` too.

    Arguments:
        metric: "cosine" (of unit rows), "inner_product" or "euclidean".
        dtype: of the codes.
        scale: c.
        rows: the codes; those of the distance have further columns that stand against ones.
        longest: the norm of the longest code.
        lost: the largest norm of what rounding took of a row.
        square: half of the largest squared length, for the distance; else 0.
        rest: the most that the further columns lack of it.
    """

    metric: str
    dtype: torch.dtype
    scale: float
    rows: Float[Tensor, "rows width"]
    longest: float
    lost: float
    square: float
    rest: float

    @classmethod
    def of(cls, rows: Float[Tensor, "rows dim"], metric: str, dtype: torch.dtype) -> "Codes":
        """Rounds a gallery.

        Arguments:
            rows: finite.
            metric: as above.
            dtype: of the codes: bfloat16, or that of the rows.
        """
        width = rows.shape[1]
        # Half of a squared length takes several numbers of little precision.
        extra = 0 if metric != "euclidean" else 3 if dtype == torch.bfloat16 else 2
        longest = max(_longest(rows[part]) for part in _parts(len(rows)))
        scale = 2.0 ** -math.frexp(longest)[1] if longest > 0 else 1.0
        shared = extra == 0 and dtype == rows.dtype and scale == 1.0
        codes = rows if shared else rows.new_empty(len(rows), width + extra, dtype=dtype)
        norm = lost = square = rest = 0.0
        for part in _parts(len(rows)):
            x = rows[part] * scale
            code = x.to(dtype)
            if dtype != x.dtype:
                lost = max(lost, _longest(x - code))
            norm = max(norm, _longest(code.to(x.dtype)))
            if not shared:
                codes[part, :width] = code
            if extra:
                remaining = -x.double().square().sum(1) / 2
                square = max(square, -float(remaining.min()))
                for column in range(width, width + extra):
                    codes[part, column] = remaining.to(dtype)
                    remaining = remaining - codes[part, column].double()
                rest = max(rest, float(remaining.abs().max()))
        return cls(metric, dtype, scale, codes, norm, lost, square, rest)

    @property
    def rounding(self) -> float:
        """How far, of its value, the rounding of a product's result to `dtype` takes it."""
        return 2.0**-8 if self.dtype == torch.bfloat16 else 0.0

    def queries(
        self, x: Float[Tensor, "queries dim"]
    ) -> tuple[Float[Tensor, "queries width"], Float64[Tensor, " queries"], Float64[Tensor, " queries"]]:
        r"""Rounds queries.

        Arguments:
            x: finite.

        Returns:
            Their codes; the most that any of a query's products is off before its result is rounded; and the largest
            value that one may have.
        """
        dim = x.shape[1]
        scaled = x * self.scale
        code = scaled.to(self.dtype)
        lost, norm = (torch.linalg.vector_norm(part, dim=1).double() for part in (scaled - code, code.to(x.dtype)))
        if self.metric == "euclidean":
            code = torch.cat([code, code.new_ones(len(x), self.rows.shape[1] - dim)], 1)
        reach = norm * self.longest + self.square
        error = lost * self.longest + norm * self.lost + lost * self.lost + self.rest + _sums(x, self.dtype) * reach
        return code, 1.01 * error, reach  # norms are rounded as well


def _longest(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dim=1).max())


def _sums(x: Tensor, dtype: torch.dtype) -> float:
    """What sums of products lose in float32, of the largest value."""
    lost = 2.0 * (x.shape[1] + 32) * 2.0**-24
    # float32 may be multiplied in TensorFloat-32 or bfloat16, as the device and the user's settings say.
    in_float32 = dtype == torch.bfloat16 or (x.device.type == "cpu" and gemm.multiplies_in_float32())
    return lost if in_float32 else lost + 2.0**-6


def _parts(rows: int) -> Iterator[slice]:
    return (slice(start, start + _PART) for start in range(0, rows, _PART))


@cache
def faster_dtype(device: torch.device, width: int) -> torch.dtype:
    """The type whose products are faster here: bfloat16 where the processor has instructions for it.

    Arguments:
        device: where they are taken.
        width: of the rows.
    """
    if device.type != "cpu":
        return torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, y = torch.zeros(256, width, dtype=dtype), torch.zeros(2048, width, dtype=dtype)
        took = []
        for _ in range(3):
            start = time.perf_counter()
            with torch.autocast("cpu", enabled=False), gemm.fast_products(x, 2**30):
                x @ y.T
            took.append(time.perf_counter() - start)
        seconds[dtype] = min(took)
    return min(seconds, key=lambda dtype: seconds[dtype])
