"""Which way through the scores a loss takes, and the autograd function that ends all of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from contrastive._handwritten import replayed
from contrastive._strips import one_direction, one_direction_scored, parameters_of
from contrastive._tiles import Absent, absent_in, checked_mask, two_directions
from contrastive.factors import Factors, Splits, factorises, factors_of, without_autocast
from contrastive.objectives import kpair_loss
from contrastive.scores import WeighsNegatives, as_float32, check_targets, partners, without_self

__all__ = [
    "Critic",
    "as_under_autocast",
    "check_pairs",
    "direction",
    "directions",
    "formed",
    "joined",
    "or_self",
    "swapped",
    "views",
]

Critic = Callable[[Tensor, Tensor], Tensor]


def direction(
    function: str,
    critic: Critic,
    x: Tensor,
    y: Tensor,
    targets: Tensor | None,
    *,
    absent: Absent | None,
    miner: WeighsNegatives | None,
    stored: bool,
    turned: bool = False,
) -> Tensor:
    """The mean loss of the rows of `x` among those of `y`; turned, of those of `y` among those of `x`.

    The critic gets `x` and `y` in their order either way. `function` is the name of the public caller, for messages;
    the other arguments are those of `contrastive.tiled`.
    """
    check_batches(function, x, y)
    anchors, candidates = (y, x) if turned else (x, y)
    targets = check_targets(function, len(anchors), len(candidates), targets, x.device)
    if not len(anchors):
        return as_float32(x[:0]).sum() + as_float32(y[:0]).sum()
    options: dict[str, Any] = {"targets": targets, "absent": absent, "miner": miner}
    if factorises(critic):
        factors = factors_of(critic, x, y)
        u, v = (factors.candidates, factors.anchors) if turned else (factors.anchors, factors.candidates)
        compute = partial(one_direction, function, unit=factors.unit, **options)
        plain = partial(_plain, targets=targets, unit=factors.unit, absent=absent) if stored and miner is None else None
        return formed(compute, plain, u, v, factors.scale, *parameters_of(miner))
    a, b, score = (*critic.split(x, y), critic.pairs) if isinstance(critic, Splits) else (x, y, critic)
    score = as_under_autocast(score, x)
    if turned:
        a, b, score = b, a, partial(_transposed, score)
    compute = partial(one_direction_scored, function, score, **options)
    return formed(compute, None, a, b, *parameters_of(critic, miner))


def directions(
    function: str,
    critic: Critic,
    x: Tensor,
    y: Tensor,
    negatives: Tensor | None,
    *,
    absent: Absent | None,
    miner: WeighsNegatives | None,
    stored: bool,
) -> Tensor:
    """The mean loss of both directions; arguments as in `direction`."""
    check_pairs(function, x, y)
    candidates = joined(function, y, negatives)
    if miner is None and factorises(critic) and len(x):
        factors = factors_of(critic, x, candidates)
        compute = partial(two_directions, function, unit=factors.unit, absent=absent, stored=stored)
        plain = partial(_plain_symmetric, unit=factors.unit, absent=absent) if stored else None
        return formed(compute, plain, factors.anchors, factors.candidates, factors.scale)
    there = direction(function, critic, x, candidates, None, absent=absent, miner=miner, stored=stored)
    back = direction(function, critic, x, y, None, absent=swapped(absent), miner=miner, stored=stored, turned=True)
    return (there + back) / 2


def views(
    function: str,
    critic: Critic,
    x: Tensor,
    y: Tensor,
    negatives: Tensor | None,
    *,
    absent: Absent | None,
    miner: WeighsNegatives | None,
    stored: bool,
) -> Tensor:
    """The mean loss of NT-Xent; arguments as in `direction`."""
    check_pairs(function, x, y)
    z = joined(function, x, y, "positives")
    if miner is None and absent is None and negatives is None and factorises(critic) and len(z):
        factors = factors_of(critic, z, z)
        if factors.anchors is factors.candidates:  # symmetric scores
            compute = partial(_two_views, function, unit=factors.unit, stored=stored)
            plain = partial(_plain_views, unit=factors.unit) if stored else None
            return formed(compute, plain, factors.anchors, factors.scale)
    candidates = joined(function, z, negatives)
    targets = partners(len(z), device=z.device)
    absent = partial(or_self, absent)
    return direction(function, critic, z, candidates, targets, absent=absent, miner=miner, stored=stored)


def joined(function: str, y: Tensor, more: Tensor | None, what: str = "negatives") -> Tensor:
    """The rows of `y` and then those of `more`, which are called `what`."""
    if more is None:
        return y
    if more.ndim != 2 or y.ndim != 2 or more.shape[1] != y.shape[1]:
        raise ValueError(
            f"{function}: got rows of shape {tuple(y.shape)} and {what} of shape {tuple(more.shape)}, "
            "expected [N, d] and [M, d]"
        )
    with without_autocast(y):  # which knows one kind of half precision and refuses to concatenate the other
        return torch.cat([y, more])


def _plain_scores(critic: Critic, x: Tensor, y: Tensor, absent: Absent | None) -> Tensor:
    """The matrix of scores, what is absent in it marked."""
    scores = critic(x, y)
    if absent is None:
        return scores
    return scores.masked_fill(absent_in(absent, slice(0, len(x)), slice(0, len(y)), scores.device), -torch.inf)


class _FormedAtOnce(torch.autograd.Function):
    """A loss whose gradients are formed with its value."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Any], plain: Callable[..., Tensor] | None, *inputs: Any) -> Tensor:
        tensors = [z if isinstance(z, Tensor) else None for z in inputs]
        value, gradients = _computed(compute, inputs, ctx.needs_input_grad[2:])
        ctx.plain = plain
        ctx.constants = [None if isinstance(z, Tensor) else z for z in inputs]
        ctx.save_for_backward(*tensors, *gradients)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(ctx.constants)
        tensors, gradients = saved[:count], saved[count:]
        if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated
            # Views: where one tensor is both factors, each shall get its own part of the gradient.
            inputs = [c if z is None else z.view_as(z) for z, c in zip(tensors, ctx.constants, strict=True)]
            return None, None, *_differentiable(ctx.plain, inputs, ctx.needs_input_grad[2:], upstream)
        # As after loss.backward(): no copy, unless another pass may follow, which what becomes of these must not reach.
        kept = torch._C._autograd._get_current_graph_task_keep_graph()
        if not kept and upstream.device.type == "cpu" and float(upstream) == 1.0:
            return None, None, *gradients
        return None, None, *(None if g is None else g * upstream for g in gradients)


