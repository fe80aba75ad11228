"""``kpair evaluate``: a run, a file of embeddings, or an encoder that others trained."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from contrastive import launch, runs, tables, vectors
from contrastive.assessment import (
    DEFAULT_KS,
    DEFAULT_METRICS,
    DEFAULT_NPROBE,
    METRICS,
    Assessment,
    RetrievalResult,
    metric_names,
)
from contrastive.cli import page, parts, pretrained, ranks
from contrastive.cli.configuration import read_options
from contrastive.cli.names import Setup, set_up
from contrastive.cli.notes import notes_of
from contrastive.cli.progress import progress_bar
from contrastive.encoders import build, load_recipe, load_weights
from contrastive.errors import InputError
from contrastive.neighbours import refuse_backend
from contrastive.options import parse
from contrastive.relevance import label_ids, several
from contrastive.retrieval import instance_recall

if TYPE_CHECKING:
    from contrastive.evaluation import Evaluation, Model

__all__ = ["evaluate", "measure", "say"]


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "target",
        type=str | None,
        nargs="?",
        default=None,
        help="a run folder, or a file of embeddings (.npy .npz .safetensors .parquet .pt); none with --encoder",
    )
    add(
        "--encoder",
        type=str | None,
        default=None,
        metavar="timm:NAME",
        help="in the place of a target: a network that others trained, of timm (or timm:hf-hub:OWNER/NAME)",
    )
    add(
        "--weights",
        type=str | None,
        default=None,
        metavar="FILE",
        help="of --encoder (.safetensors .pth); default: timm's own, from its cache or the network",
    )
    add(
        "--data",
        type=str | None,
        default=None,
        metavar="NAME",
        help="images for --encoder: folder:PATH, digits, mnist, fashion-mnist, cifar10, stl10, omniglot (test images)",
    )
    add("--save", type=str | None, default=None, metavar="FILE", help="for --encoder: write its embeddings, as .npz")
    add("--labels", type=str | None, default=None, help="file of labels, one a row; default: 'labels' within the file")
    add("--gallery", type=str | None, default=None, help="file of gallery embeddings; default: leave-one-out")
    add("--gallery-labels", type=str | None, default=None, help="file of the gallery's labels")
    add(
        "--k",
        type=str | None,
        default=None,
        metavar="K,K,...",
        help="of the metrics at k (default: 1,5,10,100, as far as the gallery reaches)",
    )
    add(
        "--metrics",
        type=str | None,
        default=None,
        metavar="NAME,NAME,...",
        help=f"of {' '.join(METRICS)}, or one at a k of its own such as ndcg@20 (default: {' '.join(DEFAULT_METRICS)})",
    )
    add(
        "--relevant",
        type=str | None,
        default=None,
        metavar="FILE",
        help="in the place of labels: JSON, for each query a list of its relevant gallery rows, or grades by row",
    )
    add(
        "--metric",
        type=Literal["cosine", "inner_product", "euclidean"] | None,
        default=None,
        help="what is near, for a file (default: cosine)",
    )
    add(
        "--backend",
        type=str | None,
        default=None,
        metavar="NAME",
        help="what searches, for a file: auto | torch | faiss (default: auto, FAISS where it is installed), or a FAISS "
        "factory string such as IVF4096,Flat: approximate, what it misses is measured",
    )
    add(
        "--nprobe",
        type=int | None,
        default=None,
        metavar="N",
        help=f"of an inverted file (IVF), how many of its lists are searched (default: {DEFAULT_NPROBE})",
    )
    add(
        "--sample",
        type=int | None,
        default=None,
        metavar="N",
        help="for a file: search for N of the queries, a fixed random choice, in the whole gallery (default: for all)",
    )
    add(
        "--resume",
        type=Literal["auto", "never"],
        default="never",
        help="for a file, with --json: auto continues what was killed of the same files and options, or starts",
    )
    add("--progress", type=bool | None, default=None, help="whether to show progress (default: on a terminal)")
    add("--data-root", type=str | None, default=None, help="for a run or --data: where the data lie")
    add("--json", type=str | None, default=None, metavar="FILE", help="write the figures as JSON as well")
    add(
        "--report",
        type=str | None,
        default=None,
        metavar="FILE",
        help="write a page as well: worst queries first, their neighbours, which class is taken for which",
    )
    add("--report-queries", type=int, default=1000, metavar="N", help="how many queries the page lists (default: 1000)")
    add(
        "--images",
        type=str | None,
        default=None,
        metavar="DIR",
        help="images of the rows for the page: by name (--names), or as many as rows, in the order of their paths",
    )
    add(
        "--names",
        type=str | None,
        default=None,
        metavar="FILE",
        help="what the rows are called in the page, their paths in --images: one a line; default: 'names' within the "
        "file of embeddings",
    )
    add("--gallery-images", type=str | None, default=None, metavar="DIR", help="likewise of the gallery's rows")
    add("--gallery-names", type=str | None, default=None, metavar="FILE", help="likewise of the gallery's rows")


def evaluate(words: list[str]) -> None:
    """Evaluates a run or a file of embeddings, prints a table and writes JSON on request.

    Arguments:
        words: of the command line, after the command.

    Raises:
        InputError: for anything the user can mend.
    """
    with launch.joined():
        options, ks, metrics = launch.together(partial(_said, words))
        content = launch.together(partial(_content, options, ks, metrics))
    if options["json"] is not None and launch.first():
        try:
            runs.write_json(Path(options["json"]), content)
        except OSError as error:
            raise InputError(f"--json: {options['json']} cannot be written: {error}") from error
        if options["resume"] == "auto":
            parts.remove(Path(options["json"]))


def _said(words: list[str]) -> tuple[dict[str, Any], Sequence[int] | None, Sequence[str] | None]:
    """The options, k and metrics, as far as they can be checked before anything is read."""
    options = parse(
        words,
        prog="kpair evaluate",
        description="Evaluates retrieval: of a run (its encoder, untrained, pixels), of a file of embeddings, or of a "
        "pretrained encoder on images.",
        parts={},
        add_options=_add_options,
    )
    ks = _ks(options["k"])
    metrics = None if options["metrics"] is None else tuple(word for word in options["metrics"].split(",") if word)
    for name in ("json", "report", "save"):  # before hours of searching
        if options[name] is not None and not Path(options[name]).parent.is_dir():
            raise InputError(f"--{name}: {options[name]} cannot be written: {Path(options[name]).parent} is no folder")
    if options["json"] is not None and Path(options["json"]).is_dir():
        raise InputError(f"--json: {options['json']} cannot be written: it is a folder")
    if options["sample"] is not None and options["sample"] < 1:
        raise InputError(f"--sample is {options['sample']}, expected at least 1 query")
    if options["nprobe"] is not None and options["nprobe"] < 1:
        raise InputError(f"--nprobe is {options['nprobe']}, expected at least 1")
    refuse_backend("kpair evaluate", options["backend"] or "auto")
    page.check(options)
    ranks.refuse(options, ("report", "resume", "encoder"))
    pretrained.check(options, of_files=_OF_FILES)
    return options, ks, metrics


def _content(options: Mapping[str, Any], ks: Sequence[int] | None, metrics: Sequence[str] | None) -> dict[str, Any]:
    if options["encoder"] is not None:
        return pretrained.evaluate(options, ks, metrics, loud=_shown(options))
    target = Path(options["target"])
    if target.is_dir():
        if launch.launched():
            raise InputError(f"{target} is a run: it is evaluated by one process, not with torchrun")
        only_files = [name for name in _OF_FILES if options[name] is not None]
        if only_files or options["resume"] != "never":
            only_files = [*only_files, "resume"]
            raise InputError(
                f"--{only_files[0].replace('_', '-')} goes with a file of embeddings, and {target} is a run"
            )
        return _evaluate_run(target, options, ks, metrics)
    if target.exists():
        if options["data_root"] is not None:
            raise InputError(f"--data-root goes with a run, and {target} is a file")
        return _evaluate_file(target, options, ks, metrics)
    raise InputError(f"{target} does not exist: expected a run folder or a file of embeddings")


def _evaluate_run(
    folder: Path, options: Mapping[str, Any], ks: Sequence[int] | None, metrics: Sequence[str] | None
) -> dict[str, Any]:
    recipe = load_recipe(folder)
    words = ["--config", str(folder / runs.CONFIG)]
    if options["data_root"] is not None:
        words += ["--data-root", options["data_root"]]
    config = read_options(words)
    if "pretrained" in config["encoder"]:
        config["encoder"]["pretrained"] = False  # its weights are in the run
    setup = set_up(config)
    arguments = {k: False if k == "pretrained" else v for k, v in recipe.arguments.items()}
    if setup.recipe != replace(recipe, arguments=arguments):
        raise InputError(f"{folder} was trained on other images: its encoder.json does not fit the data found now")
    load_weights(folder, encoder=setup.encoder, projector=setup.projector, critic=setup.critic)
    measured = measure(config, setup, ks=ks, metrics=metrics, loud=_shown(options))
    if options["report"] is not None:
        page.write_of_run(options, setup.data, measured, ks=ks)
    tables.print_comparison(
        measured.figures, measured.intervals, measured.bound, measured.notes, class_intervals=measured.class_intervals
    )
    return {
        **measured.figures,
        "intervals": measured.intervals,
        "class_intervals": measured.class_intervals,
        "counts": measured.counts,
        "bound": measured.bound,
        "notes": measured.notes,
    }


def _evaluate_file(
    file: Path, options: Mapping[str, Any], ks: Sequence[int] | None, metrics: Sequence[str] | None
) -> dict[str, Any]:
    if options["relevant"] is not None and (options["labels"] is not None or options["gallery_labels"] is not None):
        raise InputError("--relevant takes the place of labels: leave --labels and --gallery-labels out")
    embeddings, labels = launch.together(partial(_read, file, options["labels"]))
    gallery, gallery_labels = None, None
    if options["gallery"] is not None:
        of_gallery = partial(_read, Path(options["gallery"]), options["gallery_labels"])
        gallery, gallery_labels = launch.together(of_gallery)
    elif options["gallery_labels"] is not None:
        raise InputError("--gallery-labels needs --gallery FILE")
    relevant = None
    if options["relevant"] is not None:
        relevant, labels, gallery_labels = vectors.read_relevant(Path(options["relevant"])), None, None
    asked: Sequence[str] = DEFAULT_METRICS if metrics is None else metrics
    matched = relevant is None and gallery is not None and labels is None and gallery_labels is None
    chosen: dict[str, Any] = {"metric": options["metric"] or "cosine"} | ({} if ks is None else {"ks": ks})
    items = page.items(options, (embeddings, labels), None if gallery is None else (gallery, gallery_labels))
    if matched and metrics is not None:
        raise InputError("--metrics needs labels or --relevant: without, rows are matched and recall@k is measured")
    # Two files without labels: row i of the gallery is the one match of row i, two views or two modalities.
    by_itself = options["report"] is None and options["sample"] is None and not launch.launched()
    if matched and gallery is not None and by_itself:
        result = instance_recall(embeddings, gallery, **({"ks": _ks_of_pairs(len(gallery))[0]} | chosen))
    else:
        if matched and gallery is not None:  # the same by lists, which say who was found as well
            if len(gallery) < len(embeddings):
                raise InputError(
                    f"{file} holds {len(embeddings)} rows and {options['gallery']} {len(gallery)}, "
                    "expected at least one row per query"
                )
            relevant, asked = [{row: 1.0} for row in range(len(embeddings))], ("recall",)
            chosen = {"ks": _ks_of_pairs(len(gallery))[0]} | chosen
        if relevant is None and (labels is None or (gallery is not None and gallery_labels is None)):
            without, option = (file, "--labels") if labels is None else (options["gallery"], "--gallery-labels")
            raise InputError(f"{without} holds no labels: pass {option} FILE")
        largest = len(embeddings) - 1 if gallery is None else len(gallery)
        assessment = Assessment(
            "kpair evaluate",
            ranks.shard("embeddings", embeddings),
            ranks.own_part(labels),
            gallery=None if gallery is None else ranks.shard("gallery", gallery),
            gallery_labels=ranks.own_part(gallery_labels),
            relevant=ranks.own_part(relevant),
            metrics=asked if options["report"] is None else (*asked, *page.metrics(largest)),
            backend=options["backend"] or "auto",
            nprobe=options["nprobe"] or DEFAULT_NPROBE,
            sample=options["sample"],
            **chosen,
        )
        if relevant is None and assessment.everything_is_relevant():
            raise InputError(f"{file}: all labels are the same: every item is relevant, and nothing is measured")
        whole = assessment.result(_parts(assessment, options))
        names, _ = metric_names("kpair evaluate", asked, chosen.get("ks", DEFAULT_KS), largest)
        result = _only(whole, names)
    if matched and gallery is not None and ks is None:
        result = replace(result, dropped=_ks_of_pairs(len(gallery))[1])
    figures = dict(result.mean)
    if metrics is None and launch.first():
        figures |= _further(embeddings, labels, gallery, gallery_labels)
    notes = notes_of(result, options["backend"], len(embeddings))
    if options["report"] is not None:
        page.write(options, assessment, whole, items, figures=figures, notes=notes, loud=_shown(options))
    tables.print_figures(
        figures, result.interval, notes, class_intervals=result.class_interval, index_recall=result.index_recall
    )
    return {
        "figures": figures,
        "intervals": result.interval,
        "class_intervals": result.class_interval,
        "index_recall": result.index_recall,
        "queries": len(embeddings),
        "searched": len(result.queries),
        "excluded": result.excluded,
        "tied": result.tied,
        "notes": notes,
    }


def _ks_of_pairs(size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The default k where rows are matched, and those of them that lie beyond the gallery."""
    return tuple(k for k in _KS_OF_PAIRS if k <= size), tuple(k for k in _KS_OF_PAIRS if k > size)


