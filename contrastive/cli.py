"""The command `kpair`: the one place where names become functions."""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

import miners
from contrastive import critics, data, runs, tables, vectors
from contrastive.criterion import KPairLoss
from contrastive.data import ImageData
from contrastive.encoders import (
    MLP,
    ConvNet,
    ImageEncoder,
    Recipe,
    Timm,
    build,
    load_recipe,
    load_weights,
    save_encoder,
)
from contrastive.errors import InputError
from contrastive.options import Part, nearest, parse
from contrastive.retrieval import evaluate_retrieval
from contrastive.scores import WeighsNegatives
from contrastive.views import RandomView

if TYPE_CHECKING:
    from contrastive.evaluation import Evaluation, Model

__all__ = ["main"]

DATA: dict[str, Callable[..., ImageData]] = {
    "digits": data.digits,
    "mnist": data.mnist,
    "fashion-mnist": data.fashion_mnist,
    "cifar10": data.cifar10,
    "omniglot": data.omniglot,
    "folder:": data.folder,
}

PARTS = {
    "encoder": Part(
        {"convnet": ConvNet, "mlp": MLP, "timm:": Timm}, "convnet", filled=frozenset({"channels", "dim", "name"})
    ),
    "projector": Part(
        {"mlp": MLP, "linear": None, "none": None},
        "mlp",
        filled=frozenset({"dim"}),
        overridden={"hidden": (list[int], [256, 256]), "out": (int, 128)},
    ),
    "critic": Part(
        {
            "cosine": critics.Cosine,
            "inner-product": critics.InnerProduct,
            "negative-squared-distance": critics.NegativeSquaredDistance,
            "bilinear": critics.Bilinear,
            "separable": critics.Separable,
            "concat": critics.Concat,
        },
        "cosine",
        filled=frozenset({"dim_x", "dim_y", "temperature"}),
    ),
    "miner": Part(
        {
            "none": None,
            "topk": miners.topk,
            "hardest": miners.hardest,
            "semihard": miners.semihard,
            "hcl": miners.hcl,
            "debiased": miners.debiased,
        },
        "none",
        filled=frozenset({"fallback"}),
    ),
    # Whether a mirrored image keeps its meaning is known of the data: None asks it.
    "view": Part(
        {"random": RandomView}, "random", filled=frozenset({"channels"}), overridden={"mirror": (bool | None, None)}
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Arguments:
        arguments: the words after `kpair`; None takes them from the command line.

    Returns:
        The exit status: 0, 2 for input that the user can mend (one sentence on standard error), 130 for Ctrl-C.
    """
    words = sys.argv[1:] if arguments is None else arguments
    commands: dict[str, Callable[[list[str]], None]] = {"train": _train, "evaluate": _evaluate}
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_HELP)
        elif words[0] == "--version":
            from importlib.metadata import version

            print(f"kpair {version('kpair')}")
        elif words[0] not in commands:
            raise InputError(
                f"unknown command {words[0]!r}{nearest(words[0], commands)}; there are {', '.join(commands)}"
            )
        else:
            commands[words[0]](words[1:])
    except InputError as error:
        print(f"kpair: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kpair: interrupted; --resume auto continues", file=sys.stderr)
        return 130
    return 0


_HELP = """usage: kpair COMMAND [options]

Contrastive learning as metric learning: train with hard-negative miners, evaluate retrieval.

commands:
  train      train an encoder on images without labels, evaluate it, write a report
  evaluate   evaluate a run, or a file of embeddings

kpair COMMAND --help shows the options of a command; kpair --version the version."""


def _add_train_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        type=str,
        default="digits",
        metavar="NAME",
        help="digits | mnist | fashion-mnist | cifar10 | omniglot | folder:PATH",
    )
    add(
        "--data-root",
        type=str | None,
        default=os.environ.get("CONTRASTIVE_DATA"),
        help="folder that holds the data sets (default: $CONTRASTIVE_DATA)",
    )
    add("--download", action="store_true", help="fetch a missing data set into the data root")
    add("--limit", type=int | None, default=None, help="training images to use, for training and for fitting probes")
    add("--image-size", type=int, default=64, help="side of the images of a folder, in pixels")
    add(
        "--corrupt",
        type=Literal["skip", "refuse"],
        default="skip",
        help="what to do with unreadable images of a folder",
    )
    add(
        "--temperature",
        type=float | None,
        default=None,
        help="of the critic's scores (default: the critic's own, 0.1 for cosine)",
    )
    add("--symmetric", type=bool, default=True, help="whether both views serve as anchors")
    add("--batch-size", type=int, default=128, help="images a step, each seen as two views")
    add("--epochs", type=int | None, default=None, help="passes over the images (default: 10, digits 60)")
    add("--lr", type=float, default=3e-3, help="largest learning rate of AdamW, on a cosine schedule")
    add("--weight-decay", type=float, default=1e-4, help="of AdamW")
    add("--seed", type=int, default=0, help="of initial weights, order and views")
    add("--out", type=str | None, default=None, help="run folder (default: the next free runs/DATA-N)")
    add(
        "--resume",
        type=Literal["auto", "never"],
        default="never",
        help="auto: continue a killed run of the same settings, or start it",
    )
    add("--checkpoint-every", type=int | None, default=None, help="steps between checkpoints (default: each epoch)")
    add("--progress", type=bool | None, default=None, help="whether to show progress (default: on a terminal)")
    add("--tensorboard", type=bool, default=False, help="whether to log for TensorBoard beside metrics.csv")
    add(
        "--accelerator",
        type=Literal["auto", "cpu", "gpu", "mps"],
        default="auto",
        help="where to train; auto: the fastest there is",
    )
    add(
        "--precision",
        type=Literal["32-true", "bf16-mixed", "16-mixed"],
        default="32-true",
        help="of the network; scores and losses are float32 in any case",
    )


@dataclass(frozen=True)
class _Setup:
    """What a configuration stands for."""

    data: ImageData
    recipe: Recipe
    encoder: ImageEncoder
    projector: nn.Module
    critic: nn.Module
    miner: WeighsNegatives | None
    view: Callable[[Tensor], Tensor]


def _train(words: list[str]) -> None:
    config = parse(
        words,
        prog="kpair train",
        description="Trains an encoder on images without labels, evaluates it, and writes a run folder with a report.",
        parts=PARTS,
        add_options=_add_train_options,
    )
    _check_train(config)
    setup = _set_up(config)
    if not 2 <= config["batch_size"] <= len(setup.data.train):
        found = f"2 to {len(setup.data.train)}, the number of training images"
        raise InputError(f"--batch-size is {config['batch_size']}, expected {found}")
    out, config["out"] = _folder(config)
    runs.claim(out, config, resume=config["resume"] == "auto")
    if (out / runs.METRICS).exists():
        print(f"{out} is finished; nothing is left to do")
        return

    from contrastive.evaluation import Model, hard_negatives, held_out_figures
    from contrastive.training import fit, newest_checkpoint

    progress = sys.stderr.isatty() if config["progress"] is None else config["progress"]
    resume_from = newest_checkpoint(out)
    _say(
        f"{'resuming' if resume_from else 'training'} in {out}: {_title(config, setup)}, {len(setup.data.train)} images"
    )
    result = fit(
        setup.encoder,
        setup.projector,
        KPairLoss(setup.critic, miner=setup.miner, symmetric=config["symmetric"]),
        setup.data.train.images,
        view=setup.view,
        out=out,
        epochs=config["epochs"],
        batch_size=config["batch_size"],
        lr=config["lr"],
        weight_decay=config["weight_decay"],
        seed=config["seed"],
        each_epoch=partial(
            held_out_figures,
            setup.data,
            Model.of(setup.encoder, setup.projector),
            setup.critic,
            view=setup.view,
            batch_size=config["batch_size"],
            seed=config["seed"],
        ),
        resume_from=resume_from,
        checkpoint_every=config["checkpoint_every"],
        progress=progress,
        tensorboard=config["tensorboard"],
        accelerator=config["accelerator"],
        precision=config["precision"],
    )
    save_encoder(out, setup.recipe, setup.encoder, setup.projector, setup.critic)
    start = time.perf_counter()
    measured = _evaluation(config, setup, ks=None, loud=progress)
    cost = {
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "loading_share": result.loading_share,
        "augmenting_share": result.augmenting_share,
        "evaluation_seconds": time.perf_counter() - start,
        "peak_mb": runs.peak_mb(),
    }
    negatives = hard_negatives(
        setup.data.train,
        nn.Sequential(setup.encoder, setup.projector),
        setup.critic,
        setup.miner,
        view=setup.view,
        batch_size=config["batch_size"],
        seed=config["seed"],
    )
    page = runs.finish(
        out,
        title=_title(config, setup),
        config=config,
        data=setup.data,
        measured=measured,
        hard_negatives=negatives,
        training={"final_loss": result.final_loss, "steps": result.steps},
        cost=cost,
    )
    tables.print_comparison(measured.figures, measured.intervals, measured.bound, measured.notes)
    print(
        f"{cost['images_per_second']:.0f} images a second; loading {cost['loading_share']:.1%} and views "
        f"{cost['augmenting_share']:.1%} of the time; peak memory {cost['peak_mb']:.0f} MB"
    )
    print(f"report: {page}")


def _check_train(config: dict[str, Any]) -> None:
    """Whatever can be refused before the data are read; fills in defaults that depend on other options."""
    if config["epochs"] is None:
        config["epochs"] = 60 if config["data"] == "digits" else 10
    for option in ("epochs", "batch_size", "image_size", "checkpoint_every"):
        if config[option] is not None and config[option] < 1:
            raise InputError(f"--{option.replace('_', '-')} is {config[option]}, expected at least 1")
    if not (math.isfinite(config["lr"]) and config["lr"] > 0):
        raise InputError(f"--lr is {config['lr']}, expected a positive number")
    if not (math.isfinite(config["weight_decay"]) and config["weight_decay"] >= 0):
        raise InputError(f"--weight-decay is {config['weight_decay']}, expected a number of at least 0")
    temperature = config["temperature"]
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"--temperature is {temperature}, expected a positive number")
    if config["accelerator"] == "gpu" and not torch.cuda.is_available():
        raise InputError("--accelerator is gpu, but torch finds none here")
    if config["accelerator"] == "mps" and not torch.backends.mps.is_available():
        raise InputError("--accelerator is mps, but torch finds none here")
    if config["seed"] < 0:
        raise InputError(f"--seed is {config['seed']}, expected at least 0")


def _set_up(config: Mapping[str, Any]) -> _Setup:
    """Resolves every name of a configuration; nothing is written."""
    images = _load_data(config)
    channels, height, width = images.train.images.shape[1:]
    pixels = images.train.images.float() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)

    options = _options(config, "encoder")
    name = config["encoder"]["name"]
    arguments: dict[str, Any] = {"convnet": {"channels": channels}, "mlp": {"dim": channels * height * width}}.get(
        name, {"name": name.removeprefix("timm:"), "channels": channels}
    )
    kind = {"convnet": "ConvNet", "mlp": "MLP"}.get(name, "Timm")
    projector: dict[str, Any] | None = {
        "mlp": _options(config, "projector"),
        "linear": {"hidden": [], "out": 128},
        "none": None,
    }[config["projector"]["name"]]
    recipe = Recipe(kind, {**arguments, **options}, projector, mean.tolist(), std.tolist())
    try:
        encoder, head = build(recipe, seed=config["seed"])
        with torch.random.fork_rng():
            torch.manual_seed(config["seed"])
            critic = _critic(config, encoder.out_dim if projector is None else projector["out"])
        miner = _miner(config)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    _try_once(encoder, images)
    view_options = _options(config, "view")
    if view_options["mirror"] is None:
        view_options["mirror"] = images.mirrored
    return _Setup(
        images,
        recipe,
        encoder,
        head,
        critic,
        miner,
        RandomView(channels, **view_options),
    )


def _options(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {k: v for k, v in config[part].items() if k != "name"}


def _load_data(config: Mapping[str, Any]) -> ImageData:
    name = config["data"]
    if name.startswith("folder:") and name != "folder:":
        images = data.folder(Path(name.removeprefix("folder:")), size=config["image_size"], corrupt=config["corrupt"])
    elif name not in DATA or name == "folder:":
        shown = ", ".join("folder:PATH" if k == "folder:" else k for k in DATA)
        raise InputError(f"--data: unknown data set {name!r}{nearest(name, DATA)}; there are {shown}")
    elif name == "digits":
        images = data.digits()
    else:
        root = config["data_root"]
        images = DATA[name](None if root is None else Path(root), download=config["download"])
    return data.limit(images, config["limit"])


def _critic(config: Mapping[str, Any], dim: int) -> nn.Module:
    name, temperature = config["critic"]["name"], config["temperature"]
    kind = PARTS["critic"].resolve("critic", name)
    assert kind is not None
    options = _options(config, "critic")
    if name in ("cosine", "inner-product", "negative-squared-distance"):
        if temperature is not None:
            options["temperature"] = temperature
        return cast(nn.Module, kind(**options))
    if temperature is not None:
        raise InputError(f"--temperature: the critic {name} has none, its parameters learn their scale")
    return cast(nn.Module, kind(dim, **options))


def _miner(config: Mapping[str, Any]) -> WeighsNegatives | None:
    kind = PARTS["miner"].resolve("miner", config["miner"]["name"])
    return None if kind is None else kind(**_options(config, "miner"))


def _try_once(encoder: nn.Module, images: ImageData) -> None:
    """An encoder that cannot take these images says so before anything is written."""
    height, width = images.train.images.shape[2:]
    try:
        encoder.eval()
        with torch.no_grad():
            encoder(images.train.images[:2])
        encoder.train()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--encoder: it cannot take images of {height} x {width} pixels: {reason}") from error


def _folder(config: Mapping[str, Any]) -> tuple[Path, str]:
    name = config["data"].removeprefix("folder:").rstrip("/").split("/")[-1]
    if config["out"] is not None:
        folder = Path(config["out"])
    elif config["resume"] == "auto":
        folder = runs.unfinished_folder(name, config) or runs.next_folder(name)
    else:
        folder = runs.next_folder(name)
    return folder, str(folder)


def _title(config: Mapping[str, Any], setup: _Setup) -> str:
    miner = "no miner" if setup.miner is None else repr(setup.miner)
    return f"{setup.data.name}, {config['encoder']['name']}, {config['critic']['name']}, {miner}"


def _models(setup: _Setup, seed: int) -> dict[str, "Model"]:
    """The trained encoder, the same network before training, and pixels."""
    from contrastive import evaluation

    untrained, head = build(setup.recipe, seed=seed)
    evaluation.calibrate(nn.Sequential(untrained, head), setup.data.train.images)
    return {
        "encoder": evaluation.Model.of(setup.encoder, setup.projector),
        "untrained": evaluation.Model.of(untrained, head),
        "pixels": evaluation.pixels(),
    }


def _evaluation(config: Mapping[str, Any], setup: _Setup, *, ks: Sequence[int] | None, loud: bool) -> "Evaluation":
    from contrastive.evaluation import evaluate_model

    return evaluate_model(
        setup.data,
        _models(setup, config["seed"]),
        setup.critic,
        view=setup.view,
        batch_size=config["batch_size"],
        seed=config["seed"],
        ks=ks,
        on_step=_say if loud else lambda what: None,
    )


def _add_evaluate_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("target", type=str, help="a run folder, or a file of embeddings (.npy .npz .safetensors .parquet .pt)")
    add("--labels", type=str | None, default=None, help="file of labels, one a row; default: 'labels' within the file")
    add("--gallery", type=str | None, default=None, help="file of gallery embeddings; default: leave-one-out")
    add("--gallery-labels", type=str | None, default=None, help="file of the gallery's labels")
    add(
        "--k",
        type=str | None,
        default=None,
        metavar="K,K,...",
        help="of recall@k (default: 1,5,10,100, as far as the gallery reaches)",
    )
    add("--metric", type=Literal["cosine", "inner_product", "euclidean"], default="cosine", help="what is near")
    add("--backend", type=Literal["auto", "torch", "faiss"], default="auto", help="what searches")
    add("--data-root", type=str | None, default=None, help="for a run: where its data lie now")
    add("--json", type=str | None, default=None, metavar="FILE", help="write the figures as JSON as well")


def _evaluate(words: list[str]) -> None:
    options = parse(
        words,
        prog="kpair evaluate",
        description="Evaluates retrieval: of a run (its encoder, untrained, pixels), or of a file of embeddings.",
        parts={},
        add_options=_add_evaluate_options,
    )
    target, ks = Path(options["target"]), _ks(options["k"])
    if target.is_dir():
        only_files = [name for name in ("labels", "gallery", "gallery_labels") if options[name] is not None]
        if only_files:
            raise InputError(
                f"--{only_files[0].replace('_', '-')} goes with a file of embeddings, and {target} is a run"
            )
        content = _evaluate_run(target, options, ks)
    elif target.exists():
        content = _evaluate_file(target, options, ks)
    else:
        raise InputError(f"{target} does not exist: expected a run folder or a file of embeddings")
    if options["json"] is not None:
        try:
            runs.write_json(Path(options["json"]), content)
        except OSError as error:
            raise InputError(f"--json: {options['json']} cannot be written: {error}") from error


def _evaluate_run(folder: Path, options: Mapping[str, Any], ks: Sequence[int] | None) -> dict[str, Any]:
    recipe = load_recipe(folder)
    config = runs.read_config(folder)
    if options["data_root"] is not None:
        config["data_root"] = options["data_root"]
    setup = _set_up(config)
    if setup.recipe != recipe:
        raise InputError(f"{folder} was trained on other images: its encoder.json does not fit the data found now")
    load_weights(folder, encoder=setup.encoder, projector=setup.projector, critic=setup.critic)
    measured = _evaluation(config, setup, ks=ks, loud=sys.stderr.isatty())
    tables.print_comparison(measured.figures, measured.intervals, measured.bound, measured.notes)
    return {**measured.figures, "intervals": measured.intervals, "bound": measured.bound, "notes": measured.notes}


def _evaluate_file(file: Path, options: Mapping[str, Any], ks: Sequence[int] | None) -> dict[str, Any]:
    embeddings, labels = vectors.read(file)
    if options["labels"] is not None:
        labels = vectors.read_labels(Path(options["labels"]))
    if labels is None:
        raise InputError(f"{file} holds no labels: pass --labels FILE")
    gallery, gallery_labels = None, None
    if options["gallery"] is not None:
        gallery, gallery_labels = vectors.read(Path(options["gallery"]))
        if options["gallery_labels"] is not None:
            gallery_labels = vectors.read_labels(Path(options["gallery_labels"]))
        if gallery_labels is None:
            raise InputError(f"{options['gallery']} holds no labels: pass --gallery-labels FILE")
    elif options["gallery_labels"] is not None:
        raise InputError("--gallery-labels needs --gallery FILE")
    given: dict[str, Any] = {} if ks is None else {"ks": ks}
    result = evaluate_retrieval(
        embeddings,
        labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
        metric=options["metric"],
        backend=options["backend"],
        **given,
    )
    notes = []
    if result.excluded:
        notes.append(f"{result.excluded} queries have no relevant item in the gallery: excluded.")
    if result.dropped:
        notes.append(f"k = {', '.join(map(str, result.dropped))} left out: beyond the gallery.")
    tables.print_figures(result.mean, result.interval, notes)
    counts = {"queries": len(embeddings), "excluded": result.excluded}
    return {"figures": result.mean, "intervals": result.interval, **counts, "notes": notes}


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


def _say(what: str) -> None:
    print(f"kpair: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
