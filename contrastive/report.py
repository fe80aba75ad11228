"""The report of a run: one self-contained page, ``report.html``, and its plots as files.

The page answers in this order: did it work (against raw pixels and the untrained encoder), what are
an image's neighbours, which negatives were hard, with which settings. It needs no network, runs no
script and treats every name that it shows as hostile.

matplotlib, jinja2, Pillow and PyYAML are imported where they are used: importing this module is cheap.
"""

import base64
import io
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from contrastive.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["HardNegatives", "Neighbours", "Report", "write_report"]


@dataclass(frozen=True)
class Neighbours:
    r"""What the encoder retrieves for some test images.

    Arguments:
        queries: the query images.
        neighbours: the k nearest images of each query, nearest first.
        scores: their cosine similarities; :math:`-\infty` marks a place that holds no neighbour.
        query_labels: class names; None for unlabelled data.
        neighbour_labels: class names; None for unlabelled data.
        correct: whether a neighbour is right; None where nothing says so.

    Raises:
        ValueError: for labels whose number does not fit the images.
    """

    queries: UInt8[Tensor, "q c h w"]
    neighbours: UInt8[Tensor, "q k c h w"]
    scores: Float[Tensor, "q k"]
    query_labels: list[str] | None = None
    neighbour_labels: list[list[str]] | None = None
    correct: Bool[Tensor, "q k"] | None = None

    def __post_init__(self) -> None:
        q, k = self.scores.shape
        if self.query_labels is not None and len(self.query_labels) != q:
            raise ValueError(f"Neighbours: {len(self.query_labels)} query_labels, expected {q}")
        if self.neighbour_labels is not None and [len(row) for row in self.neighbour_labels] != [k] * q:
            lengths = [len(row) for row in self.neighbour_labels]
            raise ValueError(f"Neighbours: neighbour_labels have lengths {lengths}, expected {q} rows of {k}")


@dataclass(frozen=True)
class HardNegatives:
    r"""Some training anchors of a batch, each with its positive and its hardest negatives.

    Arguments:
        anchors: the anchor images.
        positives: the positive of each anchor.
        positive_scores: :math:`s_{i,t(i)}`, temperature applied.
        negatives: the k hardest negatives of each anchor, hardest first.
        scores: :math:`s_{ij}`, temperature applied; :math:`-\infty` marks a place without a negative.
        weights: the miner's :math:`w_{ij}`: 1 is unweighted, 0 is dropped.
        shares: share of the anchor's gradient in [0, 1]: softmax over the weighted candidates.
        same_class: whether a negative is of the anchor's class, a likely false negative; None for
            unlabelled data.
    """

    anchors: UInt8[Tensor, "a c h w"]
    positives: UInt8[Tensor, "a c h w"]
    positive_scores: Float[Tensor, " a"]
    negatives: UInt8[Tensor, "a k c h w"]
    scores: Float[Tensor, "a k"]
    weights: Float[Tensor, "a k"]
    shares: Float[Tensor, "a k"]
    same_class: Bool[Tensor, "a k"] | None = None


@dataclass(frozen=True)
class Report:
    """Everything the page shows.

    Arguments:
        title: names the run: data set, encoder, miner.
        figures: a column per key (``encoder``, ``untrained``, ``pixels``), a row per figure, in the
            order of the dicts. Fractions are in [0, 1]; None or NaN: not defined for this data.
        intervals: 95 % bootstrap intervals of the encoder's figures, for some of them.
        notes: sentences for under the table.
        bound: ``value`` and ``cap`` in nats, ``status`` (``bound`` or ``not a bound``), ``reason``,
            ``interval``; held out, uniform negatives. Empty: none was computed.
        history: rows such as ``{"step": 100, "loss": 3.1}``; a row holds only some keys, and every
            key is plotted.
        neighbours: retrieval of some test images, or None.
        hard_negatives: the hardest negatives of some anchors, or None.
        similarities: per column key, the cosine similarities of held-out positive pairs and of
            negative pairs.
        cost: ``seconds``, ``images_per_second``, ``peak_mb``, ``loading_share``, ...
        config: the settings, nested, as YAML would show them.
        environment: versions, hardware, threads, commit, seed, command.
    """

    title: str
    figures: Mapping[str, Mapping[str, float | int | None]]
    intervals: Mapping[str, tuple[float, float]]
    notes: Sequence[str]
    bound: Mapping[str, Any]
    history: Sequence[Mapping[str, float | int]]
    neighbours: Neighbours | None
    hard_negatives: HardNegatives | None
    similarities: Mapping[str, tuple[np.ndarray, np.ndarray]]
    cost: Mapping[str, float | int]
    config: Mapping[str, Any]
    environment: Mapping[str, str]


