"""The page of a retrieval: one self-contained file, its worst queries first.

Figures and what they rest on: the recall curve with its interval, which class is taken for which, the scores of right
and wrong neighbours, and queries with their nearest neighbours, to be sorted and filtered in the page. It needs no
network; its one script is plain, in the file, and the only one that its policy lets run. Class and file names are
hostile: they are escaped, isolated, and characters that cannot be seen are written out.

jinja2 is imported where it is used: importing this module is cheap.
"""

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from contrastive import thumbnails
from contrastive.assessment import Assessment, RetrievalResult
from contrastive.files import write_text
from contrastive.pictures import printable

__all__ = ["CURVE", "DEPTH", "Items", "metrics_of_page", "write_gallery_page"]

CURVE = (1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100)
DEPTH = 100  # how far a query's list is followed to its first relevant item
SAMPLE = 20_000  # queries whose neighbours are looked at for the table of classes and the histograms
CLASSES = 20  # of the table of classes; where there are more, the pairs that are confused most are listed
PAIRS = 40
_LONGEST = 200  # characters of a name that are shown
_BINS = 30


@dataclass(frozen=True)
class Items:
    """What is known of rows, beyond their embeddings.

    Arguments:
        labels: what to say of the label of each row, or None.
        names: what each row is called, such as its file; or None.
        files: the image file of each row, None where it has none; or None for rows without images.
        images: the images themselves, in the place of files.
    """

    labels: Sequence[str] | None = None
    names: Sequence[str] | None = None
    files: Sequence[Path | None] | None = None
    images: UInt8[Tensor, "n c h w"] | None = None


def metrics_of_page(largest: int) -> list[str]:
    """The metrics that a page needs of every query, beside those that somebody asked for.

    Arguments:
        largest: how many items a query can find.

    Example:
        >>> metrics_of_page(6)
        ['recall@1', 'recall@2', 'recall@3', 'recall@5', 'mrr@6', 'map@r']
    """
    return [*(f"recall@{k}" for k in CURVE if k <= largest), f"mrr@{min(DEPTH, largest)}", "map@r"]


def write_gallery_page(
    path: Path,
    assessment: Assessment,
    result: RetrievalResult,
    *,
    title: str,
    queries: Items,
    gallery: Items | None = None,
    figures: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    shown: int = 1000,
    neighbours: int = 10,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the page of an evaluation, whole or not at all.

    Arguments:
        path: of the file.
        assessment: of which `result` is the result; it is searched again for the queries that are shown.
        result: with the metrics of `metrics_of_page`.
        title: names the evaluation.
        queries: what is known of the queries.
        gallery: likewise of the gallery; None: the queries search among themselves.
        figures: the table, in its order; None: all means of `result`.
        notes: sentences for under the table.
        shown: how many queries, the worst ones.
        neighbours: how many of each.
        on_progress: is told how many images are read, and of how many.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> embeddings, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]), ["a", "a", "b", "b"]
        >>> assessment = Assessment("example", embeddings, labels, metrics=metrics_of_page(3))
        >>> result = assessment.result(assessment.parts())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = Path(folder, "page.html")
        ...     name = write_gallery_page(page, assessment, result, title="example", queries=Items(labels=labels)).name
        >>> name
        'page.html'
    """
    others = queries if gallery is None else gallery
    largest = assessment.search.size - assessment.alone
    first = f"mrr@{min(DEPTH, largest)}"
    order = _worst_first(result, first)[:shown]
    ids, scores, relevant = (found.cpu() for found in assessment.neighbours(order, DEPTH))
    listed, items, labels, pictures = _listed(
        result.queries[order].tolist(), ids, scores, relevant, queries, others, gallery is None, neighbours, on_progress
    )
    reciprocal, precision = result.per_query[first][order].tolist(), result.per_query["map@r"][order].tolist()
    for row, rr, ap in zip(listed, reciprocal, precision, strict=True):
        row[3:5] = [round(rr, 4), round(ap, 4)]
    sample, sampled = _sample(len(result.queries))
    near, near_scores, near_right = (found.cpu() for found in assessment.neighbours(sample, neighbours))
    known = {label: i for i, label in enumerate(labels)}
    confusion = None
    if assessment.classes is not None and queries.labels is not None and others.labels is not None:
        rows = result.queries[sample].tolist()
        confusion = _confusion(rows, near[:, 0].tolist(), queries.labels, others.labels, known, labels)
    script = (Path(__file__).parent / "templates" / "gallery.js").read_text(encoding="utf-8")
    data = {
        "queries": listed,
        "depth": min(DEPTH, largest),
        **items,
        "labels": [_shown(label) for label in labels],
        "pixelated": pictures.side <= 40,
    }
    means = result.mean if figures is None else figures
    columns = _columns(result, means)
    page = _template().render(
        title=_shown(title),
        headings=["Figure", *columns],
        rows=list(zip(means, zip(*columns.values(), strict=True), strict=True)),
        notes=[_shown(note, longest=1000) for note in (*notes, *_about(pictures, neighbours))],
        curve=_curve(result),
        confusion=confusion,
        sampled=f"{len(sample):,} of {len(result.queries):,} queries, drawn at random" if sampled else None,
        histograms=_histograms(near_scores, near_right, assessment.search.metric),
        shown=len(listed),
        counted=len(result.queries),
        labelled=any(label >= 0 for label in items["label"]),
        depth=data["depth"],
        neighbours=min(neighbours, largest),
        score=_SCORES[assessment.search.metric],
        data=_json(data),
        script=script,
        policy=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_text(path, page)
    return path


_SCORES = {"cosine": "cosine similarity", "inner_product": "inner product", "euclidean": "minus the squared distance"}


# ---------------------------------------------------------------------------------------------------
# Queries and their neighbours


def _worst_first(result: RetrievalResult, reciprocal: str) -> Int64[Tensor, " queries"]:
    """Places of the queries: by the first relevant item's rank, then average precision, then row."""
    precision = result.per_query["map@r"].argsort(stable=True)
    return precision[result.per_query[reciprocal][precision].argsort(stable=True)]


