"""The battery for evaluators: functions of embeddings and labels that say how often a neighbour is of the class."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from contrastive.testing.reports import Report, refuses, require, run_checks

__all__ = ["assert_evaluator", "check_evaluator"]

Evaluator = Callable[[Tensor, Tensor, int], float]


def check_evaluator(evaluate: Evaluator, *, exempt: Collection[str] = ()) -> Report:
    """Runs the battery for evaluators.

    Arguments:
        evaluate: ``(embeddings [n, d], labels [n], k) -> float``: the share of queries with one of their class among
            their k nearest other rows. An evaluator of many figures becomes one by
            ``lambda x, y, k: evaluate_retrieval(x, y, ks=(k,)).mean[f"recall@{k}"]``.
        exempt: names of checks that do not apply.

    Returns:
        What holds and what does not.

    Raises:
        ValueError: for an exempt name that is none.

    Example:
        >>> from contrastive import evaluate_retrieval
        >>> check_evaluator(lambda x, y, k: evaluate_retrieval(x, y, ks=(k,)).mean[f"recall@{k}"]).holds
        True
    """
    return run_checks(evaluate, _CHECKS, exempt)


def assert_evaluator(evaluate: Evaluator, *, exempt: Collection[str] = ()) -> None:
    """Asserts that an evaluator passes its battery.

    Arguments:
        evaluate: as in `check_evaluator`.
        exempt: as in `check_evaluator`.

    Raises:
        AssertionError: with what failed.
        ValueError: as `check_evaluator`.
    """
    check_evaluator(evaluate, exempt=exempt).raise_failures()


# --- what is refused ------------------------------------------------------------------------------------------------


def _nan_and_infinity_are_refused(evaluate: Evaluator) -> None:
    for value in (torch.nan, torch.inf):
        x, labels = _clusters()
        x[7, 1] = value
        with refuses(f"an embedding of {value}", "7"):
            evaluate(x, labels, 1)


def _other_shapes_are_refused(evaluate: Evaluator) -> None:
    x, labels = _clusters()
    wrong = {
        "embeddings of one dimension": (x[:, 0], labels),
        "embeddings of three dimensions": (x[None], labels),
        "too few labels": (x, labels[:-1]),
        "labels of floats that are no classes": (x, labels + 0.5),
        "no embeddings": (x[:0], labels[:0]),
    }
    for what, arguments in wrong.items():
        with refuses(what):
            evaluate(*arguments, 1)


def _k_beyond_the_gallery_is_refused(evaluate: Evaluator) -> None:
    x, labels = _clusters()
    for k in (0, len(x)):
        with refuses(f"k = {k} of {len(x)} rows"):
            evaluate(x, labels, k)


# --- what is right --------------------------------------------------------------------------------------------------


def _is_that_of_the_loop(evaluate: Evaluator) -> None:
    x, labels = _clusters()
    for k in (1, 3, len(x) - 1):
        _is(evaluate(x, labels, k), _loop(x, labels, k), f"recall@{k}")


def _perfect_embeddings_read_one(evaluate: Evaluator) -> None:
    labels = torch.arange(5).repeat_interleave(4)
    x = torch.eye(5)[labels] + 0.01 * torch.randn(20, 5)
    _is(evaluate(x, labels, 1), 1.0, "recall@1 of classes far apart")


def _duplicates_do_not_find_themselves(evaluate: Evaluator) -> None:
    """Every vector twice, the copies of another class: whoever drops the first neighbour finds the copy of itself."""
    x = torch.randn(20, 6)
    labels = torch.arange(20) // 2
    twice, other = torch.cat([x, x]), torch.cat([labels, labels.roll(7)])
    _is(evaluate(twice, other, 1), 0.0, "recall@1 where the nearest is a copy of another class")


def _collapsed_embeddings_read_chance(evaluate: Evaluator) -> None:
    """All equal: whatever a tie is decided by, it must not know the classes; sorted or not."""
    labels = torch.arange(6).repeat_interleave(5)
    chance, x = 4 / 29, torch.ones(30, 4)
    for order in (torch.arange(30), torch.arange(30).flip(0), torch.randperm(30)):
        found = evaluate(x, labels[order], 1)
        require(abs(found - chance) < 0.1, f"recall@1 of equal embeddings is {found:.3f}, chance is {chance:.3f}")


def _the_order_of_rows_does_not_matter(evaluate: Evaluator) -> None:
    """With ties: integer coordinates make many; sorted by class beside shuffled."""
    x = torch.randint(-1, 2, (60, 3)).float() + 0.5
    labels = torch.arange(60) % 4
    found = evaluate(x, labels, 1)
    for order in (labels.argsort(stable=True), torch.randperm(60)):
        _is(evaluate(x[order], labels[order], 1), found, "recall@1 of rows in another order")


def _a_class_of_one_is_left_out(evaluate: Evaluator) -> None:
    x, labels = _clusters()
    found = evaluate(x, labels, 1)
    far = torch.full((1, x.shape[1]), 50.0) * torch.tensor([1.0, -1.0] * (x.shape[1] // 2))
    alone = evaluate(torch.cat([x, far]), torch.cat([labels, labels.max()[None] + 1]), 1)
    _is(alone, found, "recall@1 beside a query that has nothing to find")


def _a_single_class_reads_one(evaluate: Evaluator) -> None:
    x, _ = _clusters()
    _is(evaluate(x, torch.zeros(len(x), dtype=torch.int64), 1), 1.0, "recall@1 of one class")


def _large_labels_do_not_merge(evaluate: Evaluator) -> None:
    """Above 2 ** 24 neighbouring integers are one number in float32."""
    x, labels = _clusters()
    _is(evaluate(x, labels + 2**24, 1), evaluate(x, labels, 1), "recall@1 with labels above 2 ** 24")


def _vectors_of_zero_are_defined(evaluate: Evaluator) -> None:
    x, labels = _clusters()
    x[3] = 0.0
    found = evaluate(x, labels, 1)
    require(0.0 <= found <= 1.0, f"recall@1 with a vector of zero is {found}")


def _half_precision_is_near(evaluate: Evaluator) -> None:
    x, labels = _clusters()
    for dtype in (torch.float16, torch.bfloat16):
        half = x.to(dtype)
        _is(evaluate(half, labels, 1), _loop(half.double(), labels, 1), f"recall@1 of {dtype}")


def _more_neighbours_find_no_less(evaluate: Evaluator) -> None:
    x, labels = _clusters()
    found = [evaluate(x, labels, k) for k in (1, 2, 4, 8, 16)]
    require(found == sorted(found), f"recall at 1, 2, 4, 8, 16 is {found}, expected it to grow")


def _inputs_are_left_alone(evaluate: Evaluator) -> None:
    x, labels = _clusters()
    before = x.clone(), labels.clone()
    evaluate(x, labels, 2)
    require(torch.equal(x, before[0]) and torch.equal(labels, before[1]), "the embeddings or labels are changed")


def _views_are_read_as_they_are(evaluate: Evaluator) -> None:
    x, labels = _clusters()
    strided = torch.stack([labels, labels], 1)[:, 0]
    _is(evaluate(x.T.contiguous().T, strided, 2), evaluate(x, labels, 2), "recall@2 of transposed embeddings")
    _is(
        evaluate(x.clone().requires_grad_(), labels, 2), evaluate(x, labels, 2), "recall@2 of embeddings with gradients"
    )


_CHECKS = (
    _nan_and_infinity_are_refused,
    _other_shapes_are_refused,
    _k_beyond_the_gallery_is_refused,
    _is_that_of_the_loop,
    _perfect_embeddings_read_one,
    _duplicates_do_not_find_themselves,
    _collapsed_embeddings_read_chance,
    _the_order_of_rows_does_not_matter,
    _a_class_of_one_is_left_out,
    _a_single_class_reads_one,
    _large_labels_do_not_merge,
    _vectors_of_zero_are_defined,
    _half_precision_is_near,
    _more_neighbours_find_no_less,
    _inputs_are_left_alone,
    _views_are_read_as_they_are,
)


def _clusters() -> tuple[Tensor, Tensor]:
    """Forty rows of five classes of equal size that overlap, in no order, every vector of length one."""
    generator = torch.Generator().manual_seed(1)
    labels = (torch.arange(40) % 5)[torch.randperm(40, generator=generator)]
    x = torch.randn(5, 6, generator=generator)[labels] + 0.9 * torch.randn(40, 6, generator=generator)
    return torch.nn.functional.normalize(x), labels


def _loop(x: Tensor, labels: Tensor, k: int) -> float:
    """The definition, row by row; of unit vectors, so cosine, inner product and distance agree."""
    hits = 0
    for i in range(len(x)):
        distances = [(float((x[i] - x[j]).double().square().sum()), j) for j in range(len(x)) if j != i]
        hits += any(int(labels[j]) == int(labels[i]) for _, j in sorted(distances)[:k])
    return hits / len(x)


def _is(found: float, expected: float, what: str) -> None:
    require(abs(found - expected) < 1e-6, f"{what} is {found:.6g}, expected {expected:.6g}")
