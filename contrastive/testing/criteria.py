"""The battery for criteria: losses of two batches of embeddings, row by row."""

import copy
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from contrastive.testing.reports import Report, copies, near, refuses, require, run_checks

__all__ = ["assert_criterion", "check_criterion"]

Criterion = Callable[[Tensor, Tensor], Tensor]

PAIRS, WIDTH = 6, 5


def check_criterion(criterion: Criterion, *, exempt: Collection[str] = ()) -> Report:
    """Runs the battery for criteria: losses of embeddings, in whose hands numbers may overflow before there is a score.

    Arguments:
        criterion: ``(x [pairs, width], y [pairs, width]) -> scalar``, the positives row by row. A loss of embeddings
            and labels becomes one by ``lambda x, y: loss(torch.cat([x, y]), torch.arange(len(x)).repeat(2))``.
        exempt: names of checks that do not apply.

    Returns:
        What holds and what does not.

    Raises:
        ValueError: for an exempt name that is none.

    Example:
        >>> from contrastive import Cosine, KPairLoss
        >>> check_criterion(KPairLoss(Cosine())).holds
        True
    """
    return run_checks(criterion, _CHECKS, exempt)


def assert_criterion(criterion: Criterion, *, exempt: Collection[str] = ()) -> None:
    """Asserts that a criterion passes its battery.

    Arguments:
        criterion: as in `check_criterion`.
        exempt: as in `check_criterion`.

    Raises:
        AssertionError: with what failed.
        ValueError: as `check_criterion`.
    """
    check_criterion(criterion, exempt=exempt).raise_failures()


def _nan_and_infinity_are_refused(criterion: Criterion) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        for place in (0, 1):
            views = list(_views())
            views[place][2, 1] = value
            with refuses(f"{value} in {'xy'[place]}"):
                criterion(*views)


def _other_shapes_are_refused(criterion: Criterion) -> None:
    x, y = _views()
    wrong = {
        "x without a width": (x[:, 0], y),
        "both without a width": (x[:, 0], y[:, 0]),
        "fewer positives than anchors": (x, y[:-1]),
        "embeddings of three dimensions": (x[None], y[None]),
        "other widths": (x, y[:, :-1]),
    }
    for what, views in wrong.items():
        with refuses(what):
            criterion(*views)


def _other_dtypes_are_refused(criterion: Criterion) -> None:
    for dtype in (torch.int64, torch.complex64):
        views = [view.to(dtype) for view in _views()]
        with refuses(f"embeddings of {dtype}"):
            criterion(*views)


def _small_batches_are_zero(criterion: Criterion) -> None:
    for pairs in (0, 1):
        x, y = (view[:pairs].requires_grad_() for view in _views())
        value = criterion(x, y)
        _finite(value, x, y, f"a batch of {pairs}")


def _inputs_are_left_alone(criterion: Criterion) -> None:
    x, y = _views()
    before = x.clone(), y.clone()
    criterion(x, y)
    require(torch.equal(x, before[0]) and torch.equal(y, before[1]), "the embeddings are changed")


def _views_are_read_as_they_are(criterion: Criterion) -> None:
    x, y = _views()
    expected = _repeated(criterion, x, y)
    near(_repeated(criterion, x.T.contiguous().T, y.T.contiguous().T), expected, 1e-6, "transposed views")
    row = x[:1].expand(PAIRS, WIDTH)
    near(_repeated(criterion, row, y), _repeated(criterion, row.clone(), y), 1e-6, "an expanded view")


def _survives_pickle_and_deepcopy(criterion: Criterion) -> None:
    expected = _repeated(criterion, *_views())
    for way, other in copies(criterion):
        near(_repeated(other, *_views()), expected, 0.0, f"{way}, it gives another value")


def _the_same_seed_gives_the_same_value(criterion: Criterion) -> None:
    first, second = (_repeated(criterion, *_views()) for _ in range(2))
    near(first, second, 0.0, "called twice")


def _gradients_are_those_of_the_value(criterion: Criterion) -> None:
    x, y = (view.double().requires_grad_() for view in _views())
    double = copy.deepcopy(criterion).double() if isinstance(criterion, nn.Module) else criterion
    try:
        torch.autograd.gradcheck(lambda a, b: _repeated(double, a, b), (x, y))
    except RuntimeError as error:  # gradcheck's own finding
        raise AssertionError(" ".join(str(error).split())[:200]) from error


def _half_precision_is_near(criterion: Criterion) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x, y = (view.to(dtype).requires_grad_() for view in _views())
        value = _repeated(criterion, x, y)
        _finite(value, x, y, f"embeddings of {dtype}")
        near(value, _repeated(criterion, x.detach().float(), y.detach().float()), 2e-2, f"embeddings of {dtype}")


def _autocast_keeps_the_digits_of_the_sum(criterion: Criterion) -> None:
    views = _views()
    expected = _repeated(criterion, *views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _repeated(criterion, *views)
    near(found, expected, 5e-2, "under autocast")


def _vectors_of_zero_are_finite(criterion: Criterion) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, y = (view.to(dtype) for view in _views())
        x[1], y[3] = 0.0, 0.0
        x, y = x.requires_grad_(), y.requires_grad_()
        _finite(_repeated(criterion, x, y), x, y, f"vectors of zero in {dtype}")


def _collapsed_embeddings_are_finite(criterion: Criterion) -> None:
    for scale in (1.0, 1e-6, 1e3):
        x, y = (torch.full((PAIRS, WIDTH), scale, requires_grad=True) for _ in range(2))
        _finite(_repeated(criterion, x, y), x, y, f"nothing but vectors of {scale}")


def _duplicates_are_finite(criterion: Criterion) -> None:
    x, y = _views()
    x[1], y[1], y[4] = x[0], y[0], x[4]
    x, y = x.requires_grad_(), y.requires_grad_()
    _finite(_repeated(criterion, x, y), x, y, "duplicates")


def _the_order_of_pairs_does_not_matter(criterion: Criterion) -> None:
    x, y = _views()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    near(_repeated(criterion, x[order], y[order]), _repeated(criterion, x, y), 1e-5, "pairs in another order")


_CHECKS = (
    _nan_and_infinity_are_refused,
    _other_shapes_are_refused,
    _other_dtypes_are_refused,
    _small_batches_are_zero,
    _inputs_are_left_alone,
    _views_are_read_as_they_are,
    _survives_pickle_and_deepcopy,
    _the_same_seed_gives_the_same_value,
    _half_precision_is_near,
    _autocast_keeps_the_digits_of_the_sum,
    _vectors_of_zero_are_finite,
    _collapsed_embeddings_are_finite,
    _duplicates_are_finite,
    _the_order_of_pairs_does_not_matter,
    _gradients_are_those_of_the_value,
)


def _views() -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, PAIRS, WIDTH, generator=torch.Generator().manual_seed(1))
    return x.clone(), y.clone()


def _repeated(criterion: Criterion, x: Tensor, y: Tensor) -> Tensor:
    torch.manual_seed(5)
    return criterion(x, y)


def _finite(value: Tensor, x: Tensor, y: Tensor, what: str) -> None:
    require(value.ndim == 0, f"{what}: the value has shape {tuple(value.shape)}, expected a scalar")
    require(torch.isfinite(value), f"{what}: the value is {float(value.detach())}")
    require(value.requires_grad, f"{what}: the value has no gradient, so ranks that wait for one would hang")
    gradients = torch.autograd.grad(value, (x, y), allow_unused=True)
    require(all(g is None or torch.isfinite(g).all() for g in gradients), f"{what}: a gradient is not finite")
