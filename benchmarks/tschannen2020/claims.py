"""What the paper asserts, as differences paired by seed, and what the runs say of it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks import lines
from benchmarks.curves import holds
from benchmarks.series import Config

__all__ = [
    "NEAR",
    "Claim",
    "Found",
    "by_converged_probe",
    "figure_of",
    "found",
    "judged",
    "short",
    "told",
    "verdict",
    "with_seeds",
]

Row = dict[str, Any]
# Nats: what counts as the same estimate, if the whole interval is within.
NEAR = 0.1
# The published probe stops early; the one of curves goes on to the minimum. What the one read, as read by the other:
CONVERGED = {
    "test_accuracy": "converged_accuracy",
    "start_test_accuracy": "start_converged_accuracy",
    # Encoders of figure 1c start as a permutation and a scale, which probes do not see.
    "pixels_accuracy": "start_converged_accuracy",
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
        margin: how far "not positive" and "not negative" may pass 0.
        given: without them the claim says nothing.
    """

    number: int | None
    text: str
    figure: str
    of: Config
    versus: Config | str | float
    expected: Literal["positive", "negative", "always negative", "not positive", "not negative", "zero"] = "positive"
    margin: float = 0.0
    given: "tuple[Claim, ...]" = ()


@dataclass(frozen=True)
class Found:
    """Differences, one a seed, and how many seeds have lost a side because a run failed or diverged."""

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


def figure_of(row: Row, name: str) -> float | None:
    """A figure of a line, or of its curves; None where there is none.

    Arguments:
        row: the line.
        name: of the figure; ``converged_accuracy`` and ``start_converged_accuracy`` are the ends of its curve,
            ``invertible_accuracy`` the last point of it before the inverse in float32 leaves its tolerance.
    """
    curves = row.get("curves", {})
    if name == "converged_accuracy" and "accuracy" not in curves:  # raw pixels have no curve
        name = "fast_accuracy"
    place = {"converged_accuracy": -1, "start_converged_accuracy": 0, "invertible_accuracy": _invertible(curves)}
    value = curves["accuracy"][place[name]] if name in place else row.get(name)
    return None if value is None else float(value)


def _invertible(curves: dict[str, list[Any]]) -> int:
    from benchmarks.tschannen2020.training import INVERSE_TOLERANCE

    errors = curves.get("inverse_error", [])
    return next((i for i, error in enumerate(errors) if error > INVERSE_TOLERANCE), len(errors)) - 1


def found(claim: Claim, rows: Sequence[Row]) -> Found:
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
        lost = lost | others
    elif isinstance(claim.versus, str):
        versus, _ = _by_seed(rows, claim.of, claim.versus, claim)
    else:
        versus = dict.fromkeys(of, claim.versus)
    return Found(tuple(of[seed] - versus[seed] for seed in sorted(of.keys() & versus.keys())), len(lost))


def _by_seed(rows: Sequence[Row], where: Config, name: str, claim: Claim) -> tuple[dict[int, float], set[int]]:
    values: dict[int, float] = {}
    lost: set[int] = set()
    for row in rows:
        if not holds(row["config"], where):
            continue
        value = figure_of(row, name) if row["status"] == "ok" else None
        if row["status"] != "ok":
            lost.add(row["seed"])
        elif value is not None and row["seed"] in values:
            raise ValueError(f"claim {claim.number}, {claim.text}: several runs of seed {row['seed']} hold {where}")
        elif value is not None:
            values[row["seed"]] = value
    return values, lost


def judged(claim: Claim, rows: Sequence[Row]) -> tuple[Found, str]:
    """Differences and verdict; none where what the claim takes for granted is not so.

    Arguments:
        claim: what is expected.
        rows: of the experiment.
    """
    differences = found(claim, rows)
    told = verdict(claim, differences)
    for condition in claim.given:
        if not told.startswith("not tested") and verdict(condition, found(condition, rows)) != "reproduced":
            return differences, f"not tested (it takes {condition.text})"
    return differences, told


def verdict(claim: Claim, of: Found) -> str:
    """What the differences say: an interval needs two seeds, a tolerance must hold for every one.

    Arguments:
        claim: what is expected of them.
        of: the differences.
    """
    values = of.values
    if claim.expected == "always negative" and values and max(values) >= 0:
        return "NOT reproduced"
    if not values and not of.lost:
        return "not tested at this budget"
    if len(values) < 2:
        return "not tested (one seed)"
    half = lines.half_width(values)
    told = "reproduced" if claim.expected == "always negative" else _of_interval(claim, statistics.fmean(values), half)
    return "undecided (a run was lost)" if of.lost and told == "reproduced" else told


def _of_interval(claim: Claim, middle: float, half: float) -> str:
    low, high = middle - half, middle + half
    # Where the claim holds, and the rest of the line: in between lies what is not decided.
    inside = {
        "positive": (0.0, float("inf")),
        "negative": (float("-inf"), 0.0),
        "not positive": (float("-inf"), claim.margin),
        "not negative": (-claim.margin, float("inf")),
        "zero": (-NEAR, NEAR),
    }[claim.expected]
    if inside[0] <= low and high <= inside[1]:
        return "reproduced"
    if high < inside[0] or low > inside[1]:
        return "NOT reproduced"
    borders = [f"{border:g}" for border in inside if low <= border <= high]
    return f"undecided (the interval holds {' and '.join(borders)})"


def with_seeds(claim: Claim, of: Found, seeds: int) -> str:
    """What as many seeds would say if mean and deviation stayed what they are.

    Arguments:
        claim: what is expected.
        of: at least two differences.
        seeds: how many there would be.
    """
    half = lines.half_width(of.values, seeds)
    return _of_interval(claim, statistics.fmean(of.values), half)


def told(values: Sequence[float]) -> tuple[str, str]:
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
