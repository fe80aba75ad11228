"""Tables of runs and differences, and the page with the figures in the paper's arrangement."""

import base64
import html
import io
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import lines
from benchmarks.tschannen2020.runs import Claim, Config, Experiment, Panel
from contrastive.files import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["differences", "figure", "text", "write"]

Row = dict[str, Any]
ARM = ("data", "encoder", "critic", "objective", "target", "miner", "sampling", "noise")
COLUMNS = 3
LOWEST_NATS = -2.0


def text(experiment: Experiment, rows: Sequence[Row]) -> str:
    """Both tables as markdown.

    Arguments:
        experiment: whose rows.
        rows: its lines.
    """
    parts = [f"## {experiment.title}", lines.markdown(_table(rows))]
    if experiment.claims:
        parts.append(lines.markdown(_claims(experiment, rows)))
    parts += [f"{row['status']}: {_arm(row['config'])}, seed {row['seed']}: {_why(row)}" for row in _troubled(rows)]
    return "\n\n".join(parts)


def _troubled(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["status"] != "ok"]


def _why(row: Row) -> str:
    return str(row.get("error") or f"left the floats at step {row.get('diverged_at')}")


def _arm(config: Config) -> str:
    told = [f"{config[key]}" for key in ARM if config.get(key) not in (None, "none", 0.0)]
    return ", ".join(told) or "all"


def _table(rows: Sequence[Row]) -> list[list[str]]:
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
        if row["status"] == "ok" and row.get(key) is not None and _holds(row["config"], where):
            open_keys = [name for name in ARM if name not in where]
            found[row["seed"], str([row["config"].get(name) for name in open_keys])] = row[key]
    return found


def _holds(config: Config, where: Config) -> bool:
    return all(config.get(key) == value for key, value in where.items())


def _claims(experiment: Experiment, rows: Sequence[Row]) -> list[list[str]]:
    table = [["claim", "what", "difference", "95 % interval", "pairs"]]
    for claim in experiment.claims:
        values = differences(claim, rows)
        mean = _short(statistics.fmean(values), "+") if values else "no pair"
        interval = ""
        if len(values) > 1:
            half = lines.half_width(values)
            middle = statistics.fmean(values)
            interval = f"{_short(middle - half, '+')} to {_short(middle + half, '+')}"
        table.append([str(claim.number or "beyond"), claim.text, mean, interval, str(len(values))])
    return table


# --- figures ----------------------------------------------------------------------------------------------------------


def figure(experiment: Experiment, rows: Sequence[Row]) -> "Figure | None":
    """All panels that have curves, mean and standard deviation over seeds; None where there are none.

    Arguments:
        experiment: whose panels.
        rows: its lines.
    """
    # Not pyplot: it would look for a display.
    from matplotlib.figure import Figure

    drawn = [(panel, curves) for panel in experiment.panels if (curves := _curves(panel, rows))]
    if not drawn:
        return None
    columns = min(COLUMNS, len(drawn))
    height = -(-len(drawn) // columns)
    made = Figure(figsize=(4.6 * columns, 3.6 * height), layout="constrained")
    axes = made.subplots(height, columns, squeeze=False).flatten()
    for ax in axes[len(drawn) :]:
        ax.set_visible(False)
    for ax, (panel, curves) in zip(axes, drawn, strict=False):
        _paint(ax, panel, curves, rows)
    return made


def _curves(panel: Panel, rows: Sequence[Row]) -> dict[str, list[tuple[list[float], np.ndarray]]]:
    found: dict[str, list[tuple[list[float], np.ndarray]]] = defaultdict(list)
    for row in rows:
        if _holds(row["config"], panel.where) and panel.y in row.get("curves", {}):
            told = [str(row["config"].get(key)) for key in panel.by]
            name = ", ".join(part for part in told if part not in ("none", "None"))
            found[name].append((row["curves"]["iteration"], np.array(row["curves"][panel.y], dtype=float)))
    return found


def _paint(
    ax: "Axes", panel: Panel, curves: dict[str, list[tuple[list[float], np.ndarray]]], rows: Sequence[Row]
) -> None:
    for name, members in curves.items():
        # A run that left the floats has a shorter curve: the mean is over those that are left.
        longest = max(members, key=lambda member: len(member[0]))[0]
        values = np.full((len(members), len(longest), *members[0][1].shape[1:]), np.nan)
        for i, (_, curve) in enumerate(members):
            values[i, : len(curve)] = curve
        count = np.isfinite(values).sum(0)
        mean = np.nansum(values, 0) / np.where(count > 0, count, np.nan)
        spread = np.sqrt(np.nansum((values - mean) ** 2, 0) / np.maximum(count - 1, 1))
        if mean.ndim == 1:
            (line,) = ax.plot(longest, mean, label=name or None, marker="." if len(longest) < 30 else None)
            ax.fill_between(longest, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, linewidth=0)
        else:
            for column in range(mean.shape[1]):
                ax.plot(longest, mean[:, column], marker=".", color=f"C{column}")
    if panel.level is not None:
        value = panel.level[0]
        known = [row[value] for row in rows if isinstance(value, str) and row.get(value) is not None]
        if known or not isinstance(value, str):
            height = statistics.fmean(known) if isinstance(value, str) else value
            ax.axhline(height, color="black", linestyle="--", linewidth=1, label=panel.level[1])
    ax.set(title=panel.title, xlabel="iteration", ylabel=panel.label)
    ax.title.set_fontsize(10)
    if "nats" in panel.label and ax.get_ylim()[1] > LOWEST_NATS > ax.get_ylim()[0]:
        # I_NWJ may start anywhere below; what it comes to is what the figure is for.
        ax.set_ylim(bottom=LOWEST_NATS)
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7)


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
        drawn = figure(experiment, own)
        if drawn is not None:
            buffer = io.BytesIO()
            drawn.savefig(buffer, format="png", dpi=110)
            write_bytes(folder / f"{experiment.name}.png", buffer.getvalue())
            uri = base64.b64encode(buffer.getvalue()).decode()
            alt = html.escape(f"{experiment.title}: curves by iteration, mean and standard deviation over seeds")
            parts.append(f'<img src="data:image/png;base64,{uri}" alt="{alt}">')
        if experiment.claims:
            parts.append(_as_html(_claims(experiment, own)))
        parts.append(_as_html(_table(own)))
        parts += [
            f"<p class=bad>{row['status']}: {html.escape(_arm(row['config']))}, seed {row['seed']}: "
            f"{html.escape(_why(row))}</p>"
            for row in _troubled(own)
        ]
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    seconds = sum(row["cpu_seconds"] for row in rows)
    processors = "; ".join(sorted({row["hardware"]["processor"] for row in rows}))
    note = f"{len(rows)} runs, {seconds / 60:.0f} CPU minutes, commits {commits}, {processors}."
    page = _PAGE.format(preset=html.escape(preset), note=html.escape(note), body="\n".join(parts))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _as_html(table: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table[0])
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in table[1:])
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Tschannen et al. (2020), repeated</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222;
  background: #fff }}
img {{ max-width: 100% }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; margin: 1em 0; font-size: 13px }}
td, th {{ border-bottom: 1px solid #ccc; padding: .25em .6em; text-align: left; vertical-align: top }}
.bad {{ color: #a00 }}
</style></head><body>
<h1>On Mutual Information Maximization for Representation Learning, repeated</h1>
<p>Preset {preset}. Bands and ± are standard deviations over seeds; differences are paired by seed, with 95 %
t-intervals. I_EST is the estimate that is trained, in batches of 128: held out on test images, and on fresh training
batches.
{note}</p>
{body}
</body></html>
"""