def write_report(report: Report, folder: Path) -> Path:
    """Writes ``report.html`` and ``figures/*.png`` into the folder of a run.

    Each file appears whole or not at all, so a browser that reloads during a run sees no half page.

    Arguments:
        report: what to show.
        folder: is created where it is missing.

    Returns:
        The path of ``report.html``.
    """
    curves = _curves(report)
    histograms, empty = _histograms(report.similarities)
    page = _template().render(
        title=report.title.strip() or "Untitled run",
        verdict=_verdict(report),
        columns=[_COLUMNS.get(key, key) for key in report.figures],
        rows=_rows(report),
        notes=report.notes,
        bound=_bound(report.bound),
        curves=[plot.view() for plot in curves],
        gallery=_gallery(report.neighbours),
        hard=_hard(report.hard_negatives),
        histograms=[plot.view() for plot in histograms],
        empty_histograms=empty,
        cost=[(_COST.get(key, (_words(key), _short))[0], _cost(key, value)) for key, value in report.cost.items()],
        config=_yaml(report.config),
        environment={key: value for key, value in report.environment.items() if key != "command"},
        # As in the settings: what is copied must be what is seen.
        command=_BIDI_CONTROLS.sub(lambda c: f"\\u{ord(c[0]):04x}", report.environment.get("command", "")),
    )
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for plot in (*curves, *histograms):
        write_bytes(figures / f"{plot.name}.png", plot.light)
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


# ---------------------------------------------------------------------------------------------------
# Text


_COLUMNS = {"encoder": "Encoder", "untrained": "Untrained encoder", "pixels": "Raw pixels"}
_IN_A_SENTENCE = {"encoder": "the encoder", "untrained": "the untrained encoder", "pixels": "raw pixels"}

# Name and explanation of each figure; K stands for the number after the @.
_METRICS = {
    "recall@K": ("recall@K", "Queries with an image of their class among the K nearest."),
    "coverage@K": ("coverage@K", "Share of all images of the class among the K nearest."),
    "precision@K": ("precision@K", "Share of the K nearest images that are of the query's class."),
    "r_precision": ("R-precision", "Precision among the R nearest, R being the number of other images of the class."),
    "map@r": ("MAP@R", "Mean average precision over the R nearest."),
    "map": ("mAP", "Mean average precision over the whole ranking."),
    "map@K": ("mAP@K", "Mean average precision of the first K ranks."),
    "cmc@K": ("CMC@K", "Queries with an image of their class within the first K ranks."),
    "mrr": ("MRR", "Mean of 1 / rank of the first image of the query's class."),
    "mrr@K": ("MRR@K", "Mean of 1 / rank of the first image of the query's class, 0 beyond rank K."),
    "ndcg@K": ("nDCG@K", "Discounted gain of the K nearest, against the best order there is."),
    "knn@K": ("k-NN@K", "Classification by a vote of the K nearest images."),
    "knn": ("k-NN accuracy", "Classification by a vote of the nearest training images."),
    "linear": ("linear probe", "Accuracy of a linear classifier on the frozen features."),
    "mlp": ("MLP probe", "Accuracy of a small network on the frozen features."),
    "instance_recall@K": ("instance recall@K", "Images whose other view is among the K nearest; needs no labels."),
    "alignment": ("alignment", "Mean squared distance of an image's two views; low: close."),
    "uniformity": ("uniformity", "Log mean Gaussian potential of two images; low: spread out."),
}
# Not fractions. Neither is a quality alone: a collapsed encoder aligns perfectly, noise is perfectly uniform.
_WITHOUT_BEST = {"alignment", "uniformity"}
_HEADLINES = {
    "recall@1": "Class recall@1",
    "instance_recall@1": "Instance recall@1",
    "knn": "k-NN accuracy",
    "linear": "Linear-probe accuracy",
}

