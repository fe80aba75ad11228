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
``log_weights`` shape of ``scores``,                     0 everywhere: no mining; :math:`-\infty`: dropped;
                :math:`\log w_{ij}`                      at the target 0, but where a proposal is undone
=============== ======================================== =================================================

A *miner* is any callable ``(scores, targets, *, anchors=None) -> log_weights``.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrastive._handwritten import seen_through

__all__ = [
    "MiningFacts",
    "WeighsNegatives",
    "as_float32",
    "check_any_positive",
    "check_positives",
    "check_rows",
    "check_square",
    "check_targets",
    "check_values",
    "checked_temperature",
    "facts_of",
    "negatives",
    "partners",
    "target_scores",
    "weighed",
    "without_self",
]


@dataclass(frozen=True)
class MiningFacts:
    """What a miner guarantees about every row, whatever the scores; the bounds read it.

    Arguments:
        mass: what the weights of a row's negatives add up to, at least: ``"all"`` for as much as there are negatives
            present; an integer k where k negatives are kept (all, where fewer are present), with weight 1 each but for
            a chain, which may weigh them further; None where it depends on the data.
        monotone: whether the weight never decreases as the score grows within a row, and depends on nothing but the
            row's negatives. Of a miner that draws: the weight it draws by.
        drawn: whether the `mass` negatives that are kept are drawn at random, without replacement.
        proposal: whether the candidates come from a known distribution of their own, and the weights, the positive's
            included, are the ratios that undo it.
        hardest: whether the `mass` negatives that are kept, with weight 1, are those of the highest scores: their
            columns then say all there is to say.
        why: why it guarantees nothing, in a clause; for the reader of a bound.
    """

    mass: int | Literal["all"] | None = None
    monotone: bool = False
    drawn: bool = False
    proposal: bool = False
    hardest: bool = False
    why: str = ""


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


def facts_of(miner: WeighsNegatives) -> MiningFacts:
    """What a miner guarantees; nothing, where it does not say.

    Arguments:
        miner: any callable of that form.
    """
    facts = getattr(miner, "facts", MiningFacts())
    assert isinstance(facts, MiningFacts)
    return facts


def weighed(
    function: str, miner: WeighsNegatives, scores: Tensor, targets: Tensor, anchors: Tensor | None
) -> Float[Tensor, "anchors candidates"]:
    """What a miner makes of some rows, for a loss that mines.

    Arguments:
        function: name of the caller, for the message.
        miner: any callable of that form.
        scores: the rows.
        targets: their positives.
        anchors: their numbers.

    Raises:
        ValueError: where the miner returns no tensor. One that forgets its `return` returns None, which elsewhere means
            no mining: it would train unmined and say nothing.
    """
    log_weights: object = miner(scores, targets, anchors=anchors)
    if not isinstance(log_weights, Tensor):
        raise ValueError(
            f"{function}: the miner {miner!r} returned {type(log_weights).__name__}, expected log-weights of shape "
            f"{tuple(scores.shape)}"
        )
    return log_weights


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
    _check_scores(function, scores)
    targets = check_targets(function, scores.shape[0], scores.shape[1], targets, scores.device)
    return as_float32(scores), targets, _check_log_weights(function, scores, log_weights)


def check_targets(
    function: str, anchors: int, candidates: int, targets: Tensor | None, device: torch.device
) -> Int[Tensor, " anchors"]:
    """The part of `check_rows` that needs no scores.

    Arguments:
        function: name of the caller, for the message.
        anchors: number of rows.
        candidates: number of columns.
        targets: None means the diagonal.
        device: where the scores are.

    Returns:
        The targets as int64 on `device`.

    Raises:
        ValueError: names `function`, what it got and what it expected.
    """
    if targets is None:
        if candidates < anchors:
            raise ValueError(
                f"{function}: scores have shape {(anchors, candidates)}; without targets the positive of anchor i is "
                f"column i, which needs at least {anchors} candidates"
            )
        return torch.arange(anchors, device=device)
    if targets.dtype == torch.bool or targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"{function}: targets have dtype {targets.dtype}, expected an integer dtype")
    if targets.shape != (anchors,):  # a length of 1 would broadcast in silence
        raise ValueError(f"{function}: targets have shape {tuple(targets.shape)}, expected [{anchors}]")
    targets = targets.to(device=device, dtype=torch.int64)
    if eager_on_cpu(targets) and anchors and not (int(targets.min()) >= 0 and int(targets.max()) < candidates):
        raise ValueError(
            f"{function}: targets lie in [{int(targets.min())}, {int(targets.max())}], "
            f"expected columns in [0, {candidates - 1}]"
        )
    return targets


