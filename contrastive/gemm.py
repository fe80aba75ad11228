"""Fast matrix products on the CPU, scoped: the user's settings are never changed for longer than a call.

torch multiplies float32 matrices with MKL, which is not at its best on processors that are not Intel's. oneDNN, torch's
other library, was 1.1 to 1.2 times as fast on the one measured, an AMD Zen 4. It takes part where the setting for its
matrix products says ``"bf16"``. That name permits bfloat16, which a processor with AMX would use; one without computes
in float32 all the same. A product with a known result tells which (`exact`), once a process. Where rounding is welcome
for its speed, as in a step of training, `rounded_products` gives the permission and asks nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

__all__ = ["exact", "fast_products", "multiplies_in_bfloat16", "multiplies_in_float32", "rounded_products"]

# A product of 128 terms rounded in float32 errs by about 4e-7 of its largest entry, in bfloat16 by 4e-3.
_TOLERANCE = 4e-6
# Measured: below, the calls cost more than the products.
_SMALLEST = 2**24

_lock = threading.Lock()
_inside = 0
_before = ""


@contextmanager
def fast_products(x: Tensor, size: int) -> Iterator[None]:
    """Multiplies float32 matrices on the CPU with oneDNN while inside, if that is exact here.

    Nothing happens on other devices, for other types, and where the user has chosen a precision already. Scopes may
    overlap in several threads: the first to enter sets, the last to leave restores.

    Arguments:
        x: one of the matrices; its device and type decide.
        size: how many products of numbers a matrix product takes; MKL is faster at few.

    >>> before = torch.backends.mkldnn.matmul.fp32_precision
    >>> x = torch.randn(256, 256)
    >>> with fast_products(x, 256**3):
    ...     product = x @ x
    >>> torch.backends.mkldnn.matmul.fp32_precision == before
    True
    """
    if size < _SMALLEST or x.device.type != "cpu" or x.dtype != torch.float32 or not exact():
        yield
        return
    with rounded_products():
        yield


@contextmanager
def rounded_products() -> Iterator[None]:
    """Lets float32 matrices on the CPU be multiplied in bfloat16 while inside, and summed in float32.

    A processor with AMX does so; another multiplies in float32 as before. Convolutions are not touched by it. Nothing
    happens where the user has chosen a precision already.

    >>> with rounded_products():
    ...     product = torch.eye(3) @ torch.ones(3, 2)
    >>> product.sum()
    tensor(6.)
    """
    _enter()
    try:
        yield
    finally:
        _leave()


@cache
def exact() -> bool:
    """Whether oneDNN is there and its products are true float32 on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's
        return False
    with rounded_products():
        return _error() < _TOLERANCE


def multiplies_in_float32() -> bool:
    """Whether float32 matrices are multiplied in float32 on the CPU, in `fast_products` and by the user's settings."""
    return _error() < _TOLERANCE


def multiplies_in_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; without them autocast to it takes longer."""
    # torch's public list of a processor's instructions is younger than the oldest torch that is supported.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _error() -> float:
    """Of a product of float32 matrices, of its largest entry."""
    x, y, expected, largest = _example()
    with torch.autocast("cpu", enabled=False):
        return float((x @ y.T - expected).abs().max()) / largest


@cache
def _example() -> tuple[Tensor, Tensor, Tensor, float]:
    generator = torch.Generator("cpu").manual_seed(0)
    x, y = (torch.randn(256, 128, generator=generator, dtype=torch.float32, device="cpu") for _ in range(2))
    expected = x.double() @ y.double().T
    return x, y, expected, float(expected.abs().max())


def _precision() -> str:
    # torch declares these settings at run time only, here and below.
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


def _enter() -> None:
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = _precision()
            if _before in ("none", "ieee"):
                torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        # What somebody else chose in the meantime stays.
        if _inside == 0 and _before in ("none", "ieee") and _precision() == "bf16":
            # Without a setting of its own it inherits one, which may be what stood there before.
            torch.backends.mkldnn.matmul.fp32_precision = "none"  # type: ignore[attr-defined]
            if _precision() != _before:
                torch.backends.mkldnn.matmul.fp32_precision = _before  # type: ignore[attr-defined]
