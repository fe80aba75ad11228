"""Curves of runs: panels of mean and standard deviation over seeds."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.series import Config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "figure", "holds"]

Row = dict[str, Any]
COLUMNS = 3
LOWEST_NATS = -2.0


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a curve for every value of `by`, mean and deviation over seeds.

    Arguments:
        title: above it.
        y: which curve of the lines.
        label: of the vertical axis.
        where: what the configurations must hold.
        by: keys of the configuration that tell curves apart.
        level: a horizontal line, a number or the name of a figure, and what it is called.
        log: whether the vertical axis is logarithmic.
        parts: names of the lines of a curve that holds several heights a point.
    """

    title: str
    y: str
    label: str
    where: Config = field(default_factory=dict)
    by: tuple[str, ...] = ()
    level: tuple[float | str, str] | None = None
    log: bool = False
    parts: tuple[str, ...] = ()


def holds(config: Config, where: Config) -> bool:
    """Whether a configuration has all that is asked of it.

    Arguments:
        config: of a run.
        where: keys and their values.
    """
    return all(config.get(key) == value for key, value in where.items())


def figure(panels: Sequence[Panel], rows: Sequence[Row], *, columns: int = COLUMNS) -> "Figure | None":
    """All panels that have curves, mean and standard deviation over seeds; None where there are none.

    Arguments:
        panels: in the order of the page.
        rows: lines of runs; their ``curves`` hold ``iteration`` and what was measured at each.
        columns: panels side by side, at most.
    """
    # Not pyplot: it would look for a display.
    from matplotlib.figure import Figure

    drawn = [(panel, curves) for panel in panels if (curves := _curves(panel, rows))]
    if not drawn:
        return None
    columns = min(columns, len(drawn))
    height = -(-len(drawn) // columns)
    made = Figure(figsize=(4.6 * columns, 3.6 * height), layout="constrained")
    axes = made.subplots(height, columns, squeeze=False).flatten()
    for ax in axes[len(drawn) :]:
        ax.set_visible(False)
    names = dict.fromkeys(name for _, curves in drawn for name in curves)
    colours = {name: f"C{i}" for i, name in enumerate(names)}  # the same one in every panel
    for ax, (panel, curves) in zip(axes, drawn, strict=False):
        _paint(ax, panel, curves, rows, colours)
    return made


def _curves(panel: Panel, rows: Sequence[Row]) -> dict[str, list[tuple[list[float], np.ndarray]]]:
    found: dict[str, list[tuple[list[float], np.ndarray]]] = defaultdict(list)
    for row in rows:
        if holds(row["config"], panel.where) and panel.y in row.get("curves", {}):
            told = [str(row["config"].get(key)) for key in panel.by]
            name = ", ".join(part for part in told if part not in ("", "none", "None", "own"))
            found[name].append((row["curves"]["iteration"], np.array(row["curves"][panel.y], dtype=float)))
    return found


def _paint(
    ax: "Axes",
    panel: Panel,
    curves: dict[str, list[tuple[list[float], np.ndarray]]],
    rows: Sequence[Row],
    colours: dict[str, str],
) -> None:
    in_nats, tops = "nats" in panel.label, list[float]()
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
            colour, marker = colours[name], "." if len(longest) < 30 else None
            ax.plot(longest, mean, label=name or None, marker=marker, color=colour)
            # Around a mean that is below the axis the deviation is of that size, and would fill the panel.
            shown = mean >= LOWEST_NATS if in_nats else np.isfinite(mean)
            ax.fill_between(longest, mean - spread, mean + spread, where=shown, color=colour, alpha=0.2, linewidth=0)
            tops += (mean + spread)[shown].tolist()
        else:
            for column in reversed(range(mean.shape[1])):  # the legend from top to bottom, as the lines lie
                told = panel.parts[column] if panel.parts else None
                ax.plot(longest, mean[:, column], marker=".", color=f"C{column}", label=told)
    if panel.level is not None:
        value = panel.level[0]
        known = [row[value] for row in rows if isinstance(value, str) and row.get(value) is not None]
        if known or not isinstance(value, str):
            height = statistics.fmean(known) if isinstance(value, str) else value
            ax.axhline(height, color="black", linestyle="--", linewidth=1, label=panel.level[1])
            tops.append(height)
    ax.set(title=panel.title, xlabel="iteration", ylabel=panel.label)
    ax.title.set_fontsize(10)
    ax.locator_params(axis="x", nbins=5)  # five digits each: more of them run into each other
    if in_nats and tops and ax.get_ylim()[0] < LOWEST_NATS:
        # I_NWJ may start anywhere below; what it comes to is what the figure is for. (The margin of matplotlib is a
        # share of all heights, those below too.)
        ax.set_ylim(LOWEST_NATS, max(tops) + 0.05 * (max(tops) - LOWEST_NATS))
    if panel.log:
        ax.set_yscale("log")
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7)
