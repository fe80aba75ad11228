"""The battery for objectives: functions of a matrix of scores."""

import inspect
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from contrastive.testing.reports import Report, copies, near, refuses, require, run_checks

__all__ = ["assert_objective", "check_objective"]

Objective = Callable[..., Tensor]

ANCHORS = 8  # even, for objectives of two views


def check_objective(objective: Objective, *, exempt: Collection[str] = ()) -> Report:
    """Runs the battery for objectives.

    Each check calls it as ``objective(scores)`` with a square matrix, where the diagonal holds the positives or the
    objective knows others; what an objective's signature does not have, `targets` or `log_weights`, is not asked for.

    Arguments:
        objective: ``(scores [anchors, candidates], targets=None, *, log_weights=None) -> [anchors]`` or a scalar.
        exempt: names of checks that do not apply.

    Returns:
        What holds and what does not.

    Raises:
        ValueError: for an exempt name that is none.

    Example:
        >>> from contrastive import kpair_loss
        >>> check_objective(kpair_loss).holds
        True
        >>> naive = check_objective(lambda scores: scores.logsumexp(1).exp().log() - scores.diagonal())
        >>> "large_scores_are_exact" in naive.failures
        True
    """
    return run_checks(objective, _CHECKS, exempt)


def assert_objective(objective: Objective, *, exempt: Collection[str] = ()) -> None:
    """Asserts that an objective passes its battery.

    Arguments:
        objective: as in `check_objective`.
        exempt: as in `check_objective`.

    Raises:
        AssertionError: with what failed.
        ValueError: as `check_objective`.
    """
    check_objective(objective, exempt=exempt).raise_failures()


# --- what is refused ------------------------------------------------------------------------------------------------


def _nan_and_infinity_are_refused(objective: Objective) -> None:
    for value in (torch.nan, torch.inf):
        scores = _scores()
        scores[2, 5] = value
        with refuses(f"a score of {value}", "2"):
            objective(scores)


def _other_shapes_are_refused(objective: Objective) -> None:
    for shape in ((ANCHORS,), (2, ANCHORS, ANCHORS), ()):
        with refuses(f"a tensor of shape {shape}"):
            objective(torch.zeros(shape))


def _other_dtypes_are_refused(objective: Objective) -> None:
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with refuses(f"a matrix of {dtype}"):
            objective(torch.ones(ANCHORS, ANCHORS, dtype=dtype))


def _other_targets_are_refused(objective: Objective) -> None:
    if not _takes(objective, "targets"):
        return
    scores, order = _scores(), torch.arange(ANCHORS)
    wrong = {
        "targets of floats": order.double(),
        "a negative target": order - 1,
        "a target beyond the last candidate": order + 1,
        "one target for many anchors": order[:1],
        "a target too many": torch.zeros(ANCHORS + 1, dtype=torch.int64),
    }
    for what, targets in wrong.items():
        with refuses(what):
            objective(scores, targets)


def _other_log_weights_are_refused(objective: Objective) -> None:
    if not _takes(objective, "log_weights"):
        return
    for shape in ((ANCHORS,), (1, ANCHORS), (ANCHORS, 1), (ANCHORS, ANCHORS + 1)):
        with refuses(f"log_weights of shape {shape}"):
            objective(_scores(), log_weights=torch.zeros(shape, dtype=torch.float64))


# --- what is defined ------------------------------------------------------------------------------------------------


def _one_value_an_anchor_or_a_scalar(objective: Objective) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        found = objective(_scores().to(dtype))
        require(found.shape in ((), (ANCHORS,)), f"values have shape {tuple(found.shape)}, expected [{ANCHORS}] or []")
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        require(found.dtype == wanted, f"values of {dtype} scores have dtype {found.dtype}, expected {wanted}")


def _small_batches_are_defined_or_refused(objective: Objective) -> None:
    for anchors in (0, 1, 2):
        scores = torch.zeros(anchors, anchors, requires_grad=True)
        try:
            value = objective(scores)
        except ValueError:
            continue
        _finite(value, scores, f"a batch of {anchors}")


def _inputs_are_left_alone(objective: Objective) -> None:
    scores = _scores()
    before = scores.clone()
    objective(scores)
    require(torch.equal(scores, before), "the scores are changed")
    if _takes(objective, "log_weights"):
        log_weights = _log_weights()
        before = log_weights.clone()
        objective(scores, log_weights=log_weights)
        require(torch.equal(log_weights, before), "the log_weights are changed")


def _views_are_read_as_they_are(objective: Objective) -> None:
    scores = _scores()
    near(objective(scores.T.contiguous().T), objective(scores), 1e-14, "a transposed view")
    row = scores[:1].expand(ANCHORS, ANCHORS)
    near(objective(row), objective(row.clone()), 1e-14, "an expanded view")


def _survives_pickle_and_deepcopy(objective: Objective) -> None:
    expected = _repeated(objective, _scores())
    for way, other in copies(objective):
        near(_repeated(other, _scores()), expected, 0.0, f"{way}, it gives another value")


def _the_same_seed_gives_the_same_value(objective: Objective) -> None:
    first, second = (_repeated(objective, _scores()) for _ in range(2))
    near(first, second, 0.0, "called twice")


# --- numerics -------------------------------------------------------------------------------------------------------