_BIDI_CONTROLS = re.compile("[\u202a-\u202e\u2066-\u2069]")


def _clean(value: object) -> object:
    """What every expression of the template goes through: no character that HTML or UTF-8 cannot carry.

    Class names may come from folder names, hence lone surrogates. Escaping is left to jinja2.
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in value.replace("\r", "")
    )


def _flat(text: str) -> str:
    """For attributes, where no element can isolate a text: no line breaks, nothing that turns the direction."""
    return " ".join(_BIDI_CONTROLS.sub("", text).split())


def _words(key: str) -> str:
    return key.replace("held_out", "held-out").replace("_", " ")


def _ascii(text: str) -> str:
    """For plots: a glyph that the font lacks would be a warning, and a box."""
    return _flat(text).encode("ascii", "replace").decode()


def _number(value: object) -> float | None:
    """A finite float, or None for whatever is not one."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _signed(text: str) -> str:
    return text.replace("-", "\u2212")


def _percent(value: float) -> str:
    return _signed(f"{100 * value:.1f}\u202f%")


def _percent_range(low: float, high: float) -> str:
    return _signed(f"{100 * low:.1f}") + "\u2013" + _percent(high)


def _decimal(value: float) -> str:
    return _signed(f"{value:.2f}")


def _short(value: float) -> str:
    """Three significant digits without an exponent where that is readable."""
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return _signed(f"{value:.2e}")
    return _signed(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


_COST: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("Training time", _duration),
    "images_per_second": ("Images per second", lambda value: f"{value:,.0f}"),
    "peak_mb": ("Peak memory", lambda value: f"{value:,.0f} MB"),
    "training_peak_mb": ("Peak memory of training", lambda value: f"{value:,.0f} MB"),
    "loading_share": ("Share of a step: loading", _percent),
    "augmenting_share": ("Share of a step: views", _percent),
    "evaluation_seconds": ("Evaluation time", _duration),
}


def _cost(key: str, value: object) -> str:
    number = _number(value)
    return "\u2013" if number is None else _COST.get(key, ("", _short))[1](number)


def _is_fraction(key: str) -> bool:
    return _kind(key) not in _WITHOUT_BEST and _kind(key) in _METRICS


def _kind(key: str) -> str:
    return re.sub(r"@\d+$", "@K", key)


def _metric(key: str) -> tuple[str, str]:
    """The name of a figure and its explanation, which is empty for a figure this module does not know."""
    name, explanation = _METRICS.get(_kind(key), (_words(key), ""))
    at = key.rpartition("@")[2]
    # "The K nearest" reads badly for one.
    nearest = "the nearest" if at == "1" else f"the {at} nearest"
    if _kind(key) == "precision@K" and at == "1":
        return "precision@1", "Queries whose nearest image is of their class."
    if _kind(key) == "recall@K" and at == "1":
        return "recall@1", "Queries whose nearest image is of their class."
    if _kind(key) == "instance_recall@K" and at == "1":
        return "instance recall@1", "Images whose other view is the nearest; needs no labels."
    return name.replace("@K", f"@{at}"), explanation.replace("the K nearest", nearest)


def _format(key: str, value: float) -> str:
    return _percent(value) if _is_fraction(key) else _decimal(value)


# ---------------------------------------------------------------------------------------------------
# The result: statement, table, bound


