"""Tables of runs and differences, and the page with the figures in the paper's arrangement."""

import html
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import lines, pages
from benchmarks.curves import figure
from benchmarks.tschannen2020.claims import NEAR, figure_of, in_words, short, twins
from benchmarks.tschannen2020.runs import Config, Experiment
from benchmarks.tschannen2020.training import INVERSE_TOLERANCE

__all__ = ["arms", "text", "told_troubles", "write"]

Row = dict[str, Any]
ARM = ("data", "encoder", "critic", "objective", "target", "miner", "sampling", "noise")


def text(experiment: Experiment, rows: Sequence[Row]) -> str:
    """Both tables as markdown.

    Arguments:
        experiment: whose rows.
        rows: its lines.
    """
    parts = [f"## {experiment.title}", lines.markdown(arms(rows))]
    if experiment.claims:
        parts.append(lines.markdown(_claims(experiment, rows)))
    return "\n\n".join([*parts, *told_troubles(rows)])


def told_troubles(rows: Sequence[Row]) -> list[str]:
    """A line for every run that failed, left the floats, or ended with an estimate below 0, where it says nothing.

    Arguments:
        rows: lines of experiments.
    """
    return [
        f"{row['status'].replace('ok', 'astray')}: {_arm(row['config'])}{_in(row)}, seed {row['seed']}: {_why(row)}"
        for row in rows
        if row["status"] != "ok" or _below_zero(row)
    ]


def _in(row: Row) -> str:
    return ", products in bfloat16" if row["config"].get("products") == "bfloat16" else ""


def _below_zero(row: Row) -> list[str]:
    """Which of its estimates ended below 0, which a constant critic gets, or as no number, which is null in a line."""
    if row["config"].get("objective") not in ("nce", "nwj"):
        return []
    return [key for key in ("test_bound", "train_bound") if key in row and (row[key] is None or row[key] < 0)]


def _why(row: Row) -> str:
    if row["status"] != "ok":
        when = f"at step {row.get('diverged_at')}"
        if "diverged_after" in row:  # which was noticed then
            when = f"between steps {row['diverged_after']} and {row['diverged_at']}"
        return str(row.get("error") or f"left the floats {when}")
    key = _below_zero(row)[0]
    steps = zip(row["curves"]["iteration"], row["curves"].get(key, []), strict=False)
    below: int | None = None  # since when
    for step, height in steps:
        below = None if height is not None and height >= 0 else step if below is None else below
    since = "" if below is None else f", below 0 since the evaluation at step {below}"
    name = {"test_bound": "held out", "train_bound": "training"}[key]
    return f"I_EST {name} {'no number' if row[key] is None else short(row[key])} at the end{since}"


def _arm(config: Config) -> str:
    absent = ("critic",) if config.get("objective") == "labels" else ()
    told = [
        f"{key} {config[key]:g}" if isinstance(config[key], float) else str(config[key])
        for key in ARM
        if key not in absent and config.get(key) not in (None, "none", 0.0)
    ]
    told += ["grey"] if config.get("grey") else []
    return ", ".join(told) or "all"