def check_positives(
    function: str, scores: Tensor, targets: Tensor | None = None, log_weights: Tensor | None = None
) -> tuple[
    Float[Tensor, "anchors candidates"],
    Bool[Tensor, "anchors candidates"],
    Bool[Tensor, "anchors candidates"],
    Float[Tensor, "anchors candidates"],
]:
    r"""`check_rows` for losses of several positives, whose targets may be a mask; values are checked at once.

    Arguments:
        function: name of the caller, for the message.
        scores: as in `check_rows`.
        targets: the positives: a mask, or one column per anchor, or None for the diagonal.
        log_weights: as in `check_rows`; what stands at positives is ignored.

    Returns:
        The scores; the mask of the positives and that of the negatives, of what is present (a row without any
        candidate has neither); the log-weights, 0 at the positives and without mining.

    Raises:
        ValueError: as `check_rows` and `check_values`, and for a mask of another shape than `scores`.
    """
    if targets is None or targets.dtype != torch.bool:
        scores, targets, log_weights = check_rows(function, scores, targets, log_weights)
        positive = torch.zeros_like(scores, dtype=torch.bool).scatter(1, targets[:, None], True)
    else:
        _check_scores(function, scores)
        if targets.shape != scores.shape:
            raise ValueError(
                f"{function}: targets are a mask of shape {tuple(targets.shape)}, expected {tuple(scores.shape)}"
            )
        positive = targets.to(scores.device)
        scores, log_weights = as_float32(scores), _check_log_weights(function, scores, log_weights)
    present = scores != -torch.inf
    positive = positive & present.any(1, keepdim=True)  # a row without any candidate is padding
    if eager_on_cpu(scores):
        _refuse_nan_and_infinity(function, scores)
        orphaned = (positive & ~present).any(1)
        if bool(orphaned.any()):
            raise ValueError(
                f"{function}: a positive of row {int(orphaned.nonzero()[0])} is absent (-inf) "
                "while other candidates are present"
            )
    weights = torch.zeros_like(scores) if log_weights is None else log_weights.masked_fill(positive, 0.0)
    return scores, positive, ~positive & present, weights


def check_any_positive(
    function: str, positive: Bool[Tensor, "anchors candidates"], negative: Bool[Tensor, "anchors candidates"]
) -> None:
    """The check of labels, for losses that are 0 where an anchor has no positive: a batch of those teaches nothing.

    Arguments:
        function: name of the caller, for the message.
        positive: as `check_positives` returns it.
        negative: as `check_positives` returns it; a batch without any candidate is padding, which needs no positive.

    Raises:
        ValueError: names `function`.
    """
    if eager_on_cpu(positive) and not bool(positive.any()) and bool(negative.any()):
        raise ValueError(f"{function}: no row has a positive (every label stands alone), expected one at least")


def check_square(function: str, scores: Tensor) -> None:
    """The check of shape where anchors and candidates are the same rows, or pair up one to one.

    Arguments:
        function: name of the caller, for the message.
        scores: anything that should be ``Float[batch, batch]``.

    Raises:
        ValueError: names `function`, what it got and what it expected.
    """
    _check_scores(function, scores)
    if scores.shape[0] != scores.shape[1]:
        raise ValueError(f"{function}: scores have shape {tuple(scores.shape)}, expected as many candidates as anchors")


def _check_scores(function: str, scores: Tensor) -> None:
    if scores.ndim != 2:
        raise ValueError(f"{function}: scores have shape {tuple(scores.shape)}, expected [anchors, candidates]")
    if not scores.is_floating_point():
        raise ValueError(f"{function}: scores have dtype {scores.dtype}, expected a floating-point dtype")