def _listed(
    rows: Sequence[int],
    ids: Int64[Tensor, "q k"],
    scores: Float[Tensor, "q k"],
    relevant: Bool[Tensor, "q k"],
    queries: Items,
    others: Items,
    alone: bool,
    neighbours: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[list[Any]], dict[str, list[Any]], list[str], thumbnails.Thumbnails]:
    """Each query as [row, item, rank of the first relevant, 1 / rank, AP, neighbours], and the items it names."""
    places: dict[tuple[bool, int], int] = {}  # (of the gallery, row) -> item

    def item(row: int, of_gallery: bool) -> int:
        return places.setdefault((of_gallery and not alone, row), len(places))

    listed: list[list[Any]] = []
    for i, row in enumerate(rows):
        hits = relevant[i].nonzero().flatten()
        query = [row, item(row, False), int(hits[0]) + 1 if len(hits) else None, None, None]
        columns = (ids[i, :neighbours].tolist(), scores[i, :neighbours].tolist(), relevant[i, :neighbours].tolist())
        near = [[item(j, True), _digits(s), int(hit)] for j, s, hit in zip(*columns, strict=True) if j >= 0]
        listed.append([*query, near])
    labels: dict[str, int] = {}
    items: dict[str, list[Any]] = {"row": [], "name": [], "label": []}
    for of_gallery, row in places:
        side = others if of_gallery else queries
        items["row"].append(row)
        items["name"].append(None if side.names is None else _shown(side.names[row]))
        label = None if side.labels is None else side.labels[row]
        items["label"].append(-1 if label is None else labels.setdefault(label, len(labels)))
    pictures = _pictures(list(places), queries, others, on_progress)
    items["image"] = pictures.uris
    return listed, items, list(labels), pictures


def _pictures(
    places: Sequence[tuple[bool, int]],
    queries: Items,
    others: Items,
    on_progress: Callable[[int, int], None] | None,
) -> thumbnails.Thumbnails:
    """In the order of the items, so that the worst queries have theirs wherever the limit falls."""
    sides = [(others if of_gallery else queries, row) for of_gallery, row in places]
    if all(side.images is not None for side, _ in sides):
        return thumbnails.of_images(torch.stack([side.images[row] for side, row in sides if side.images is not None]))
    wanted = [(i, side.files[row]) for i, (side, row) in enumerate(sides) if side.files is not None]
    found = thumbnails.of_files([file for _, file in wanted], on_progress=on_progress)
    uris: list[str | None] = [None] * len(places)
    for (i, _), uri in zip(wanted, found.uris, strict=True):
        uris[i] = uri
    return thumbnails.Thumbnails(uris, found.missing, found.broken, found.left_out, found.side)


