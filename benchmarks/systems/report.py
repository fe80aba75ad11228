"""The tables of the systems and the page, from the lines alone."""

import html
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import lines, pages
from benchmarks.curves import Panel, figure

if TYPE_CHECKING:
    from benchmarks.systems.runs import Goal, System

__all__ = ["blocks", "goal_row", "goals", "table", "text", "verdict", "write"]

Row = dict[str, Any]
KEYS = ("arm", "miner", "critic")


def text(rows: Sequence[Row]) -> str:
    """The table as markdown, and what failed.

    Arguments:
        rows: lines of any systems.
    """
    parts = [lines.markdown(table(rows))]
    parts += [f"failed: {_name(row)}, seed {row['seed']}: {row['error']}" for row in rows if row["status"] != "ok"]
    return "\n\n".join(parts)


def blocks(systems: Sequence["System"]) -> list[list[str]]:
    """In what the systems differ: one row each.

    Arguments:
        systems: of this folder.
    """
    head = ["system", "views", "encoder", "critic", "negatives", "objective", "nats?"]
    rows = [
        [
            s.name,
            s.blocks.views,
            s.blocks.encoder,
            s.blocks.critic,
            s.blocks.negatives,
            s.blocks.objective,
            s.blocks.nats,
        ]
        for s in systems
    ]
    return [head, *rows]


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Every configuration a row: each figure trained, beside the untrained encoder.

    Arguments:
        rows: lines of any systems.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[_name(row)].append(row)
    made = [["system", "seeds", "figure: untrained -> trained", "nats, test", "steps", "CPU seconds a run"]]
    for name, members in groups.items():
        good = [row for row in members if row["status"] == "ok"]
        seeds = ", ".join(str(row["seed"]) for row in good)
        failed = f" ({len(members) - len(good)} failed)" if len(good) < len(members) else ""
        steps = str(good[0]["iterations"]) if good else ""
        seconds = f"{statistics.fmean(row['cpu_seconds'] for row in members):.0f}"
        made.append([name, seeds + failed, _figures(good), _nats(good), steps, seconds])
    return made


def goals(systems: Sequence["System"], rows: Sequence[Row]) -> list[list[str]]:
    """Every system with a goal, and whether it is reached.

    Arguments:
        systems: of this folder.
        rows: lines of any systems; those with other negatives or another critic do not count.
    """
    goal_of = {system.name: system.goal for system in systems}
    reached: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        goal = goal_of.get(row["experiment"])
        if goal is not None and row["status"] == "ok" and _as_published(row):
            reached[row["experiment"]][_name(row)].append(goal.figure(row))
    made = [["system", "goal", "every seed", "mean", "verdict"]]
    for name, goal in goal_of.items():
        if goal is None:
            continue
        if name not in reached:
            made.append(goal_row(name, goal, []))
        made += [goal_row(told, goal, values) for told, values in reached[name].items()]
    return made


def goal_row(told: str, goal: "Goal", values: Sequence[float]) -> list[str]:
    """A row of `goals`.

    Arguments:
        told: of what.
        goal: what it should reach.
        values: one a seed.
    """
    if not values:
        return [told, goal.text, "not run yet", "", ""]
    spread = f" ± {lines.half_width(values):.3g}" if len(values) > 1 else ""
    every = ", ".join(f"{value:.3g}" for value in values)
    return [told, goal.text, every, f"{statistics.fmean(values):.3g}{spread}", verdict(goal, values)]


def verdict(goal: "Goal", values: Sequence[float]) -> str:
    """Whether the mean reaches the goal.

    Arguments:
        goal: of the system.
        values: one a seed.
    """
    met = goal.least <= statistics.fmean(values) <= goal.most
    return ("met" if met else "NOT met") + (" (one seed)" if len(values) == 1 else "")


def _as_published(row: Row) -> bool:
    """Whether the system has its own negatives and critic."""
    return (row["config"].get("miner"), row["config"].get("critic")) == ("none", "own")


def _name(row: Row) -> str:
    """The system, and what is not as usual with it."""
    config = row["config"]
    told = [str(config[key]) for key in KEYS if config.get(key) not in (None, "", "none", "own")]
    preset = [] if config["preset"] == "quick" else [config["preset"]]
    aside = [] if config["judged_on"] == "test" else ["held-out images"]
    return ", ".join([row["experiment"], *told, *preset, *aside])


def _figures(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    names = rows[0]["trained"]
    parts = []
    for name in names:
        before, after = (_mean([row[when].get(name) for row in rows]) for when in ("random", "trained"))
        parts.append(f"{name} {before} -> {after}" if before else f"{name} {after}")
    return "; ".join(parts)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    scale, digits = (100, 1) if all(0 <= value <= 1 for value in known) else (1, 2)
    spread = f" ± {scale * statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{scale * statistics.fmean(known):.{digits}f}{spread}"


def _nats(rows: Sequence[Row]) -> str:
    known = [row for row in rows if row.get("test_bound") is not None]
    if known:
        status = known[0].get("bound_status", "bound")
        told = "" if status == "bound" else f" ({status})"
        return f"{statistics.fmean(row['test_bound'] for row in known):.2f}, at most {known[0]['bound_cap']:.2f}{told}"
    return rows[0].get("bound_status", "") if rows else ""


def write(systems: Sequence["System"], rows: Sequence[Row], folder: Path, *, preset: str) -> Path:
    """Writes ``report.html``, which stands alone, and the figures beside it.

    Arguments:
        systems: in the order of the page.
        rows: lines of all of them.
        folder: made if it is missing.
        preset: named in the note.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["<h2>In what they differ</h2>", pages.table(blocks(systems))]
    if preset == "quick":
        parts += ["<h2>Goals</h2>", pages.table(goals(systems, rows))]
    parts += ["<h2>Figures</h2>", pages.table(table(rows))]
    for system in systems:
        own = [row for row in rows if row["experiment"] == system.name]
        if not own:
            continue
        parts.append(f"<h2>{html.escape(system.title)}</h2>")
        drawn = figure(_panels(own), own)
        if drawn is not None:
            parts.append(pages.image(drawn, folder / f"{system.name}.png", f"{system.title}: curves by iteration"))
        for row in own:
            if row["status"] != "ok":
                told = f"failed: {_name(row)}, seed {row['seed']}: {row['error']}"
                parts.append(f"<p class=bad>{html.escape(told)}</p>")
    note = (
        f"Preset {preset}. Percentages are of test images; untrained encoders have the batch norms of training images. "
        f"± is the standard deviation over seeds. {lines.provenance(rows)}"
    )
    heading = "Contrastive systems from one set of blocks"
    return pages.write(folder / "report.html", heading, heading, note, parts)


def _panels(rows: Sequence[Row]) -> list[Panel]:
    names = dict.fromkeys(name for row in rows for name in row.get("curves", {}) if name != "iteration")
    return [Panel(name.replace("_", " "), name, name.replace("_", " "), by=KEYS) for name in names]