def _check_log_weights(function: str, scores: Tensor, log_weights: Tensor | None) -> Tensor | None:
    if log_weights is None:
        return None
    if log_weights.shape != scores.shape:
        raise ValueError(
            f"{function}: log_weights have shape {tuple(log_weights.shape)}, expected {tuple(scores.shape)}"
        )
    if not log_weights.is_floating_point():
        raise ValueError(f"{function}: log_weights have dtype {log_weights.dtype}, expected a floating-point dtype")
    return as_float32(log_weights)


def check_values(function: str, scores: Tensor, targets: Tensor, *, first: int = 0) -> None:
    r"""The check of values at the public boundary. It reads the whole matrix: a loss asks its own result first.

    Arguments:
        function: name of the caller, for the message.
        scores: :math:`s_{ij}`, as `check_rows` returns them.
        targets: as `check_rows` returns them.
        first: the number of the first row, where these are some rows of a larger matrix.

    Raises:
        ValueError: names `function` and the first row with a NaN or +inf score, or with an absent target beside
            candidates that are present.
    """
    _refuse_nan_and_infinity(function, scores, first)
    orphaned = (target_scores(scores, targets).squeeze(1) == -torch.inf) & (scores > -torch.inf).any(1)
    if bool(orphaned.any()):
        row = int(orphaned.nonzero()[0])
        raise ValueError(
            f"{function}: the target of row {first + row} (column {int(targets[row])}) is absent (-inf) "
            "while other candidates are present"
        )


def _refuse_nan_and_infinity(function: str, scores: Tensor, first: int = 0) -> None:
    undefined = (torch.isnan(scores) | (scores == torch.inf)).any(1)
    if bool(undefined.any()):
        raise ValueError(
            f"{function}: row {first + int(undefined.nonzero()[0])} holds a NaN or +inf score, "
            "expected finite scores (-inf for an absent candidate)"
        )


def checked_temperature(function: str, temperature: float) -> float:
    """A temperature: below 1e-6 the scores of cosines exceed 1e6 in float32, and no training can follow.

    Arguments:
        function: name of the caller, for the message.
        temperature: anything that should be one.

    Raises:
        ValueError: for a temperature that is not a finite number of at least 1e-6.
    """
    if not (math.isfinite(temperature) and temperature >= 1e-6):
        raise ValueError(f"{function}: temperature is {temperature}, expected a finite number of at least 1e-06")
    return float(temperature)


def eager_on_cpu(x: Tensor) -> bool:
    """Whether values may be looked at: an accelerator would wait, a compiled graph or a transform would break."""
    return x.device.type == "cpu" and not seen_through()


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


def without_self(scores: Float[Tensor, "rows rows"]) -> Float[Tensor, "rows rows"]:
    r"""Makes the self pairs of a batch scored against itself absent: :math:`-\infty` on the diagonal.

    Arguments:
        scores: :math:`s_{ij} = f(z_i, z_j)`; whatever stands on the diagonal, NaN included, is replaced, and has
            gradient 0.

    Returns:
        A copy, of the same dtype.

    Raises:
        ValueError: for a matrix that is not square, or not of a floating-point dtype.

    Example:
        >>> import torch
        >>> without_self(torch.ones(2, 2))
        tensor([[-inf, 1.],
                [1., -inf]])
    """
    check_square("without_self", scores)
    return scores.masked_fill(torch.eye(len(scores), dtype=torch.bool, device=scores.device), -torch.inf)


def partners(rows: int, *, device: torch.device | str | None = None) -> Int[Tensor, " rows"]:
    r"""The targets of a batch of two views, one after the other: the positive of row i is the other view of its sample.

    .. math::
        t(i) = (i + B) \bmod 2B

    With `without_self` it turns a batch of two views into what a miner, or any objective, takes: see `ntxent_loss`.

    Arguments:
        rows: 2B, how many views there are.
        device: where the targets shall be.

    Returns:
        The column of each row's positive.

    Raises:
        ValueError: for an odd or a negative number.

    Example:
        >>> partners(6)
        tensor([3, 4, 5, 0, 1, 2])
    """
    if rows < 0 or rows % 2:
        raise ValueError(f"partners: got {rows} rows, expected an even number: two views of every sample")
    return torch.arange(rows, device=device).roll(rows // 2)
