"""``kpair evaluate --encoder timm:NAME --data DATA``: a network that others trained, on images."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrastive import tables
from contrastive.assessment import DEFAULT_KS, DEFAULT_METRICS, DEFAULT_NPROBE, Assessment, metric_names
from contrastive.cli.names import load_data
from contrastive.cli.notes import notes_of
from contrastive.cli.progress import progress_bar
from contrastive.errors import InputError
from contrastive.files import replacing
from contrastive.pictures import printable
from contrastive.pretrained import (
    Embedder,
    Pictures,
    embed_pictures,
    load_timm,
    of_pixels,
    preprocessing,
    untrained,
)

__all__ = ["check", "evaluate"]

_OPTIONS = ("weights", "data", "save")
# Of those for files, the ones that an encoder has as well.
_SHARED = ("metric", "backend", "nprobe", "sample")


def check(options: Mapping[str, Any], *, of_files: Sequence[str]) -> None:
    """Refuses what does not go with an encoder, or without, before anything is loaded.

    Arguments:
        options: of the command line.
        of_files: those that go with a file of embeddings.

    Raises:
        InputError: for such options, and for an encoder or images that are not named.
    """
    name = options["encoder"]
    if name is None:
        given = [option for option in _OPTIONS if options[option] is not None]
        if given:
            raise InputError(f"--{given[0]} needs --encoder timm:NAME")
        if options["target"] is None:
            raise InputError("expected a run folder or a file of embeddings, or --encoder timm:NAME with --data")
        return
    if options["target"] is not None:
        raise InputError(f"--encoder takes the place of {options['target']}: leave one of them out")
    if not name.startswith("timm:") or name == "timm:":
        raise InputError(f"--encoder is {name!r}, expected timm:NAME; an encoder of a run goes by its folder")
    if options["data"] is None:
        raise InputError("--encoder needs --data, such as folder:PATH")
    given = [option for option in (*of_files, "report") if option not in _SHARED and options[option] is not None]
    given += ["resume"] if options["resume"] != "never" else []
    if given:
        raise InputError(
            f"--{given[0].replace('_', '-')} goes with a file of embeddings: write one with --save and evaluate it"
        )
    if options["weights"] is not None and not Path(options["weights"]).is_file():
        raise InputError(f"--weights: {options['weights']} is no file")
    if options["save"] is not None and Path(options["save"]).suffix != ".npz":
        raise InputError(f"--save is {options['save']}, expected a name that ends in .npz")


def evaluate(
    options: Mapping[str, Any], ks: Sequence[int] | None, metrics: Sequence[str] | None, *, loud: bool
) -> dict[str, Any]:
    """Retrieval by a pretrained network, the same network with random weights, and pixels.

    Arguments:
        options: of the command line, checked.
        ks: of the metrics at k; None: the defaults.
        metrics: of retrieval; None: the defaults.
        loud: whether to show progress.

    Raises:
        InputError: for images or weights that cannot be had, and images without labels unless they are saved.
    """
    pictures = _pictures(options)
    ks, metrics = DEFAULT_KS if ks is None else ks, DEFAULT_METRICS if metrics is None else metrics
    _refuse_before_embedding(pictures, ks, metrics, saved=options["save"] is not None)
    embeddings, failures = _embedded(options, pictures, loud=loud)
    kept = torch.tensor([row for row in range(len(pictures)) if row not in failures])
    if options["save"] is not None:
        _save(Path(options["save"]), pictures, embeddings["encoder"].numpy(), kept)
    notes = _of_unread(pictures, failures)
    if pictures.labels is None:
        print("\n".join([f"{len(kept)} embeddings in {options['save']}", *notes]))
        return {"queries": len(kept), "notes": notes}
    results = {}
    for of, rows in embeddings.items():
        assessment = Assessment(
            "kpair evaluate",
            rows,
            pictures.labels[kept],
            metric=options["metric"] or "cosine",
            backend=options["backend"] or "auto",
            nprobe=options["nprobe"] or DEFAULT_NPROBE,
            sample=options["sample"],
            ks=ks,
            metrics=metrics,
        )
        with progress_bar(f"searching: {of}", shown=loud) as show:
            results[of] = assessment.result(assessment.parts(on_progress=show))
    figures = {of: result.mean for of, result in results.items()}
    intervals = {of: result.interval for of, result in results.items()}
    result = results["encoder"]
    notes += notes_of(result, options["backend"], len(kept))
    index_recall = {of: result.index_recall for of, result in results.items()}
    tables.print_beside(figures, intervals, notes, index_recall=index_recall)
    return {
        **figures,
        "intervals": intervals,
        "class_intervals": {of: result.class_interval for of, result in results.items()},
        "index_recall": index_recall,
        "queries": len(kept),
        "searched": len(result.queries),
        "excluded": result.excluded,
        "tied": {of: result.tied for of, result in results.items()},
        "notes": notes,
    }


def _refuse_before_embedding(pictures: Pictures, ks: Sequence[int], metrics: Sequence[str], *, saved: bool) -> None:
    """What would be refused after minutes."""
    if pictures.labels is None:
        if not saved:
            raise InputError(f"{pictures.name}: there are no classes to evaluate by; --save FILE writes the embeddings")
        return
    if bool((pictures.labels == pictures.labels[0]).all()):
        raise InputError(f"{pictures.name}: all images are of one class: every item is relevant")
    metric_names("kpair evaluate", metrics, ks, len(pictures) - 1)


def _embedded(
    options: Mapping[str, Any], pictures: Pictures, *, loud: bool
) -> tuple[dict[str, torch.Tensor], dict[int, str]]:
    name, weights = options["encoder"].removeprefix("timm:"), options["weights"]
    encoder = load_timm(name, None if weights is None else Path(weights))
    preprocess = preprocessing(encoder)
    embedders = {"encoder": Embedder(preprocess, encoder)}
    if pictures.labels is not None:
        embedders["untrained"] = Embedder(preprocess, untrained(name, pictures, preprocess))
        embedders["pixels"] = of_pixels()
    device = torch.accelerator.current_accelerator(check_available=True)
    with progress_bar("embedding", shown=loud) as show:
        return embed_pictures(pictures, embedders, device=device, on_progress=show)


def _of_unread(pictures: Pictures, failures: Mapping[int, str]) -> list[str]:
    if not failures:
        return []
    row, reason = next(iter(failures.items()))
    first = reason if pictures.names is None else f"{printable(pictures.names[row])}: {reason}"
    return [f"{len(failures)} of {len(pictures)} images cannot be read, the first: {first}."]


def _pictures(options: Mapping[str, Any]) -> Pictures:
    if options["data"].startswith("folder:") and options["data"] != "folder:":
        if options["data_root"] is not None:
            raise InputError("--data-root goes with data by name, and --data is a folder")
        return Pictures.of_folder(Path(options["data"].removeprefix("folder:")))
    root = options["data_root"] or os.environ.get("CONTRASTIVE_DATA")
    data = load_data({"data": options["data"], "data_root": root, "download": False, "limit": None})
    return Pictures(data.name, images=data.test.images, labels=data.test.labels, classes=data.classes)


def _save(path: Path, pictures: Pictures, embeddings: np.ndarray, kept: torch.Tensor) -> None:
    content: dict[str, Any] = {"embeddings": embeddings}
    if pictures.labels is not None:
        content["labels"] = np.array([pictures.classes[i] for i in pictures.labels[kept].tolist()])
    if pictures.names is not None:
        content["names"] = np.array([pictures.names[row] for row in kept.tolist()])
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **content)
    except OSError as error:
        raise InputError(f"--save: {path} cannot be written: {error}") from error
