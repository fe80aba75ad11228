"""``kpair evaluate --report``: what the command line says about the page of a retrieval."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from contrastive import vectors
from contrastive.assessment import DEFAULT_KS, DEFAULT_METRICS, Assessment, RetrievalResult
from contrastive.cli.progress import progress_bar
from contrastive.errors import InputError
from contrastive.gallery_page import Items, metrics_of_page, write_gallery_page
from contrastive.thumbnails import files_of_rows

if TYPE_CHECKING:
    from contrastive.data import ImageData
    from contrastive.evaluation import Evaluation

__all__ = ["check", "items", "metrics", "write", "write_of_run"]

_OF_PAGE = ("images", "names", "gallery_images", "gallery_names")
_Side = tuple[Tensor, vectors.Labels | None]


def check(options: Mapping[str, Any]) -> None:
    """Refuses options of a page where there is none, and what cannot be.

    Arguments:
        options: of the command line.

    Raises:
        InputError: for such options.
    """
    given = [name for name in _OF_PAGE if options[name] is not None]
    if given and options["report"] is None:
        raise InputError(f"--{given[0].replace('_', '-')} needs --report FILE: it is shown there")
    without = [name for name in given if name.startswith("gallery_")]
    if without and options["gallery"] is None:
        raise InputError(f"--{without[0].replace('_', '-')} needs --gallery FILE")
    if options["report_queries"] < 1:
        raise InputError(f"--report-queries is {options['report_queries']}, expected at least 1")
    if options["report"] is not None:
        if Path(options["report"]).is_dir():
            raise InputError(f"--report: {options['report']} is a folder, expected a file to write")
        if options["json"] is not None and Path(options["report"]).resolve() == Path(options["json"]).resolve():
            raise InputError(f"--report and --json are the same file, {options['report']}")


def metrics(largest: int) -> Sequence[str]:
    """What the page needs of every query.

    Arguments:
        largest: how many items a query can find.
    """
    return metrics_of_page(largest)


def items(options: Mapping[str, Any], queries: _Side, gallery: _Side | None) -> tuple[Items, Items | None] | None:
    """Names and image files of the rows, before anything is searched; None without a page.

    Arguments:
        options: of the command line.
        queries: embeddings and labels.
        gallery: likewise, or None.

    Raises:
        InputError: for names or images that do not fit the rows.
    """
    if options["report"] is None:
        return None
    of_queries = _items(options, "", Path(options["target"]), queries)
    return of_queries, None if gallery is None else _items(options, "gallery_", Path(options["gallery"]), gallery)


def write(
    options: Mapping[str, Any],
    assessment: Assessment,
    result: RetrievalResult,
    sides: tuple[Items, Items | None] | None,
    *,
    figures: Mapping[str, float],
    notes: Sequence[str],
    loud: bool,
) -> None:
    """Writes the page.

    Arguments:
        options: of the command line.
        assessment: of the file.
        result: with the metrics of the page.
        sides: of `items`.
        figures: to show.
        notes: below them.
        loud: whether to show progress.

    Raises:
        InputError: for a file that cannot be written.
    """
    assert sides is not None
    queries, gallery = sides
    title = Path(options["target"]).name + (
        "" if options["gallery"] is None else f" in {Path(options['gallery']).name}"
    )
    try:
        with progress_bar("reading images", shown=loud) as show:
            write_gallery_page(
                Path(options["report"]),
                assessment,
                result,
                title=title,
                queries=queries,
                gallery=gallery,
                figures=figures,
                notes=notes,
                shown=options["report_queries"],
                on_progress=show,
            )
    except OSError as error:
        raise InputError(f"--report: {options['report']} cannot be written: {error}") from error


def write_of_run(
    options: Mapping[str, Any], data: "ImageData", measured: "Evaluation", *, ks: Sequence[int] | None
) -> None:
    """Writes the page of a run's encoder: its test images among themselves.

    Arguments:
        options: of the command line.
        data: of the run.
        measured: its evaluation.
        ks: of the metrics at k; None: the defaults.

    Raises:
        InputError: for images without labels, or a file that cannot be written.
    """
    labels = data.test.labels
    if labels is None:
        raise InputError("--report needs labels, and the images of the run carry none")
    found = measured.embeddings
    assessment = Assessment(
        "kpair evaluate",
        found,
        labels,
        metrics=(*DEFAULT_METRICS, *metrics_of_page(len(found) - 1)),
        ks=DEFAULT_KS if ks is None else ks,
    )
    result = assessment.result(assessment.parts())
    result = replace(
        result,
        interval=result.interval | measured.intervals,
        class_interval=result.class_interval | measured.class_intervals,
    )
    figures = {name: value for name, value in measured.figures["encoder"].items() if value is not None}
    words = [data.classes[i] for i in labels.tolist()]
    sides = Items(labels=words, images=data.test.images), None
    write(options, assessment, result, sides, figures=figures, notes=measured.notes, loud=False)


def _items(options: Mapping[str, Any], side: str, file: Path, rows: _Side) -> Items:
    embeddings, labels = rows
    given = options[f"{side}names"]
    option = f"--{side.replace('_', '-')}"
    names = vectors.read_names(file, within=True) if given is None else vectors.read_names(Path(given))
    if names is not None and len(names) != len(embeddings):
        if given is not None:
            raise InputError(f"{option}names: {given} holds {len(names)} names for {len(embeddings)} rows of {file}")
        names = None  # they name something else, the classes perhaps
    folder = options[f"{side}images"]
    files = None
    if folder is not None:
        files = files_of_rows(f"{option}images", Path(folder), len(embeddings), names)
        if names is None:
            names = [str(path.relative_to(folder)) for path in files if path is not None]
    return Items(labels=_words(labels), names=names, files=files)


def _words(labels: vectors.Labels | None) -> Sequence[str] | None:
    return None if labels is None else _Words(labels)


class _Words(Sequence[str]):
    """Labels as text, one at a time: a page looks at few of millions."""

    def __init__(self, labels: vectors.Labels) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...

    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        label = self._labels[row]
        if isinstance(label, Tensor):  # one number, or 0 and 1 for each label there is
            return str(int(label)) if label.ndim == 0 else ", ".join(map(str, label.nonzero().flatten().tolist()))
        return label if isinstance(label, str) else ", ".join(map(str, label))
