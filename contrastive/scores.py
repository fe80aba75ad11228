r"""The vocabulary: scores, targets, log-weights, and the one check of their shapes.

Everything in this library is said about one matrix.

=============== ======================================== =================================================
name            what                                     rule
=============== ======================================== =================================================
``scores``      ``Float[anchors, candidates]``,          an absent candidate (self pair, duplicate,
                :math:`s_{ij} = f(x_i, y_j)`,            padding) is :math:`-\infty`
                temperature applied
``targets``     ``Int[anchors]``, the column of each     default: the diagonal
                anchor's positive
``log_weights`` shape of ``scores``,                     0 at the target; 0 everywhere: no mining;
                :math:`\log w_{ij}` of each negative     :math:`-\infty`: dropped
=============== ======================================== =================================================

A *miner* is any callable ``(scores, targets, *, anchors=None) -> log_weights``.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["MiningFacts", "WeighsNegatives", "as_float32", "check_rows", "check_values", "negatives", "target_scores"]


@dataclass(frozen=True)
class MiningFacts:
    """What a miner guarantees about every row, whatever the scores; the bounds read it.

    Arguments:
        mass: the sum of a row's weights over its negatives: ``"all"`` when it equals the number of
            negatives present, an integer `k` when it is k (or all, where fewer are present), None
            when it depends on the data.
        monotone: whether the weight never decreases as the score grows within a row, and depends on
            nothing but the row's negatives.
    """

    mass: int | Literal["all"] | None = None
    monotone: bool = False


@runtime_checkable
class WeighsNegatives(Protocol):
    """A miner, for type checkers only: any callable of this form will do, nothing is subclassed."""

    def __call__(  # noqa: D102
        self,
        scores: Float[Tensor, "anchors candidates"],
        targets: Int[Tensor, " anchors"],
        *,
        anchors: Int[Tensor, " anchors"] | None = None,
    ) -> Float[Tensor, "anchors candidates"]: ...


def as_float32(x: Tensor) -> Tensor:
    """Half precision raised to float32, anything wider left alone: a log-sum needs the digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_rows(
    function: str, scores: Tensor, targets: Tensor | None = None, log_weights: Tensor | None = None
) -> tuple[Float[Tensor, "anchors candidates"], Int[Tensor, " anchors"], Float[Tensor, "anchors candidates"] | None]:
    """The shape check at the public boundary, the same for every function of scores.

    Arguments:
        function: name of the caller, for the message.
        scores: anything that should be ``Float[anchors, candidates]``.
        targets: None means the diagonal.
        log_weights: None means no mining.

    Returns:
        The scores and log-weights in at least float32, and the targets as int64 on the scores' device.

    Raises:
        ValueError: names `function`, what it got and what it expected.
    """
    if scores.ndim != 2:
        raise ValueError(f"{function}: scores have shape {tuple(scores.shape)}, expected [anchors, candidates]")
    if not scores.is_floating_point():
        raise ValueError(f"{function}: scores have dtype {scores.dtype}, expected a floating-point dtype")
    anchors, candidates = scores.shape
    if targets is None:
        if candidates < anchors:
            raise ValueError(
                f"{function}: scores have shape {tuple(scores.shape)}; without targets the positive of anchor i is "
                f"column i, which needs at least {anchors} candidates"
            )
        targets = torch.arange(anchors, device=scores.device)
    else:
        if targets.dtype == torch.bool or targets.is_floating_point() or targets.is_complex():
            raise ValueError(f"{function}: targets have dtype {targets.dtype}, expected an integer dtype")
        if targets.shape != (anchors,):  # a length of 1 would broadcast in silence
            raise ValueError(f"{function}: targets have shape {tuple(targets.shape)}, expected [{anchors}]")
        targets = targets.to(device=scores.device, dtype=torch.int64)
        if eager_on_cpu(scores) and anchors and not (int(targets.min()) >= 0 and int(targets.max()) < candidates):
            raise ValueError(
                f"{function}: targets lie in [{int(targets.min())}, {int(targets.max())}], "
                f"expected columns in [0, {candidates - 1}]"
            )
    if log_weights is not None:
        if log_weights.shape != scores.shape:
            raise ValueError(
                f"{function}: log_weights have shape {tuple(log_weights.shape)}, expected {tuple(scores.shape)}"
            )
        log_weights = as_float32(log_weights)
    return as_float32(scores), targets, log_weights


def check_values(function: str, scores: Tensor, targets: Tensor) -> None:
    r"""The check of values at the public boundary. It reads the whole matrix: a loss asks its own result first.

    Arguments:
        function: name of the caller, for the message.
        scores: :math:`s_{ij}`, as `check_rows` returns them.
        targets: as `check_rows` returns them.

    Raises:
        ValueError: names `function` and the first row with a NaN or +inf score, or with an absent target beside
            candidates that are present.
    """
    undefined = (torch.isnan(scores) | (scores == torch.inf)).any(1)
    if bool(undefined.any()):
        raise ValueError(
            f"{function}: row {int(undefined.nonzero()[0])} holds a NaN or +inf score, "
            "expected finite scores (-inf for an absent candidate)"
        )
    orphaned = (target_scores(scores, targets).squeeze(1) == -torch.inf) & (scores > -torch.inf).any(1)
    if bool(orphaned.any()):
        row = int(orphaned.nonzero()[0])
        raise ValueError(
            f"{function}: the target of row {row} (column {int(targets[row])}) is absent (-inf) "
            "while other candidates are present"
        )


def eager_on_cpu(x: Tensor) -> bool:
    """Whether a check of values is cheap: on an accelerator it would wait, in a compiled graph it would break it."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def target_scores(
    scores: Float[Tensor, "anchors candidates"], targets: Int[Tensor, " anchors"]
) -> Float[Tensor, "anchors 1"]:
    r"""The positives' scores :math:`s_{i,t(i)}`, as a column that subtracts from `scores`."""
    return scores.gather(1, targets[:, None])


def negatives(
    scores: Float[Tensor, "anchors candidates"], targets: Int[Tensor, " anchors"]
) -> Bool[Tensor, "anchors candidates"]:
    r"""The negatives that are present: every column but the target whose score is not :math:`-\infty`.

    NaN counts as present, so that a broken score spoils its row instead of passing for an absent candidate.

    >>> import torch
    >>> scores = torch.tensor([[1.0, -torch.inf, 0.0]])
    >>> negatives(scores, torch.tensor([0]))
    tensor([[False, False,  True]])
    """
    return (scores != -torch.inf).scatter(1, targets[:, None], False)