def _rows(report: Report) -> list[dict[str, Any]]:
    """The table, a row per figure; the best cells of a row are those that show the same largest number."""
    keys = list(dict.fromkeys(key for column in report.figures.values() for key in column))
    rows = []
    for key in keys:
        values = {column: _number(figures.get(key)) for column, figures in report.figures.items()}
        shown = {column: _format(key, value) for column, value in values.items() if value is not None}
        best = None
        if _is_fraction(key) and len(set(shown.values())) > 1:
            best = shown[max(shown, key=lambda column: values[column] or 0.0)]
        interval = None
        if key in report.intervals and "encoder" in shown:
            low, high = report.intervals[key]
            interval = _percent_range(low, high) if _is_fraction(key) else f"{_decimal(low)} to {_decimal(high)}"
        name, explanation = _metric(key)
        cells = [
            {
                "text": shown.get(column, "\u2013"),
                "best": column in shown and shown[column] == best,
                "interval": interval if column == "encoder" else None,
                "encoder": column == "encoder",
                "missing": column not in shown,
            }
            for column in values
        ]
        rows.append({"name": name, "explanation": explanation, "cells": cells})
    return rows


def _verdict(report: Report) -> dict[str, Any] | None:
    """The result in plain words: one figure against its baselines, and what its interval allows one to say."""
    encoder = report.figures.get("encoder", {})
    key = next((key for key in _HEADLINES if _number(encoder.get(key)) is not None), None)
    value = None if key is None else _number(encoder[key])
    if key is None or value is None:
        return None
    others = {column: figures for column, figures in report.figures.items() if column != "encoder"}
    found = {column: _number(figures.get(key)) for column, figures in others.items()}
    # Pixels first: they are the baseline that costs nothing.
    baselines = dict(sorted(((c, v) for c, v in found.items() if v is not None), key=lambda item: item[0] != "pixels"))
    interval = report.intervals.get(key)
    bars = [{"name": "Encoder", "value": 100 * value, "text": _percent(value), "interval": interval, "encoder": True}]
    bars += [
        {
            "name": _COLUMNS.get(column, column),
            "value": 100 * v,
            "text": _percent(v),
            "interval": None,
            "encoder": False,
        }
        for column, v in baselines.items()
    ]
    outcome, words = _outcome(value, interval, baselines)
    return {
        "name": _HEADLINES[key],
        "value": _percent(value),
        "interval": None if interval is None else _percent_range(*interval),
        "baselines": [(_IN_A_SENTENCE.get(c, c).removeprefix("the "), _percent(v)) for c, v in baselines.items()],
        "outcome": outcome,
        "words": words,
        "ahead": _ahead(report),
        "bars": bars,
    }


def _outcome(
    value: float, interval: tuple[float, float] | None, baselines: Mapping[str, float]
) -> tuple[str, list[tuple[str, bool]]]:
    """`good`, `open` or `bad`, and the sentence, in pieces (text, is a name)."""

    def names(columns: Sequence[str]) -> list[tuple[str, bool]]:
        pieces: list[tuple[str, bool]] = []
        for i, column in enumerate(columns):
            if i:
                pieces.append((" and " if i == len(columns) - 1 else ", ", False))
            pieces.append((_IN_A_SENTENCE.get(column, column), column not in _IN_A_SENTENCE))
        return pieces

    if not baselines:
        return "open", [("There is no baseline to compare with.", False)]
    beaten = [column for column, v in baselines.items() if value > v]
    ahead = [column for column, v in baselines.items() if v >= value]
    if ahead and beaten:
        return "bad", [
            ("Better than ", False),
            *names(beaten),
            (", but not better than ", False),
            *names(ahead),
            (".", False),
        ]
    if ahead:
        return "bad", [("No better than ", False), *names(ahead), (".", False)]
    if interval is None:
        return "good", [("Better than ", False), *names(beaten), (" (no interval was computed).", False)]
    doubtful = [column for column, v in baselines.items() if v >= interval[0]]
    if doubtful:
        return "open", [
            ("Ahead of ", False),
            *names(beaten),
            (", but the 95\u202f% interval includes the figure of ", False),
            *names(doubtful),
            (": the gain is not certain.", False),
        ]
    return "good", [("Better than ", False), *names(beaten), (": the whole 95\u202f% interval lies above.", False)]