def _differentiable(
    plain: Callable[..., Tensor] | None, inputs: list[Any], needed: tuple[bool, ...], upstream: Tensor
) -> list[Tensor | None]:
    """The gradients by way of the matrix, as tensors that can be differentiated again."""
    if plain is None:
        raise RuntimeError(
            "the tiled loss is differentiable once (its gradients are formed with its value); for a second derivative "
            "use the stored scores, on one rank: stored=True, KPairLoss(tiled=False) or kpair_loss(critic(x, y))"
        )
    return replayed(plain, inputs, needed, upstream)


def formed(compute: Callable[..., Any], plain: Callable[..., Tensor] | None, *inputs: Any) -> Tensor:
    """The loss, computed in eager mode: its loops over tiles are nothing that a compiler could improve."""
    apply = _FormedAtOnce.apply if torch.is_grad_enabled() else _value
    if torch.compiler.is_compiling():
        apply = torch.compiler.disable(apply)  # type: ignore[no-untyped-call]  # no decorator: it imports the compiler
    value: Tensor = apply(compute, plain, *inputs)
    return value


def _value(compute: Callable[..., Any], plain: Callable[..., Tensor] | None, *inputs: Any) -> Tensor:
    """The loss alone: without a graph, autograd would still say that gradients are needed."""
    return _computed(compute, inputs, (False,) * len(inputs))[0]


def _computed(compute: Callable[..., Any], inputs: Sequence[Any], needed: tuple[bool, ...]) -> tuple[Tensor, Any]:
    value: Tensor
    with without_autocast(inputs[0]):
        value, gradients = compute(*inputs, needed=needed)
    return value, gradients


def as_under_autocast(score: Critic, x: Tensor) -> Critic:
    """A critic's own layers run as autocast says where the loss is called; everything else in at least float32."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return score
    dtype = torch.get_autocast_dtype(kind)

    def scored(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(kind, dtype=dtype):
            return score(a, b)

    return scored


def _transposed(score: Critic, b: Tensor, a: Tensor) -> Tensor:
    return score(a, b).T


def _two_views(
    function: str, u: Tensor, scale: Tensor | float, *, unit: bool, stored: bool, needed: tuple[bool, bool]
) -> tuple[Tensor, list[Tensor | None]]:
    value, (du, _, dscale) = two_directions(
        function, u, None, scale, unit=unit, absent=None, stored=stored, needed=(needed[0], False, needed[1])
    )
    return value, [du, dscale]


def _plain(
    u: Tensor, v: Tensor, scale: Tensor | float, *, targets: Tensor, unit: bool, absent: Absent | None
) -> Tensor:
    return kpair_loss(_plain_scores(partial(_product, scale=scale, unit=unit), u, v, absent), targets).mean()


def _plain_symmetric(u: Tensor, v: Tensor, scale: Tensor | float, *, unit: bool, absent: Absent | None) -> Tensor:
    scores = _plain_scores(partial(_product, scale=scale, unit=unit), u, v, absent)
    return (kpair_loss(scores).mean() + kpair_loss(scores[:, : len(u)].T).mean()) / 2


def _plain_views(u: Tensor, scale: Tensor | float, *, unit: bool) -> Tensor:
    return kpair_loss(without_self(_product(u, u, scale=scale, unit=unit)), partners(len(u), device=u.device)).mean()


def _product(u: Tensor, v: Tensor, *, scale: Tensor | float, unit: bool) -> Tensor:
    return Factors(u, v, scale, unit).scores()


def swapped(absent: Absent | None) -> Absent | None:
    """Which pairs are absent in the other direction."""
    return None if absent is None else partial(_absent_turned, absent)


def _absent_turned(absent: Absent, rows: Tensor, columns: Tensor) -> Tensor:
    return absent(columns, rows).T


def or_self(absent: Absent | None, rows: Tensor, columns: Tensor) -> Tensor:
    """Which pairs are absent, or an item and itself."""
    same = rows[:, None] == columns
    return same if absent is None else same | checked_mask(absent(rows, columns), len(rows), len(columns))


def check_batches(function: str, x: Tensor, y: Tensor) -> None:
    """The check of two batches of rows."""
    if x.ndim != 2 or y.ndim != 2:
        raise ValueError(
            f"{function}: got anchors of shape {tuple(x.shape)} and candidates of shape {tuple(y.shape)}, "
            "expected [N, dx] and [M, dy]"
        )
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError(
            f"{function}: got anchors of dtype {x.dtype} and candidates of dtype {y.dtype}, "
            "expected floating-point dtypes"
        )


def check_pairs(function: str, x: Tensor, y: Tensor) -> None:
    """The check of two batches whose rows pair up."""
    check_batches(function, x, y)
    if len(x) != len(y):
        raise ValueError(f"{function}: got {len(x)} anchors and {len(y)} positives, expected as many of each")
