"""Tables of runs and differences, and the page with the figures in the paper's arrangement."""

import html
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import lines, pages
from benchmarks.curves import figure, holds
from benchmarks.tschannen2020.runs import Claim, Config, Experiment

__all__ = ["NEAR", "arms", "differences", "text", "told", "told_troubles", "write"]

# Nats: what counts as the same estimate, if the whole interval is within.
NEAR = 0.1

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
    """A line for every run that failed or left the floats.

    Arguments:
        rows: lines of experiments.
    """
    return [f"{row['status']}: {_arm(row['config'])}, seed {row['seed']}: {_why(row)}" for row in _troubled(rows)]


def _troubled(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["status"] != "ok"]


def _why(row: Row) -> str:
    return str(row.get("error") or f"left the floats at step {row.get('diverged_at')}")


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
    head = ["arm", "runs", "accuracy (SAGA)", "I_EST held out", "I_EST training", "others", "CPU seconds a run"]
    table = [head]
    for name, members in groups.items():
        good = [row for row in members if row["status"] == "ok"]
        failed = len(members) - len(good)
        table.append(
            [
                name,
                f"{len(good)}" + (f" (+ {failed} diverged or failed)" if failed else ""),
                _mean(good, "test_accuracy"),
                _mean(good, "test_bound"),
                _mean(good, "train_bound"),
                _others(good),
                f"{statistics.fmean(row['cpu_seconds'] for row in members):.0f}",
            ]
        )
    return table


def _mean(rows: Sequence[Row], key: str) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return ""
    spread = f" ± {_short(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{_short(statistics.fmean(values))}{spread}"


def _short(value: float, sign: str = "") -> str:
    """Four digits behind the point; an estimate that went astray needs none of them."""
    return f"{value:{sign}.4f}" if abs(value) < 1e4 else f"{value:{sign}.1e}"


def _others(rows: Sequence[Row]) -> str:
    found = []
    if any("inverse_error" in row for row in rows):
        worst = max(row["inverse_error"] for row in rows)
        exact = max(row["inverse_error_float64"] for row in rows)
        kept = "within" if all(row["inverse_within_tolerance"] for row in rows) else "ABOVE"
        found.append(f"inverse off by {worst:.1e} at most ({kept} tolerance), in float64 by {exact:.1e}")
    if any("median_log10_condition" in row for row in rows):
        found.append(f"median log10 condition {_mean(rows, 'median_log10_condition')}")
    if any("mined_status" in row for row in rows):
        status = " / ".join(sorted({row["mined_status"] for row in rows if "mined_status" in row}))
        found.append(f"mined loss: {status}, value {_mean(rows, 'mined_bound')}; I_EST is the honest bound")
    if any("fast_accuracy" in row for row in rows):
        found.append(f"fast probe {_mean(rows, 'fast_accuracy')}")
    return "; ".join(found)


def differences(claim: Claim, rows: Sequence[Row]) -> list[float]:
    """The difference of every seed that has both sides.

    Arguments:
        claim: what is compared.
        rows: of the experiment.
    """
    of = _by_seed(rows, claim.of, claim.figure)
    if isinstance(claim.versus, dict):
        versus = _by_seed(rows, claim.versus, claim.figure)
    elif isinstance(claim.versus, str):
        versus = _by_seed(rows, claim.of, claim.versus)
    else:
        versus = dict.fromkeys(of, claim.versus)
    return [of[key] - versus[key] for key in sorted(of.keys() & versus.keys())]


def _by_seed(rows: Sequence[Row], where: Config, key: str) -> dict[tuple[int, str], float]:
    """By seed, and by what the claim leaves open."""
    found = {}
    for row in rows:
        if row["status"] == "ok" and row.get(key) is not None and holds(row["config"], where):
            open_keys = [name for name in ARM if name not in where]
            found[row["seed"], str([row["config"].get(name) for name in open_keys])] = row[key]
    return found


def _claims(experiment: Experiment, rows: Sequence[Row]) -> list[list[str]]:
    table = [["claim", "what", "difference", "95 % interval", "pairs"]]
    for claim in experiment.claims:
        values = differences(claim, rows)
        table.append([str(claim.number or "beyond"), claim.text, *told(values), str(len(values))])
    return table


def told(values: Sequence[float]) -> tuple[str, str]:
    """Mean and 95 % interval of differences, in words; one alone has no interval.

    Arguments:
        values: one a seed.
    """
    if not values:
        return "no pair", ""
    middle = statistics.fmean(values)
    if len(values) == 1:
        return _short(middle, "+"), ""
    half = lines.half_width(values)
    return _short(middle, "+"), f"{_short(middle - half, '+')} to {_short(middle + half, '+')}"


# --- page -------------------------------------------------------------------------------------------------------------


def write(experiments: Sequence[Experiment], rows: Sequence[Row], folder: Path, *, preset: str) -> Path:
    """Writes ``report.html``, which stands alone, and the figures beside it.

    Arguments:
        experiments: in the order of the page.
        rows: lines of all of them.
        folder: made if it is missing.
        preset: named in the heading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for experiment in experiments:
        own = [row for row in rows if row["experiment"] == experiment.name]
        if not own:
            continue
        parts.append(f"<h2>{html.escape(experiment.title)}</h2>")
        drawn = figure(experiment.panels, own)
        if drawn is not None:
            alt = f"{experiment.title}: curves by iteration, mean and standard deviation over seeds"
            parts.append(pages.image(drawn, folder / f"{experiment.name}.png", alt))
        if experiment.claims:
            parts.append(pages.table(_claims(experiment, own)))
        parts.append(pages.table(arms(own)))
        parts += [
            f"<p class=bad>{row['status']}: {html.escape(_arm(row['config']))}, seed {row['seed']}: "
            f"{html.escape(_why(row))}</p>"
            for row in _troubled(own)
        ]
    note = (
        f"Preset {preset}. Bands and ± are standard deviations over seeds; differences are paired by seed, with 95 % "
        "t-intervals. I_EST is the estimate that is trained, in batches of 128: held out on test images, and on fresh "
        f"training batches. {lines.provenance(rows)}"
    )
    heading = "On Mutual Information Maximization for Representation Learning, repeated"
    return pages.write(folder / "report.html", "Tschannen et al. (2020), repeated", heading, note, parts)