def _about(pictures: thumbnails.Thumbnails, neighbours: int) -> list[str]:
    """What a reader must know of the pictures."""
    notes = []
    if pictures.missing or pictures.broken:
        notes.append(
            f"Of the {len(pictures.uris):,} items in this page, {pictures.missing:,} have no file in the folder of "
            f"images and {pictures.broken:,} files cannot be read: they have a placeholder."
        )
    if pictures.left_out:
        limit = thumbnails.LIMIT // 1_000_000
        notes.append(
            f"{pictures.left_out:,} pictures are left out: a page holds {limit} MB of them, the worst queries' first."
        )
    return notes


def _sample(count: int) -> tuple[Int64[Tensor, " sample"], bool]:
    """Places of the queries to look at, and whether that is not all of them."""
    if count <= SAMPLE:
        return torch.arange(count), False
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:SAMPLE].sort().values, True


# ---------------------------------------------------------------------------------------------------
# Which class is taken for which


def _confusion(
    rows: Sequence[int],
    nearest: Sequence[int],
    of_queries: Sequence[str],
    of_gallery: Sequence[str],
    known: dict[str, int],
    labels: list[str],
) -> dict[str, Any]:
    """Counts of (class of the query, class of its nearest neighbour): a table, or the most frequent errors."""
    counts: dict[tuple[str, str], int] = {}
    for row, found in zip(rows, nearest, strict=True):
        if found >= 0:
            pair = of_queries[row], of_gallery[found]
            counts[pair] = counts.get(pair, 0) + 1
    sizes: dict[str, int] = {}
    for (true, _), count in counts.items():
        sizes[true] = sizes.get(true, 0) + count
    names = sorted({name for pair in counts for name in pair})
    if all(name.removeprefix("-").isdecimal() for name in names):
        names.sort(key=int)  # class 10 behind class 9

    def number(name: str) -> int:
        if name not in known:
            known[name] = len(labels)
            labels.append(name)
        return known[name]

    def cell(true: str, taken: str, count: int) -> dict[str, Any]:
        share = count / sizes[true]
        return {
            "true": number(true),
            "taken": number(taken),
            "true_name": _shown(true),
            "taken_name": _shown(taken),
            "count": count,
            "share": f"{100 * share:.1f}\u202f%",
            "shade": round(100 * math.sqrt(share)),  # small shares must be seen
            "right": true == taken,
        }

    errors = sorted(
        ((pair, count) for pair, count in counts.items() if pair[0] != pair[1]), key=lambda entry: (-entry[1], entry[0])
    )
    table = None
    if len(names) <= CLASSES:
        table = [
            {
                "name": _shown(true),
                "cells": [
                    cell(true, taken, counts[true, taken]) if (true, taken) in counts else None for taken in names
                ],
            }
            for true in names
            if true in sizes
        ]
    return {
        "names": [_shown(name) for name in names],
        "table": table,
        "pairs": [cell(*pair, count) for pair, count in errors[:PAIRS]] if table is None else [],
        "classes": len(names),
        "errors": sum(count for _, count in errors),
        "kinds": len(errors),
        "total": sum(counts.values()),
    }


# ---------------------------------------------------------------------------------------------------
# Plots, in the page's own colours


_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 398, 12, 206


def _across(share: float) -> float:
    return round(_LEFT + share * (_RIGHT - _LEFT), 2)


def _up(share: float) -> float:
    return round(_BOTTOM - share * (_BOTTOM - _TOP), 2)


def _curve(result: RetrievalResult) -> dict[str, Any]:
    """recall@k over a logarithmic k, with its interval."""
    found = {}
    for name, value in result.mean.items():
        kind, _, at = name.partition("@")
        if kind == "recall" and int(at) <= DEPTH:
            found[int(at)] = (value, *result.interval[name])
    points = sorted(found.items())
    widest = max(math.log(points[-1][0]), 1e-9)
    lowest = math.floor(10 * min(low for _, (_, low, _) in points)) / 10
    lowest = min(lowest, 0.9)

    def y(value: float) -> float:
        return _up((value - lowest) / (1 - lowest))

    xs = [_across(math.log(k) / widest) for k, _ in points]
    step = 0.02 if lowest >= 0.9 else 0.1 if lowest >= 0.5 else 0.2
    ticks = [1 - step * i for i in range(int((1 - lowest) / step + 1e-6) + 1)]
    return {
        "line": " ".join(f"{x},{y(v[0])}" for x, (_, v) in zip(xs, points, strict=True)),
        "dots": [(x, y(v[0])) for x, (_, v) in zip(xs, points, strict=True)],
        "band": " ".join(
            [f"{x},{y(v[2])}" for x, (_, v) in zip(xs, points, strict=True)]
            + [f"{x},{y(v[1])}" for x, (_, v) in reversed(list(zip(xs, points, strict=True)))]
        ),
        "across": [(x, str(k)) for x, (k, _) in zip(xs, points, strict=True) if k in (1, 2, 5, 10, 20, 50, 100)],
        "up": [(y(value), f"{100 * value:.0f}") for value in ticks],
        "rows": [(k, _percent(v[0]), _interval((v[1], v[2]))) for k, v in points],
        "says": "; ".join(f"{_percent(v[0])} at {k}" for k, v in points),
    }


