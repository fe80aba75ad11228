"""What the paper asserts, as differences paired by seed, and what the runs say of it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks import lines
from benchmarks.curves import holds
from benchmarks.series import Config
from benchmarks.tschannen2020.training import INVERSE_TOLERANCE

__all__ = [
    "NEAR",
    "Claim",
    "Differences",
    "by_converged_probe",
    "differences",
    "figure_of",
    "in_words",
    "judged",
    "mean_and_interval",
    "on_training_batches",
    "short",
    "twins",
    "verdict",
    "with_seeds",
]

Row = dict[str, Any]
# Nats: what counts as the same estimate, if the whole interval is within.
NEAR = 0.1
# The published probe stops early; the one of curves goes on nearly to the minimum. What the one read, and the other:
CONVERGED = {
    "test_accuracy": "converged_accuracy",
    "start_test_accuracy": "start_converged_accuracy",
    "pixels_accuracy": "pixels_converged_accuracy",
}


@dataclass(frozen=True)
class Claim:
    """A difference that the paper asserts something of, paired by seed.

    Arguments:
        number: of the paper's claim; None where it is ours.
        text: what is claimed.
        figure: which figure of the line, by `figure_of`.
        of: what the configurations of the one side hold; one run a seed.
        versus: those of the other side; or the name of a figure of the same line; or a number.
        expected: what the difference is where the claim holds; "zero" is within `NEAR`, "always" is of every seed.
        margin: how far "not positive" and "not negative" may pass 0; of no meaning to others.
        given: without them the claim says nothing.
        condition: whether it says only that a run got where it was to get; what the paper asserts rests on it.
        main: whether its effect is what the claim as a whole is known by.
    """

    number: int | None
    text: str
    figure: str
    of: Config
    versus: Config | str | float
    expected: Literal["positive", "negative", "always negative", "not positive", "not negative", "zero"] = "positive"
    margin: float = 0.0
    given: "tuple[Claim, ...]" = ()
    condition: bool = False
    main: bool = False


@dataclass(frozen=True)
class Differences:
    """What was found of a claim.

    Arguments:
        values: one a seed.
        lost: how many seeds have none because a run failed, diverged, or has no number there.
    """

    values: tuple[float, ...]
    lost: int = 0


def by_converged_probe(claim: Claim) -> Claim | None:
    """The same claim, its accuracies by the probe of curves; None where it is of no accuracy.

    Arguments:
        claim: by the published probe.
    """
    if claim.figure not in CONVERGED:
        return None
    versus = CONVERGED[claim.versus] if isinstance(claim.versus, str) else claim.versus
    return replace(claim, text="the same, by the converged probe", figure=CONVERGED[claim.figure], versus=versus)


def on_training_batches(claim: Claim) -> Claim | None:
    """The same claim of I_EST on fresh training batches, as the paper plots it; None where it is of no held-out one.

    Arguments:
        claim: of held-out estimates.
    """
    if claim.figure != "test_bound" or claim.condition:
        return None
    versus = "start_train_bound" if claim.versus == "start_bound" else claim.versus
    return replace(claim, text="the same, on training batches", figure="train_bound", versus=versus)


def twins(claim: Claim) -> tuple[Claim, ...]:
    """A claim and what stands below it: by the other probe, or on the other batches.

    Arguments:
        claim: by the published probe, or held out.
    """
    return tuple(each for each in (claim, by_converged_probe(claim), on_training_batches(claim)) if each is not None)


def figure_of(row: Row, name: str) -> float | None:
    """A figure of a line, or of its curves; None where there is none.

    Arguments:
        row: the line.
        name: of the figure; ``converged_accuracy`` and ``start_converged_accuracy`` are the ends of its curve,
            ``invertible_accuracy`` the last point of it before the inverse in float32 leaves its tolerance,
            ``worst_inverse_error`` the largest of all evaluations, ``start_train_bound`` the first point of its curve.
    """
    accuracies = row.get("curves", {}).get("accuracy", [])
    if name == "invertible_accuracy":
        errors = row["curves"]["inverse_error"]
        accuracies = accuracies[: next((i for i, error in enumerate(errors) if error > INVERSE_TOLERANCE), len(errors))]
        value = accuracies[-1] if accuracies else None
    elif name == "worst_inverse_error":
        value = max(row.get("curves", {}).get("inverse_error", []), default=None)
    elif name == "start_train_bound":
        value = next(iter(row.get("curves", {}).get("train_bound", [])), None)
    elif name == "converged_accuracy":
        value = accuracies[-1] if accuracies else row.get("fast_accuracy")  # raw pixels have no curve
    elif name == "start_converged_accuracy":
        value = accuracies[0] if accuracies else None
    else:
        value = row.get(name)
    return None if value is None else float(value)


def differences(claim: Claim, rows: Sequence[Row]) -> Differences:
    """The difference of every seed that has both sides.

    Arguments:
        claim: what is compared.
        rows: of the experiment.

    Raises:
        ValueError: where a side is of several runs of a seed: those are no independent values.
    """
    of, lost = _by_seed(rows, claim.of, claim.figure, claim)
    if isinstance(claim.versus, dict):
        versus, others = _by_seed(rows, claim.versus, claim.figure, claim)
    elif isinstance(claim.versus, str):
        versus, others = _by_seed(rows, claim.of, claim.versus, claim)
    else:
        versus, others = dict.fromkeys(of, claim.versus), set()
    values = (of[seed] - versus[seed] for seed in sorted(of.keys() & versus.keys()))
    return Differences(tuple(values), len(lost | others))


def _by_seed(rows: Sequence[Row], where: Config, name: str, claim: Claim) -> tuple[dict[int, float], set[int]]:
    """Figures by seed, and the seeds without a number."""
    values: dict[int, float] = {}
    lost: set[int] = set()
    for row in rows:
        if not holds(row["config"], where):
            continue
        value = figure_of(row, name) if row["status"] == "ok" else None
        if value is None:
            lost.add(row["seed"])
        elif row["seed"] in values:
            raise ValueError(f"claim {claim.number}, {claim.text}: several runs of seed {row['seed']} hold {where}")
        else:
            values[row["seed"]] = value
    return values, lost


def judged(claim: Claim, rows: Sequence[Row]) -> tuple[Differences, str]:
    """Differences and verdict; none where what the claim takes for granted is not so.

    Arguments:
        claim: what is expected.
        rows: of the experiment.
    """
    found = differences(claim, rows)
    words = verdict(claim, found)
    for condition in claim.given:
        if not words.startswith("not tested") and verdict(condition, differences(condition, rows)) != "reproduced":
            return found, "not tested (its condition is not shown)"
    return found, words


def verdict(claim: Claim, found: Differences) -> str:
    """What the differences say: an interval needs two seeds, a tolerance must hold for every one.

    Arguments:
        claim: what is expected of them.
        found: the differences.
    """
    values = found.values
    if claim.expected == "always negative" and values and max(values) >= 0:
        return "NOT reproduced"
    if len(values) < 2:
        one = "one seed" if values else "at this budget"
        return f"not tested ({f'{found.lost} lost' if found.lost else one})"
    if claim.expected == "always negative":
        words = "reproduced"
    else:
        words = _of_interval(claim, statistics.fmean(values), lines.half_width(values))
    return f"undecided ({found.lost} lost)" if found.lost and words == "reproduced" else words


def _of_interval(claim: Claim, middle: float, half: float) -> str:
    low, high = middle - half, middle + half
    if claim.expected in ("positive", "negative"):
        if low > 0 or high < 0:
            return "reproduced" if (middle > 0) == (claim.expected == "positive") else "NOT reproduced"
        return "undecided (the interval contains 0)"
    # Where the claim holds, borders included.
    least, most = {
        "not positive": (-math.inf, claim.margin),
        "not negative": (-claim.margin, math.inf),
        "zero": (-NEAR, NEAR),
    }[claim.expected]
    if least <= low and high <= most:
        return "reproduced"
    if high < least or low > most:
        return "NOT reproduced"
    borders = [f"{border:g}" for border in (least, most) if low <= border <= high]
    return f"undecided (the interval contains {' and '.join(borders)})"


def with_seeds(claim: Claim, found: Differences, seeds: int) -> str:
    """What as many seeds would say if mean and deviation stayed what they are.

    Arguments:
        claim: what is expected.
        found: at least two differences.
        seeds: how many there would be.
    """
    return _of_interval(claim, statistics.fmean(found.values), lines.half_width(found.values, seeds))


def in_words(claim: Claim, rows: Sequence[Row]) -> tuple[Differences, str, str, str]:
    """Differences, their mean or the worst of them, the 95 % interval where there is one, and the verdict, in words.

    Arguments:
        claim: what is expected.
        rows: of one experiment, data set and preset.
    """
    found, words = judged(claim, rows)
    if claim.condition:
        words = words.replace("NOT reproduced", "not met").replace("reproduced", "met")
    elif any(row["config"].get("preset") == "quick" and row["config"].get("data", "mnist") != "mnist" for row in rows):
        # Neither the paper's data nor, of CIFAR-10, near its budget.
        words = words.replace("NOT reproduced", "does not hold").replace("reproduced", "holds")
    if claim.expected == "always negative" and found.values:
        assert isinstance(claim.versus, float)
        return found, f"at most {max(found.values) + claim.versus:.1e}", "", words
    return found, *mean_and_interval(found.values), words


def mean_and_interval(values: Sequence[float]) -> tuple[str, str]:
    """Mean and 95 % interval of differences, in words; one alone has no interval.

    Arguments:
        values: one a seed.
    """
    if not values:
        return "no pair", ""
    middle = statistics.fmean(values)
    if len(values) == 1:
        return short(middle, "+"), ""
    half = lines.half_width(values)
    return short(middle, "+"), f"{short(middle - half, '+')} to {short(middle + half, '+')}"


def short(value: float, sign: str = "") -> str:
    """Four digits behind the point; an estimate that went astray needs none of them.

    Arguments:
        value: a figure.
        sign: ``+`` to have it always.
    """
    return f"{value:{sign}.4f}" if abs(value) < 1e4 else f"{value:{sign}.1e}"