def _gradients_are_those_of_the_value(objective: Objective) -> None:
    scores = _scores().requires_grad_()
    try:
        torch.autograd.gradcheck(objective, (scores,))
        torch.autograd.gradgradcheck(objective, (scores,))
    except RuntimeError as error:  # gradcheck's own finding
        raise AssertionError(" ".join(str(error).split())[:200]) from error


def _large_scores_are_exact(objective: Objective) -> None:
    scores = 1e4 * torch.sign(_scores()) + _scores().clamp(-2, 2).mul(8).round() / 8
    expected = objective(scores)
    require(torch.isfinite(expected).all(), "scores of 1e4 in float64 are not finite")
    single = scores.float().requires_grad_()
    value = objective(single)
    _finite(value, single, "scores of 1e4 in float32")
    near(value, expected, 1e-5, "scores of 1e4 in float32")


def _low_temperatures_are_exact(objective: Objective) -> None:
    cosines = torch.tanh(_scores())
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        scores = (cosines / 1e-3).to(dtype)
        found = scores.clone().requires_grad_()
        value = objective(found)
        _finite(value, found, f"cosines at a temperature of 1e-3 in {dtype}")
        near(value, objective(scores.double()), 1e-5, f"cosines at a temperature of 1e-3 in {dtype}")


def _autocast_changes_nothing(objective: Objective) -> None:
    scores = _scores().float()
    expected = _repeated(objective, scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _repeated(objective, scores)
    near(found, expected, 1e-6, "under autocast")


def _equal_scores_are_finite(objective: Objective) -> None:
    for value in (0.0, 1.0, -30.0):
        scores = torch.full((ANCHORS, ANCHORS), value, requires_grad=True)
        _finite(objective(scores), scores, f"nothing but scores of {value}")


# --- properties -----------------------------------------------------------------------------------------------------


def _the_order_of_anchors_does_not_matter(objective: Objective) -> None:
    # Halves as wholes and pairs within: also two views stay what they are.
    order = torch.tensor([2, 0, 3, 1, 6, 4, 7, 5])
    scores = _scores()
    value = objective(scores)
    near(objective(scores[order][:, order]), value[order] if value.ndim else value, 1e-12, "anchors in another order")


def _absent_candidates_change_nothing(objective: Objective) -> None:
    if not _takes(objective, "targets"):
        return
    scores = _scores()
    wide = torch.cat([scores, torch.full((ANCHORS, 3), -torch.inf, dtype=scores.dtype)], 1).requires_grad_()
    value = objective(wide)
    near(value, objective(scores), 1e-13, "with three absent candidates")
    (gradient,) = torch.autograd.grad(value.sum(), wide)
    require(not gradient[:, ANCHORS:].any(), "an absent candidate has a gradient")


def _an_absent_row_is_defined(objective: Objective) -> None:
    scores = _scores()
    scores[3] = -torch.inf
    scores[:, 3] = -torch.inf
    if not _takes(objective, "targets"):  # two views: the partner has no positive left
        scores[7], scores[:, 7] = -torch.inf, -torch.inf
    scores.requires_grad_()
    value = objective(scores)
    _finite(value, scores, "a row without any candidate")
    if value.ndim:
        require(float(value[3].detach()) == 0.0, f"a row without any candidate costs {float(value[3]):.4g}, expected 0")


def _a_dropped_negative_is_an_absent_one(objective: Objective) -> None:
    if not (_takes(objective, "log_weights") and _takes(objective, "targets")):
        return
    scores = _scores()
    dropped = torch.zeros_like(scores)
    dropped[0, 3] = dropped[5, 2] = -torch.inf
    near(objective(scores, log_weights=dropped), objective(scores + dropped), 1e-12, "a negative of log-weight -inf")
    near(objective(scores, log_weights=torch.zeros_like(scores)), objective(scores), 1e-13, "log-weights of zero")


_CHECKS = (
    _nan_and_infinity_are_refused,
    _other_shapes_are_refused,
    _other_dtypes_are_refused,
    _other_targets_are_refused,
    _other_log_weights_are_refused,
    _one_value_an_anchor_or_a_scalar,
    _small_batches_are_defined_or_refused,
    _inputs_are_left_alone,
    _views_are_read_as_they_are,
    _survives_pickle_and_deepcopy,
    _the_same_seed_gives_the_same_value,
    _gradients_are_those_of_the_value,
    _large_scores_are_exact,
    _low_temperatures_are_exact,
    _autocast_changes_nothing,
    _equal_scores_are_finite,
    _the_order_of_anchors_does_not_matter,
    _absent_candidates_change_nothing,
    _an_absent_row_is_defined,
    _a_dropped_negative_is_an_absent_one,
)


def _scores() -> Tensor:
    return torch.randn(ANCHORS, ANCHORS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _log_weights() -> Tensor:
    weights = torch.randn(ANCHORS, ANCHORS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return weights.fill_diagonal_(0.0)


def _takes(objective: Objective, name: str) -> bool:
    try:
        return name in inspect.signature(objective).parameters
    except (TypeError, ValueError):  # a builtin tells nothing
        return False


def _repeated(objective: Objective, scores: Tensor) -> Tensor:
    torch.manual_seed(5)
    return objective(scores)


def _finite(value: Tensor, leaf: Tensor, what: str) -> None:
    require(torch.isfinite(value).all(), f"{what}: the value is not finite ({value.detach().flatten()[:4].tolist()})")
    require(value.requires_grad, f"{what}: the value has no gradient, so ranks that wait for one would hang")
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    require(torch.isfinite(gradient).all(), f"{what}: the gradient is not finite")