def _only(result: RetrievalResult, names: Sequence[str]) -> RetrievalResult:
    """What was asked for, without what the page needs beside it."""
    return replace(
        result,
        mean={name: result.mean[name] for name in names},
        per_query={name: result.per_query[name] for name in names},
        interval={name: result.interval[name] for name in names},
        class_interval={name: ends for name, ends in result.class_interval.items() if name in names},
    )


def _parts(assessment: Assessment, options: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """The values of all queries, from the parts that are there if an evaluation is resumed."""
    with progress_bar("searching", shown=_shown(options)) as show:
        if options["resume"] == "never":
            yield from assessment.parts(on_progress=show)
            return
        if options["json"] is None:
            raise InputError("--resume auto needs --json FILE: parts are kept beside it")
        names = ("k", "metrics", "metric", "backend", "nprobe", "sample")
        files = ("target", "labels", "gallery", "gallery_labels", "relevant")
        fingerprint = {name: options[name] for name in names}
        if options["report"] is not None:
            fingerprint["report"] = True  # its metrics are in the parts as well
        fingerprint |= {name: None if options[name] is None else parts.digest(Path(options[name])) for name in files}
        yield from parts.resumed(
            Path(options["json"]), fingerprint, lambda skip: assessment.parts(skip=skip, on_progress=show)
        )


def _further(
    embeddings: Tensor, labels: vectors.Labels | None, gallery: Tensor | None, gallery_labels: vectors.Labels | None
) -> dict[str, float]:
    """What is shown beside retrieval where nothing was asked for by name."""
    from contrastive.geometry import uniformity

    figures: dict[str, float] = {}
    if gallery is not None and labels is not None and gallery_labels is not None and not several(labels):
        figures |= _probes(gallery, gallery_labels, embeddings, labels)
    if 2 <= len(embeddings) <= _UNIFORMITY:
        figures["uniformity"] = uniformity(embeddings)
    return figures


def _shown(options: Mapping[str, Any]) -> bool:
    return launch.first() and bool(sys.stderr.isatty() if options["progress"] is None else options["progress"])


def _read(file: Path, labels_file: str | None) -> tuple[Tensor, vectors.Labels | None]:
    if not file.exists():
        raise InputError(f"{file} does not exist: expected a file of embeddings")
    embeddings, labels = vectors.read(file, mapped=True)
    if labels_file is not None:
        labels = vectors.read_labels(Path(labels_file))
    if labels is not None and len(labels) != len(embeddings):
        raise InputError(f"{file} holds {len(embeddings)} embeddings, and there are {len(labels)} labels")
    return embeddings, labels


def _probes(
    gallery: Tensor, gallery_labels: vectors.Labels, embeddings: Tensor, labels: vectors.Labels
) -> dict[str, float]:
    """Classifiers fitted on the gallery and scored on the queries."""
    from contrastive.probing import knn_accuracy, linear_accuracy, mlp_accuracy

    fit, score = label_ids(
        "kpair evaluate", ("gallery labels", gallery_labels, len(gallery)), ("labels", labels, len(embeddings))
    )
    if int((torch.bincount(fit) > 0).sum()) < 2:
        return {}
    return {
        "knn": knn_accuracy(gallery, fit, embeddings, score),
        "linear": linear_accuracy(gallery, fit, embeddings, score),
        "mlp": mlp_accuracy(gallery, fit, embeddings, score),
    }


def _ks(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        ks = tuple(int(word) for word in text.strip("[]").split(","))
    except ValueError:
        raise InputError(f"--k is {text!r}, expected numbers such as 1,5,10") from None
    if min(ks) < 1:
        raise InputError(f"--k is {text}, expected numbers of at least 1")
    return ks


def _models(setup: Setup, seed: int) -> dict[str, "Model"]:
    """The trained encoder, the same network before training, and pixels."""
    from contrastive import evaluation

    # Untrained means random: not the weights that timm ships.
    arguments = {k: False if k == "pretrained" else v for k, v in setup.recipe.arguments.items()}
    untrained, head = build(replace(setup.recipe, arguments=arguments), seed=seed)
    evaluation.calibrate(nn.Sequential(untrained, head), setup.data.train.images)
    return {
        "encoder": evaluation.Model.of(setup.encoder, setup.projector),
        "untrained": evaluation.Model.of(untrained, head),
        "pixels": evaluation.pixels(),
    }


_KS_OF_PAIRS = (1, 5, 10)
_OF_FILES = (
    *("labels", "gallery", "gallery_labels", "relevant", "metric", "backend", "nprobe", "sample"),
    *("images", "names", "gallery_images", "gallery_names"),
)
_UNIFORMITY = 50_000  # rows beyond which all pairs would take longer than the search


def measure(
    config: Mapping[str, Any],
    setup: Setup,
    *,
    ks: Sequence[int] | None,
    metrics: Sequence[str] | None = None,
    loud: bool,
) -> "Evaluation":
    """Evaluates a trained set-up beside its baselines.

    Arguments:
        config: all options of the run.
        setup: with trained modules.
        ks: of the metrics at k; None: the defaults.
        metrics: of retrieval; None: the defaults.
        loud: whether to tell what is measured.
    """
    from contrastive.evaluation import evaluate_model

    return evaluate_model(
        setup.data,
        _models(setup, config["seed"]),
        setup.critic,
        view=setup.view,
        batch_size=config["batch_size"],
        seed=config["seed"],
        ks=ks,
        metrics=metrics,
        on_step=say if loud else lambda what: None,
    )


def say(what: str) -> None:
    """Tells the person at the keyboard what happens next.

    Arguments:
        what: happens.
    """
    print(f"kpair: {what}", file=sys.stderr, flush=True)