def _ahead(report: Report) -> str | None:
    """In how many figures the encoder is ahead of every baseline."""
    wins = total = 0
    for key, value in report.figures["encoder"].items():
        rest = [_number(figures.get(key)) for column, figures in report.figures.items() if column != "encoder"]
        baselines = [v for v in rest if v is not None]
        mine = _number(value)
        if mine is not None and baselines and _is_fraction(key):
            total += 1
            wins += mine > max(baselines)
    return f"Ahead of every baseline in {wins} of {total} figures." if total > 1 else None


def _bound(bound: Mapping[str, Any]) -> dict[str, Any] | None:
    value, cap = _number(bound.get("value")), _number(bound.get("cap"))
    if value is None:
        return None
    valid = bound.get("status") == "bound"
    interval = bound.get("interval")
    limits = None if interval is None else [_number(limit) for limit in interval]
    remark = None
    if valid and value <= 0:
        remark = "Not above zero: it says nothing about the information that the views share."
    elif valid and cap is not None and value >= 0.95 * cap:
        remark = "It has all but reached its ceiling: the number of candidates limits it, not the encoder."
    return {
        "value": _decimal(value),
        "cap": None if cap is None else _decimal(cap),
        "filled": None if cap is None or cap <= 0 else min(max(100 * value / cap, 0.0), 100.0),
        "valid": valid,
        "reason": bound.get("reason"),
        "interval": None
        if limits is None or None in limits
        else " to ".join(_decimal(limit) for limit in limits if limit is not None),
        "remark": remark,
    }


# ---------------------------------------------------------------------------------------------------
# Images

_LARGEST = 64  # pixels a side; larger images are shrunk, which keeps the page small
_SHRUNK = 128


def _image(image: UInt8[Tensor, "c h w"], alt: str) -> dict[str, Any]:
    """An image of the data as a data URI: grey for one or two channels, the first three as colours otherwise."""
    from PIL import Image

    c, h, w = image.shape
    pixels = image.detach().cpu()
    pixels = pixels[:3] if c >= 3 else pixels.float().mean(0, keepdim=True).round().to(torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).contiguous().numpy())
    buffer = io.BytesIO()
    small = max(h, w) <= _LARGEST
    if small:
        picture.save(buffer, "PNG")
    else:
        picture.thumbnail((_SHRUNK, _SHRUNK))
        picture.save(buffer, "JPEG", quality=85)
    return {"src": _uri(buffer.getvalue(), "png" if small else "jpeg"), "alt": _flat(alt), "pixelated": small}


def _uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _columns(tiles: Sequence[object]) -> int:
    """Tiles side by side: all of them up to ten, otherwise rows of equal length."""
    return math.ceil(len(tiles) / max(math.ceil(len(tiles) / 10), 1)) or 1


def _gallery(neighbours: Neighbours | None) -> dict[str, Any] | None:
    if neighbours is None or not neighbours.scores.numel():
        return None
    rows = []
    right = shown = 0
    for i, query in enumerate(neighbours.queries):
        label = None if neighbours.query_labels is None else neighbours.query_labels[i]
        tiles: list[dict[str, Any]] = []
        for j, score in enumerate(neighbours.scores[i].tolist()):
            if score == -math.inf:
                continue
            name = None if neighbours.neighbour_labels is None else neighbours.neighbour_labels[i][j]
            correct = None if neighbours.correct is None else bool(neighbours.correct[i, j])
            alt = f"Neighbour {j + 1}" + (f": {name}" if name is not None else "")
            alt += {None: "", True: " (right)", False: " (wrong)"}[correct]
            image = _image(neighbours.neighbours[i, j], alt)
            tiles.append({"image": image, "label": name, "correct": correct, "score": _decimal(score)})
        hits = [tile["correct"] for tile in tiles].count(True)
        right, shown = right + hits, shown + len(tiles)
        alt = f"Query {i + 1}" + (f": {label}" if label is not None else "")
        rows.append(
            {"image": _image(query, alt), "label": label, "tiles": tiles, "hits": hits, "columns": _columns(tiles)}
        )
    return {"rows": rows, "marked": neighbours.correct is not None, "right": right, "shown": shown}