def arms(rows: Sequence[Row]) -> list[list[str]]:
    """A table of what runs of one configuration came to.

    Arguments:
        rows: lines of an experiment.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[_arm(row["config"])].append(row)
    head = ["arm", "runs", "accuracy (SAGA)", "accuracy (converged)", "I_EST held out", "I_EST training", "others"]
    head.append("CPU seconds a run")
    table = [head]
    for name, members in groups.items():
        good = [row for row in members if row["status"] == "ok"]
        failed = len(members) - len(good)
        table.append(
            [
                name,
                f"{len(good)}" + (f" (+ {failed} diverged or failed)" if failed else ""),
                _mean(good, "test_accuracy"),
                _mean(good, "converged_accuracy"),
                _mean(good, "test_bound"),
                _mean(good, "train_bound"),
                _others(good),
                f"{statistics.fmean(row['cpu_seconds'] for row in members):.0f}",
            ]
        )
    return table


def _mean(rows: Sequence[Row], key: str) -> str:
    values = [value for row in rows if (value := figure_of(row, key)) is not None]
    if not values:
        return ""
    spread = f" ± {short(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{short(statistics.fmean(values))}{spread}"


def _others(rows: Sequence[Row]) -> str:
    words = []
    if any("inverse_error" in row for row in rows):
        worst = max(value for row in rows if (value := figure_of(row, "worst_inverse_error")) is not None)
        exact = max(row["inverse_error_float64"] for row in rows)
        kept = "within" if worst <= INVERSE_TOLERANCE else "ABOVE"
        words.append(f"inverse off by {worst:.1e} at most ({kept} tolerance), at the end in float64 by {exact:.1e}")
    if any(row["config"].get("target") for row in rows):
        words.append(_met(rows))
    if any("median_log10_condition" in row for row in rows):
        words.append(f"median log10 condition {_mean(rows, 'median_log10_condition')}")
    if any("mined_status" in row for row in rows):
        status = " / ".join(sorted({row["mined_status"] for row in rows if "mined_status" in row}))
        words.append(f"mined loss: {status}, value {_mean(rows, 'mined_bound')}; I_EST is the honest bound")
    return "; ".join(words)


def _met(rows: Sequence[Row]) -> str:
    """At which evaluation I_EST in training was within `NEAR` of the target for the first time, seed by seed."""
    steps = [
        next(
            (
                step
                for step, height in zip(row["curves"]["iteration"], row["curves"]["train_bound"], strict=True)
                if height is not None and abs(height - row["config"]["target"]) <= NEAR
            ),
            None,
        )
        for row in sorted(rows, key=lambda row: row["seed"])
    ]
    told = ", ".join("never" if step is None else f"{step:,}" for step in steps)
    return "target never met" if set(steps) == {None} else f"target met at iteration {told}"


def _claims(experiment: Experiment, rows: Sequence[Row]) -> list[list[str]]:
    table = [["claim", "what", "difference", "95 % interval", "seeds", "verdict"]]
    for claim in experiment.claims:
        for each in twins(claim):
            found, middle, interval, words = in_words(each, rows)
            number, count = str(claim.number or "beyond"), str(len(found.values))
            table.append([number, each.text, middle, interval, count, words])
    return table


# --- page -------------------------------------------------------------------------------------------------------------


def write(experiments: Sequence[Experiment], rows: Sequence[Row], folder: Path, *, told: str) -> Path:
    """Writes ``report.html``, which stands alone, and the figures beside it.

    Arguments:
        experiments: in the order of the page.
        rows: lines of all of them.
        folder: made if it is missing.
        told: what was run, for the note below the heading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for experiment in experiments:
        own = [row for row in rows if row["experiment"] == experiment.name]
        if not own:
            continue
        parts.append(f"<h2>{html.escape(experiment.title)}</h2>")
        drawn = figure(experiment.panels, own, columns=experiment.columns)
        if drawn is not None:
            alt = f"{experiment.title}: curves by iteration, mean and standard deviation over seeds"
            parts.append(pages.image(drawn, folder / f"{experiment.name}.png", alt))
        if experiment.claims:
            parts.append(pages.table(_claims(experiment, own)))
        parts.append(pages.table(arms(own)))
        parts += [f"<p class=bad>{html.escape(line)}</p>" for line in told_troubles(own)]
    note = (
        f"{told}. Bands and ± are standard deviations over seeds; differences are paired by seed, with 95 % "
        "t-intervals. I_EST is the estimate that is trained, in batches of 128: held out on test images, and on fresh "
        f"training batches. {lines.provenance(rows)}"
    )
    heading = "On Mutual Information Maximization for Representation Learning, repeated"
    return pages.write(folder / "report.html", "Tschannen et al. (2020), repeated", heading, note, parts)
