"""Figures as tables for people, on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["print_beside", "print_comparison", "print_figures"]

_NOT_SHARES = ("alignment", "uniformity")


def print_comparison(
    figures: Mapping[str, Mapping[str, float | None]],
    intervals: Mapping[str, tuple[float, float]],
    bound: Mapping[str, Any],
    notes: Sequence[str],
    *,
    class_intervals: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Prints one column a representation, and the bound in words.

    Arguments:
        figures: a column a key, a row a figure.
        intervals: of the first column.
        bound: value, cap (nats) and status.
        notes: printed below.
        class_intervals: of the first column, over classes.
    """
    columns = list(figures)
    rows = [[name, *(_cell(name, figures[c].get(name)) for c in columns)] for name in figures[columns[0]]]
    for row in rows:
        row.insert(2, _interval(row[0], intervals))
    header = [columns[0], "95 % interval", *columns[1:]]
    if class_intervals:
        header.insert(2, "over classes")
        for row in rows:
            row.insert(3, _interval(row[0], class_intervals))
    _print(header, rows, notes)
    print(f"held-out bound: {bound['value']:.2f} nats of at most {bound['cap']:.2f} ({bound['status']})")


def print_beside(
    figures: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    notes: Sequence[str],
    *,
    index_recall: Mapping[str, float | None],
) -> None:
    """Prints one column a representation, each figure with its interval.

    Arguments:
        figures: shares in [0, 1], by representation.
        intervals: likewise.
        notes: printed below.
        index_recall: of an approximate search, by representation: the share of neighbours "found" that their figures
            rest on; None: it was exact.
    """
    rows = []
    for figure in next(iter(figures.values())):
        of_figure = [(100 * figures[name][figure], *intervals[name][figure]) for name in figures]
        rows.append([figure, *(f"{value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for value, low, high in of_figure)])
    if any(share is not None for share in index_recall.values()):
        found = ("" if (share := index_recall[name]) is None else f"{100 * share:.1f}" for name in figures)
        rows.append(["found", *found])
    _print([f"{name}, %" for name in figures], rows, notes)


def print_figures(
    figures: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    notes: Sequence[str],
    *,
    class_intervals: Mapping[str, tuple[float, float]] | None = None,
    index_recall: float | None = None,
) -> None:
    """Prints one row a figure.

    Arguments:
        figures: shares in [0, 1].
        intervals: of some of them, over queries.
        notes: printed below.
        class_intervals: likewise, over classes.
        index_recall: of an approximate search, beside every figure that rests on it.
    """
    header = ["value", "95 % interval"]
    rows = [[name, _cell(name, value), _interval(name, intervals)] for name, value in figures.items()]
    if class_intervals:
        header.append("over classes")
        for row in rows:
            row.append(_interval(row[0], class_intervals))
    if index_recall is not None:
        header.append("neighbours found")
        for row in rows:
            row.append(f"{100 * index_recall:.1f} %" if row[0] in intervals else "")
    _print(header, rows, notes)


def _print(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("", no_wrap=True)
    for name in header:
        table.add_column(escape(name), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    console.print(table)
    for note in notes:
        console.print(escape(note), highlight=False)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if name in _NOT_SHARES else f"{100 * value:.1f} %"


def _interval(name: str, intervals: Mapping[str, tuple[float, float]]) -> str:
    if name not in intervals:
        return ""
    low, high = intervals[name]
    return f"{100 * low:.1f} - {100 * high:.1f}"
