"""``kpair train``."""

import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contrastive import launch, runs, tables
from contrastive.checkpoints import locked, newest_checkpoint
from contrastive.chunks import refuse_what_joins_rows
from contrastive.cli.configuration import read_options
from contrastive.cli.evaluate import measure, say
from contrastive.cli.names import Setup, set_up
from contrastive.collectives import world_size
from contrastive.criterion import KPairLoss
from contrastive.distributed import GlobalBatch
from contrastive.encoders import save_encoder
from contrastive.errors import InputError
from contrastive.files import remove_scraps
from miners import counted

__all__ = ["train"]


def train(words: list[str]) -> None:
    """Trains, evaluates, and writes a run folder.

    Arguments:
        words: of the command line, after the command.

    Raises:
        InputError: for anything the user can mend.
    """
    options = _attempted(partial(read_options, words))
    with launch.joined(60.0 if isinstance(options, InputError) else options["timeout"]):
        _train(launch.together(partial(_said, options)))


def _attempted(function: Callable[[], dict[str, Any]]) -> dict[str, Any] | InputError:
    try:
        return function()
    except InputError as error:  # said when all ranks have met: none may be left waiting
        return error


def _said(outcome: dict[str, Any] | InputError) -> dict[str, Any]:
    if isinstance(outcome, InputError):
        raise outcome
    return outcome


def _train(config: dict[str, Any]) -> None:
    if launch.restarted():
        config["resume"] = "auto"
    setup = launch.together(partial(_set_up, config))
    if launch.launched():
        images = hashlib.sha256(setup.data.train.images.contiguous().numpy().data).hexdigest()
        versions = {"torch's version": torch.__version__, "kpair's version": version("kpair")}
        launch.agree({**runs.what_is_computed(config), "the training images (checksum)": images, **versions})
    out, config["out"] = launch.by_first(partial(_folder, config))
    launch.by_first(partial(runs.claim, out, config, resume=config["resume"] == "auto"))
    if launch.by_first((out / runs.METRICS).exists):
        print(f"{out} is finished; nothing is left to do")
        return
    with ExitStack() as held:
        launch.by_first(partial(_hold, out, held))
        _run(out, config, setup)


def _hold(out: Path, held: ExitStack) -> None:
    held.enter_context(locked(out))
    for folder in (out, out / "checkpoints"):
        remove_scraps(folder)


def _set_up(config: Mapping[str, Any]) -> Setup:
    setup = set_up(config)
    if len(setup.data.test) < 2:
        raise InputError(f"--data: {setup.data.name} has {len(setup.data.test)} test image, expected at least 2")
    if not 2 <= config["batch_size"] <= len(setup.data.train):
        found = f"2 to {len(setup.data.train)}, the number of training images"
        raise InputError(f"--batch-size is {config['batch_size']}, expected {found}")
    if config["chunk"] is not None:
        try:
            refuse_what_joins_rows(nn.ModuleList([setup.encoder, setup.projector]))
        except ValueError as error:
            raise InputError(f"--chunk: {str(error).removeprefix('in_chunks: ')}") from error
    return setup


def _run(out: Path, config: Mapping[str, Any], setup: Setup) -> None:
    from contrastive.evaluation import Model, hard_negatives, held_out_figures
    from contrastive.training import fit, read_history

    progress = sys.stderr.isatty() if config["progress"] is None else config["progress"]
    resume_from = launch.by_first(partial(newest_checkpoint, out / "checkpoints", "step-*.ckpt"))
    if launch.first():
        doing, ranks = "resuming" if resume_from else "training", world_size()
        on = f" on {ranks} ranks" if ranks > 1 else ""
        say(f"{doing} in {out}{on}: {_title(config, setup)}, {len(setup.data.train)} images")
    miner = None if setup.miner is None else counted(setup.miner)
    one = KPairLoss(setup.critic, miner=miner, symmetric=config["symmetric"])
    result = fit(
        setup.encoder,
        setup.projector,
        GlobalBatch(one),
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
        each_step=None if miner is None else miner.begin,
        each_loss=None if miner is None else miner.figures,
        resume_from=resume_from,
        checkpoint_every=config["checkpoint_every"],
        progress=progress and launch.first(),
        tensorboard=config["tensorboard"],
        accelerator=config["accelerator"],
        precision=config["precision"],
        chunk=config["chunk"],
        skip_steps=config["skip_steps"],
    )
    if not launch.first():
        return
    training_peak = runs.peak_mb()
    save_encoder(out, setup.recipe, setup.encoder, setup.projector, setup.critic)
    start = time.perf_counter()
    measured = measure(config, setup, ks=None, loud=progress)
    cost = {
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "loading_share": result.loading_share,
        "augmenting_share": result.augmenting_share,
        "training_peak_mb": training_peak,
        "evaluation_seconds": time.perf_counter() - start,
        "peak_mb": runs.peak_mb(),
    }
    if result.skipped:
        measured.notes.append(
            f"{result.skipped} of {result.steps} steps were skipped, for a number in them was not finite: "
            "failed-step-*.safetensors has their batches."
        )
    history = read_history(out)
    empty = [row["empty_rows"] for row in history if "empty_rows" in row]
    if any(empty):
        measured.notes.append(
            f"{setup.miner!r} left {statistics.fmean(empty):.1%} of the anchors without any negative (mean over the "
            f"{len(empty)} steps that were logged): their loss is 0, and they teach nothing."
        )
    else:  # a panel of zeros would say nothing
        history = [{key: value for key, value in row.items() if key != "empty_rows"} for row in history]
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
        history=history,
        hard_negatives=negatives,
        training={"final_loss": result.final_loss, "steps": result.steps, "skipped_steps": result.skipped},
        cost=cost,
    )
    tables.print_comparison(
        measured.figures, measured.intervals, measured.bound, measured.notes, class_intervals=measured.class_intervals
    )
    print(
        f"{cost['images_per_second']:.0f} images a second; loading {cost['loading_share']:.1%} and views "
        f"{cost['augmenting_share']:.1%} of a step; peak memory {cost['training_peak_mb']:.0f} MB in training, "
        f"{cost['peak_mb']:.0f} MB in all"
    )
    print(f"report: {page}")


def _folder(config: Mapping[str, Any]) -> tuple[Path, str]:
    name = config["data"].removeprefix("folder:").rstrip("/").split("/")[-1]
    if config["out"] is not None:
        folder = Path(config["out"])
    elif config["resume"] == "auto":
        folder = runs.unfinished_folder(name, config) or runs.next_folder(name)
    else:
        folder = runs.next_folder(name)
    return folder, str(folder)


def _title(config: Mapping[str, Any], setup: Setup) -> str:
    miner = "no miner" if setup.miner is None else repr(setup.miner)
    return f"{setup.data.name}, {config['encoder']['name']}, {config['critic']['name']}, {miner}"