def _hard(hard: HardNegatives | None) -> dict[str, Any] | None:
    if hard is None or not len(hard.anchors):
        return None
    rows = []
    same = shown = 0
    for i, anchor in enumerate(hard.anchors):
        tiles: list[dict[str, Any]] = []
        for j, score in enumerate(hard.scores[i].tolist()):
            if score == -math.inf:
                continue
            weight, share = float(hard.weights[i, j]), float(hard.shares[i, j])
            mark = None if hard.same_class is None else bool(hard.same_class[i, j])
            alt = f"Negative {j + 1} of anchor {i + 1}" + (", of the anchor's class" if mark else "")
            tiles.append(
                {
                    "image": _image(hard.negatives[i, j], alt),
                    "score": _decimal(score),
                    "weight": _short(weight),
                    "dropped": weight == 0.0,
                    "share": _percent(share),
                    "filled": min(max(100 * share, 0.0), 100.0),
                    "same": mark,
                }
            )
        same, shown = same + [tile["same"] for tile in tiles].count(True), shown + len(tiles)
        rows.append(
            {
                "anchor": _image(anchor, f"Anchor {i + 1}"),
                "positive": _image(hard.positives[i], f"Positive of anchor {i + 1}"),
                "score": _decimal(float(hard.positive_scores[i])),
                "tiles": tiles,
                "columns": _columns(tiles),
                "total": _percent(sum(tile["filled"] for tile in tiles) / 100),
            }
        )
    return {"rows": rows, "marked": hard.same_class is not None, "same": same, "shown": shown}


# ---------------------------------------------------------------------------------------------------
# Plots


class _Theme(NamedTuple):
    paper: str
    ink: str
    faint: str
    colours: tuple[str, ...]


# Okabe and Ito's palette, which stays apart for every kind of colour vision; the blue is lighter on a dark ground.
_LIGHT = _Theme("#ffffff", "#1c2127", "#d5d9de", ("#0072b2", "#d55e00", "#009e73", "#8c4a78", "#7a6a00", "#000000"))
_DARK = _Theme("#1b2027", "#e4e8ed", "#3a424c", ("#56b4e9", "#ff9a4d", "#2fc79b", "#e39ac6", "#f0e442", "#ffffff"))
_STYLES = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (1, 3)))


class _Plot(NamedTuple):
    name: str
    title: str
    caption: str
    alt: str
    light: bytes
    dark: bytes

    def view(self) -> dict[str, str]:
        """What the template needs."""
        return {
            "title": self.title,
            "caption": self.caption,
            "alt": _flat(self.alt),
            "light": _uri(self.light),
            "dark": _uri(self.dark),
        }


def _draw(paint: "Callable[[Axes, _Theme], None]", theme: _Theme) -> bytes:
    """One plot as a PNG, by matplotlib's objects alone: pyplot keeps global state, and a window where there is one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 2.9), dpi=200, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=theme.paper)
    paint(axes, theme)
    axes.grid(True, color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.ink)
    axes.tick_params(colors=theme.ink, labelsize=9)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    legend = axes.get_legend()
    if legend is not None:
        for text in legend.get_texts():
            text.set_color(theme.ink)
            text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _fewer_colours(buffer.getvalue())


def _fewer_colours(png: bytes) -> bytes:
    """A plot has few colours: a palette of 128 looks the same and takes a third of the bytes.

    It also drops the metadata (the drawing library's version): the same run gives the same bytes.
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        buffer, "PNG", optimize=True
    )
    return buffer.getvalue()


