"""Functions whose gradient is written out beside their value, where that is faster than what autograd puts together.

The plain form stays beside it: it is differentiated where somebody asks for a second derivative, and used where a
compiler or `torch.func` must see every step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["apply", "replayed", "seen_through", "writable"]

Value = Callable[..., tuple[Tensor, Sequence[Tensor]]]
Slopes = Callable[..., Sequence[Tensor | None]]


def seen_through() -> bool:
    """Whether a compiler or a transform of `torch.func` is at work, which must see every step."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def writable(x: Tensor, *, autocast: bool = False) -> bool:
    """Whether a gradient written out may be used: one is needed, and nothing looks at or changes the steps.

    Arguments:
        x: an input; its device decides whether autocast is on.
        autocast: whether the gradient knows what autocast does.
    """
    return torch.is_grad_enabled() and not seen_through() and (autocast or not torch.is_autocast_enabled(x.device.type))


def apply(value: Value, slopes: Slopes, plain: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Computes ``plain(*inputs)`` by `value`, and its gradient by `slopes`.

    Arguments:
        value: the inputs to the result and what is kept for the way back.
        slopes: the gradient of the result, the inputs and what was kept (three arguments, the last two as tuples), to
            the gradients of all inputs; what nobody asked for may be None.
        plain: the same function by operations that autograd knows, for second derivatives.
        inputs: all that may need a gradient.
    """
    result: Tensor = _Handwritten.apply(value, slopes, plain, *inputs)
    return result


def replayed(
    plain: Callable[..., Tensor], inputs: Sequence[Any], needed: Sequence[bool], upstream: Tensor
) -> list[Tensor | None]:
    """The gradients of the plain form, to be differentiated again.

    Arguments:
        plain: a function of the inputs.
        inputs: where.
        needed: of which the gradient is asked for.
        upstream: the gradient of the result.
    """
    asked = [z for z, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(plain(*inputs), asked, upstream, create_graph=True))
    return [next(found) if need else None for need in needed]


class _Handwritten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Value, slopes: Slopes, plain: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        result, kept = value(*inputs)
        ctx.save_for_backward(*inputs, *kept)
        ctx.slopes, ctx.plain, ctx.count = slopes, plain, len(inputs)
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        inputs, kept = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated
            # Views: where one tensor is two inputs, each shall get its own part of the gradient.
            views = [z.view_as(z) for z in inputs]
            return None, None, None, *replayed(ctx.plain, views, ctx.needs_input_grad[3:], upstream)
        return None, None, None, *ctx.slopes(upstream, inputs, kept)