def _histograms(scores: Float[Tensor, "q k"], right: Bool[Tensor, "q k"], metric: str) -> list[dict[str, Any]]:
    """Scores of right and of wrong neighbours: the nearest of each query, and all that are shown."""
    plots: list[dict[str, Any]] = []
    k = scores.shape[1]
    for depth, title in ((1, "The nearest neighbour"), (k, f"The {k} nearest neighbours")):
        if depth == 1 and plots:
            continue  # a gallery of one item
        values, hit = scores[:, :depth].flatten().double(), right[:, :depth].flatten()
        there = torch.isfinite(values)
        values, hit = values[there], hit[there]
        low, high = float(values.min()), float(values.max())
        if high - low < 1e-9 * max(1.0, abs(high)):
            low, high = low - 0.5, high + 0.5
        counts = [torch.histc(values[mask], _BINS, low, high) for mask in (hit, ~hit)]
        shares = [(count / count.sum().clamp_min(1)).tolist() for count in counts]
        top = max(max(share) for share in shares) or 1.0
        medians = [float(values[mask].median()) if bool(mask.any()) else None for mask in (hit, ~hit)]
        says = []
        for name, mask, middle in zip(("right", "wrong"), (hit, ~hit), medians, strict=True):
            number = int(mask.sum())
            says.append(f"{number:,} {name}" + ("" if middle is None else f", median {_decimal(middle)}"))
        plots.append(
            {
                "title": title,
                "right": _stairs([share / top for share in shares[0]]) if bool(hit.any()) else None,
                "wrong": _stairs([share / top for share in shares[1]]) if not bool(hit.all()) else None,
                "across": [(_across(i / 4), _decimal(low + (high - low) * i / 4)) for i in range(5)],
                "up": [(_up(i / 2), f"{100 * top * i / 2:.1f}".removesuffix(".0")) for i in range(3)],
                "says": "; ".join(says) + ".",
                "unit": _SCORES[metric],
            }
        )
        if k == 1:
            break
    return plots


def _stairs(heights: Sequence[float]) -> str:
    points = [f"{_across(0.0)},{_up(0.0)}"]
    for i, height in enumerate(heights):
        points += [f"{_across(i / len(heights))},{_up(height)}", f"{_across((i + 1) / len(heights))},{_up(height)}"]
    return " ".join([*points, f"{_across(1.0)},{_up(0.0)}"])


# ---------------------------------------------------------------------------------------------------
# Text


def _shown(text: str, *, longest: int = _LONGEST) -> str:
    """A name as it may be shown: nothing in it that turns the direction, breaks a line or cannot be seen."""
    return printable(text if len(text) <= longest else text[:longest] + "\u2026")


def _json(content: object) -> str:
    """For a script element: ASCII, and nothing in it that HTML could read as a tag, a comment or an entity."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digits(score: float) -> float | None:
    return float(f"{score:.4g}") if math.isfinite(score) else None


def _decimal(value: float) -> str:
    text = f"{value:.2f}" if abs(value) < 1000 else f"{value:.3g}"
    return text.replace("-", "\u2212")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u202f%"


def _figure(name: str, value: float) -> str:
    return _decimal(value) if name in ("alignment", "uniformity") else _percent(value)


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{100 * ends[0]:.1f}\u2013{_percent(ends[1])}"


def _columns(result: RetrievalResult, figures: Mapping[str, float]) -> dict[str, list[str]]:
    """What is said of every figure, by heading."""
    columns = {
        "Value": [_figure(name, value) for name, value in figures.items()],
        "Over queries": [_interval(result.interval.get(name)) for name in figures],
    }
    if result.class_interval:
        columns["Over classes"] = [_interval(result.class_interval.get(name)) for name in figures]
    if result.index_recall is not None:  # of those that rest on an approximate search
        share = _percent(result.index_recall)
        columns["Neighbours found"] = [share if name in result.interval else "" for name in figures]
    return columns


def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("gallery.html.j2")