def _plot(name: str, title: str, caption: str, alt: str, paint: "Callable[[Axes, _Theme], None]") -> _Plot:
    return _Plot(name, title, caption, alt, _draw(paint, _LIGHT), _draw(paint, _DARK))


class _Group(NamedTuple):
    name: str
    title: str
    unit: str
    scale: float


_SINGLE = {"lr": "Learning rate", "learning_rate": "Learning rate"}


def _group(key: str) -> _Group:
    """The panel of a key of the history: keys share one when they share a unit."""
    bare = re.sub(r"^(held_out|train|training|val|validation|test)[_/]", "", key)
    if "bound" in key:
        return _Group("bound", "InfoNCE", "nats", 1.0)
    if "loss" in key:
        return _Group("loss", "Loss", "nats", 1.0)
    if key == "empty_rows":
        return _Group("empty-rows", "Anchors without a negative", "%", 100.0)
    if _is_fraction(bare) or bare in ("accuracy", "loading_share"):
        return _Group("figures", "Figures during training", "%", 100.0)
    if bare in _WITHOUT_BEST:
        return _Group("geometry", "Geometry of the features", "no unit", 1.0)
    title = _SINGLE.get(key, _words(key).capitalize())
    return _Group(re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-") or "other", title, title.lower(), 1.0)


def _series(history: Sequence[Mapping[str, float | int]]) -> tuple[str, dict[str, tuple[list[float], list[float]]]]:
    """The name of the x axis, and per key its steps and values; what is not finite is left out."""
    axis = next((key for key in ("step", "epoch") if any(key in row for row in history)), None)
    series: dict[str, tuple[list[float], list[float]]] = {}
    for i, row in enumerate(history):
        x = float(i) if axis is None else _number(row.get(axis))
        for key, raw in row.items():
            value = _number(raw)
            if key not in ("step", "epoch") and x is not None and value is not None:
                xs, ys = series.setdefault(key, ([], []))
                xs.append(x)
                ys.append(value)
    return axis or "row", series


def _curves(report: Report) -> list[_Plot]:
    axis, series = _series(report.history)
    groups: dict[_Group, list[str]] = {}
    for key in series:
        groups.setdefault(_group(key), []).append(key)
    order = ["loss", "bound", "figures", "geometry"]
    plots = []
    taken: set[str] = set()
    for group, keys in sorted(
        groups.items(), key=lambda item: order.index(item[0].name) if item[0].name in order else len(order)
    ):
        name, number = f"curve-{group.name}", 2
        while name in taken:
            name, number = f"curve-{group.name}-{number}", number + 1
        taken.add(name)
        cap = _number(report.bound.get("cap")) if "held_out_bound" in keys else None
        unit = "\u202f%" if group.unit == "%" else " nats" if group.unit == "nats" else ""
        digits = (lambda v: _signed(f"{v:.1f}")) if group.unit == "%" else _short
        spans = [
            f"{_words(key)} {digits(group.scale * ys[0])} \u2192 {digits(group.scale * ys[-1])}{unit}"
            for key, (_, ys) in ((key, series[key]) for key in keys)
        ]
        last = max(series[key][0][-1] for key in keys)
        caption = "; ".join(spans) + f" at {axis} {last:,.0f}."
        alt = f"{group.title} in {group.unit} against the {axis}: {caption}"

        def paint(
            axes: "Axes", theme: _Theme, keys: list[str] = keys, group: _Group = group, cap: float | None = cap
        ) -> None:
            from matplotlib.ticker import MaxNLocator

            for i, key in enumerate(keys):
                xs, ys = series[key]
                axes.plot(
                    xs,
                    [group.scale * y for y in ys],
                    label=_ascii(_words(key)),
                    color=theme.colours[i % len(theme.colours)],
                    linestyle=_STYLES[i % len(_STYLES)],
                    linewidth=1.8,
                    marker="osD^vX"[i % 6] if len(xs) <= 20 else None,
                    markersize=4,
                )
            if cap is not None:
                axes.axhline(cap, color=theme.ink, linewidth=1, linestyle=(0, (1, 2)), label="ceiling")
            axes.set_xlabel(f"training {axis}")
            axes.set_ylabel(group.unit, parse_math=False)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if len(keys) > 1 or cap is not None:
                axes.legend(frameon=False, fontsize=9)

        plots.append(_plot(name, group.title, caption, alt, paint))
    return plots


def _order(positives: np.ndarray, negatives: np.ndarray) -> float:
    """How often a random positive pair is more similar than a random negative pair; ties count half."""
    ranked = np.sort(negatives)
    below, not_above = np.searchsorted(ranked, positives, "left"), np.searchsorted(ranked, positives, "right")
    return float((below + not_above).mean() / (2 * len(ranked)))


def _histograms(similarities: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[list[_Plot], list[str]]:
    """A histogram per column, all on the same axes ranges; and the columns that hold no pair."""
    pairs, empty = {}, []
    for key, both in similarities.items():
        positives, negatives = (np.asarray(x, dtype=np.float64).ravel() for x in both)
        positives, negatives = positives[np.isfinite(positives)], negatives[np.isfinite(negatives)]
        if len(positives) and len(negatives):
            pairs[key] = positives, negatives
        else:
            empty.append(_COLUMNS.get(key, key))
    if not pairs:
        return [], empty
    everything = np.concatenate([x for both in pairs.values() for x in both])
    low, high = min(float(everything.min()), 0.0), max(float(everything.max()), 1.0)
    edges = np.linspace(low, high, 61)
    shares = {key: [np.histogram(x, edges)[0] / len(x) for x in both] for key, both in pairs.items()}
    plots = []
    for number, (key, (positives, negatives)) in enumerate(pairs.items()):
        middle = [float(np.median(x)) for x in (positives, negatives)]
        caption = (
            f"A positive pair is more similar than a negative pair in {_percent(_order(positives, negatives))} "
            "of cases. "
            f"Medians {_decimal(middle[0])} and {_decimal(middle[1])}; "
            f"{len(positives):,} positive and {len(negatives):,} negative pairs."
        )
        title = _COLUMNS.get(key, key)

        def paint(axes: "Axes", theme: _Theme, key: str = key, middle: list[float] = middle) -> None:
            for i, (name, hatch, style) in enumerate((("positive pairs", None, "-"), ("negative pairs", "////", "--"))):
                colour = theme.colours[i]
                axes.stairs(
                    100 * shares[key][i],
                    edges,
                    fill=True,
                    facecolor=f"{colour}40",
                    edgecolor=f"{colour}90",
                    hatch=hatch,
                    linewidth=0,
                )
                axes.stairs(100 * shares[key][i], edges, color=colour, linewidth=1.6, linestyle=style, label=name)
                axes.axvline(middle[i], color=colour, linewidth=1, linestyle=":")
            axes.set_xlim(low, high)
            axes.set_xlabel("cosine similarity")
            axes.set_ylabel("share of pairs (%)")
            axes.legend(frameon=False, fontsize=9)

        name = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-") or str(number)
        plots.append(_plot(f"similarities-{name}", title, caption, f"Histogram of similarities. {caption}", paint))
    return plots, empty


# ---------------------------------------------------------------------------------------------------
# Settings and the page


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml  # type: ignore[import-untyped, unused-ignore]  # its types are a package of their own

    if not config:
        return ""
    plain = _plain(config)
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    if _BIDI_CONTROLS.search(text):
        # What is copied must be what is seen: with \u escapes no value can pose as another.
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=False, width=100)
    return text


def _plain(value: Any) -> Any:
    """Settings in the types that YAML has; anything else by its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    return str(value)


def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["flat"] = _flat
    return environment.get_template("report.html.j2")
