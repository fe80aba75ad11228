"""Self-supervised training: two views of every image, an encoder, a projector and a criterion.

`fit` takes modules and callables, runs Lightning's Trainer, and resumes bit for bit: every draw within a step is a
pure function of (seed, step), every epoch's order of (seed, epoch), so a checkpoint needs no random state. A process
that is asked to stop (SIGTERM, Ctrl-C) saves first.
"""

import csv
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from jaxtyping import Float, UInt8
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from contrastive.batches import Batches, derived_seed
from contrastive.checkpoints import check_state, load_checkpoint, save_checkpoint
from contrastive.chunks import in_chunks, refuse_what_joins_rows
from contrastive.collectives import mean_over_ranks, rank_of, world_size
from contrastive.errors import InputError
from contrastive.files import save_tensors
from contrastive.launch import RefusedByAll, launched
from contrastive.norms import global_batch_norms
from contrastive.randomness import seed_everything
from contrastive.wrappers import in_evaluation_mode

__all__ = ["CheckedFiles", "FitResult", "fit", "read_history"]


@dataclass(frozen=True)
class FitResult:
    """What training cost and where it ended.

    Arguments:
        final_loss: of the last step, in nats.
        steps: optimiser steps, over all attempts of a resumed run.
        seconds: of training, likewise.
        images_per_second: training images (each seen as two views) a second, over the steps of this attempt; nan
            where it had nothing left to do.
        loading_share: share of a step that the loader takes.
        augmenting_share: share of a step that drawing the views takes.
        skipped: steps that were left out, over all attempts (`skip_steps` of `fit`).
    """

    final_loss: float
    steps: int
    seconds: float
    images_per_second: float
    loading_share: float
    augmenting_share: float
    skipped: int


def fit(
    encoder: nn.Module,
    projector: nn.Module,
    criterion: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    *,
    view: Callable[[Tensor], Tensor],
    out: Path,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 3e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
    each_epoch: Callable[[], dict[str, float]] | None = None,
    each_step: Callable[[int], None] | None = None,
    each_loss: Callable[[], dict[str, float]] | None = None,
    resume_from: Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
    tensorboard: bool = False,
    accelerator: str = "auto",
    precision: str = "32-true",
    chunk: int | None = None,
    skip_steps: int = 3,
) -> FitResult:
    r"""Trains an encoder so that two views of an image find each other among the batch.

    .. math::
        \min_\theta \; \mathcal L\bigl(p(e(v(x))),\, p(e(v'(x)))\bigr)

    with e the encoder, p the projector, v and v' two draws of the view, and AdamW on a cosine schedule that warms
    up over the first tenth of the steps.

    On several ranks (started by torchrun, within `contrastive.launch.joined`) each takes its part of every batch. The
    result is that of one process, up to rounding and to what the view draws: batch normalisation is over the whole
    batch (`contrastive.norms`), as is the criterion if it is a `contrastive.GlobalBatch`; each rank draws its views
    from (seed, step, rank). The first rank logs, measures and writes.

    Arguments:
        encoder: images in [0, 1] to features; trained in place.
        projector: features to the space in which the criterion's critic scores; trained in place.
        criterion: ``(x, y) -> loss``, such as `contrastive.KPairLoss`; its parameters are trained too. On several ranks
            it sees each rank's pairs, and the mean over ranks is minimised.
        images: the training images.
        view: draws a random view of every image of a batch of floats in [0, 1].
        out: the run folder: ``metrics.csv`` and ``checkpoints/`` are written there.
        epochs: passes over the images; each leaves out the last incomplete batch.
        batch_size: images a step, on all ranks together, each seen as two views.
        lr: largest learning rate.
        weight_decay: of AdamW.
        seed: of the order and the views; initial weights are the caller's.
        each_epoch: measures something after each epoch, with the modules in evaluation mode; logged.
        each_step: told the number of each step, from 0, before it is taken: sets what changes during a training, such
            as the miner of a criterion (`miners.annealed`). A resumed run goes on at the number it stopped at, so
            whatever is a function of it needs no state.
        each_loss: tells what to log beside the loss of a step, such as the share of anchors that the criterion's miner
            left without negatives (`miners.counted`); averaged over ranks.
        resume_from: a checkpoint of the same run, such as `contrastive.checkpoints.newest_checkpoint` finds.
        checkpoint_every: steps between checkpoints; None: at the end of each epoch. The newest two are kept.
        progress: whether to show a progress bar.
        tensorboard: whether to log for TensorBoard as well.
        accelerator: Lightning's: "auto", "cpu", "gpu", ...
        precision: Lightning's: "32-true", "bf16-mixed", ...
        chunk: views that are encoded at a time, to save memory (`contrastive.chunks`); None: all.
        skip_steps: how many steps may be left out because a projection, the loss or a gradient is not finite. Each is a
            warning, its batch is saved in `out`, and it changes neither weights nor running statistics; the next one
            ends the training. In float16 gradients are left to Lightning's scaler, which skips in silence.

    Returns:
        Cost and final loss. `encoder`, `projector` and `criterion` are left trained, in evaluation mode. Modules that
        are in evaluation mode within one that is not, such as frozen batch norms, stay in it throughout.

    Raises:
        InputError: for a batch larger than the data; for a step that is not finite and may not be skipped, or that the
            criterion refuses: the message names it, and the batch is saved in `out`; for a checkpoint that is damaged
            or of other modules; where a checkpoint cannot be written; for batch normalisation and `chunk`; on several
            ranks, for a parameter that the first loss does not depend on.
        KeyboardInterrupt: for Ctrl-C, after the step under way and a checkpoint; a second one waits for neither.
        SystemExit: for SIGTERM, likewise, with the status 143.

    References:
        | A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., 2020)
        | https://arxiv.org/abs/2002.05709
    """
    if not 2 <= batch_size <= len(images):
        raise InputError(f"the batch size is {batch_size}, expected 2 to {len(images)}, the number of training images")
    before = None if resume_from is None else load_checkpoint(resume_from)
    if before is not None and (lacking := [key for key in ("state_dict", "global_step", "steps") if key not in before]):
        raise InputError(f"{resume_from} is no checkpoint of a training: {', '.join(lacking)} missing")
    world = world_size()
    if world == 1 and launched():
        raise InputError("several ranks were started and have not joined: fit within contrastive.launch.joined()")
    if batch_size < world:
        raise InputError(f"the batch size is {batch_size}, expected at least {world}, the number of ranks")
    batches = Batches(images, batch_size, seed=seed, rank=rank_of(), world=world)
    if world > 1:
        try:
            encoder, projector = global_batch_norms(encoder), global_batch_norms(projector)
        except ValueError as error:
            raise RefusedByAll(str(error)) from error
    model = _TwoViews(
        encoder,
        projector,
        criterion,
        view,
        batches,
        out,
        seed,
        lr,
        weight_decay,
        epochs * len(batches),
        each_epoch,
        each_step,
        each_loss,
        resume_from,
        chunk,
        skip_steps,
    )
    # Lightning leaves the modes as it finds them. What was frozen within a part that trains stays so.
    frozen = [m for part in (encoder, projector, criterion) if part.training for m in part.modules() if not m.training]
    model.train()
    for module in frozen:
        module.training = False
    if chunk is not None:
        try:
            refuse_what_joins_rows(nn.ModuleList([encoder, projector]))
        except ValueError as error:
            raise InputError(str(error)) from error
    with _quiet_lightning():
        loggers: list[Logger] = [_csv_logger(out, before)] if rank_of() == 0 else []
        if tensorboard and loggers:
            loggers.append(TensorBoardLogger(out, name="", version="tensorboard"))
        stop = _StopRequest()
        callbacks: list[Callback] = [_Checkpoints(out / "checkpoints", checkpoint_every, stop)]
        if progress:
            callbacks.append(RichProgressBar())
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", world)) if world > 1 else 1,
            num_nodes=world // int(os.environ.get("LOCAL_WORLD_SIZE", world)) if world > 1 else 1,
            strategy="ddp" if world > 1 else "auto",
            use_distributed_sampler=False,
            precision=precision,  # type: ignore[arg-type]  # a Literal there, the user's word here
            max_epochs=epochs,
            logger=loggers,
            callbacks=callbacks,
            plugins=[CheckedFiles()],
            log_every_n_steps=model.log_every,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(model, batches, ckpt_path=resume_from, weights_only=True)
        except SIGTERMException:  # Lightning's, which heard the signal before the first step
            raise SystemExit(128 + signal.SIGTERM) from None
        except SystemExit:
            if stop.signal is signal.SIGTERM or not trainer.interrupted:
                raise
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores it from here on
            raise KeyboardInterrupt from None
        except _Stopped:
            stop.obey()
        finally:
            stop.ignore()
        if stop.signal is not None:  # during the last epoch's measurement
            stop.obey()
    model.eval()
    # Of steps alone: what is measured or saved between them is not training.
    stepping = model.step_seconds + batches.seconds
    return FitResult(
        final_loss=model.last_loss,
        steps=trainer.global_step,
        seconds=model.seconds(),
        images_per_second=model.steps_now * batch_size / stepping if model.steps_now else float("nan"),
        loading_share=batches.seconds / stepping if model.steps_now else float("nan"),
        augmenting_share=model.view_seconds / stepping if model.steps_now else float("nan"),
        skipped=model.skipped,
    )


def read_history(out: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.csv``, each with the keys it has a value for.

    Arguments:
        out: the run folder.
    """
    path = out / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(file)]


class _TwoViews(pl.LightningModule):
    """The training step."""

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        criterion: nn.Module,
        view: Callable[[Tensor], Tensor],
        batches: Batches,
        out: Path,
        seed: int,
        lr: float,
        weight_decay: float,
        steps: int,
        each_epoch: Callable[[], dict[str, float]] | None,
        each_step: Callable[[int], None] | None,
        each_loss: Callable[[], dict[str, float]] | None,
        resumed_from: Path | None,
        chunk: int | None,
        skip_steps: int,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.criterion = encoder, projector, criterion
        self.view, self.batches, self.out, self.seed = view, batches, out, seed
        self.lr, self.weight_decay, self.steps = lr, weight_decay, steps
        self.each_epoch, self.each_step, self.each_loss = each_epoch, each_step, each_loss
        self.resumed_from = resumed_from
        self.chunk, self.skip_steps = chunk, skip_steps
        self.skipped = 0
        self.skipping = False  # the step under way
        self.statistics: list[tuple[Tensor, Tensor]] = []  # of batch norms: now, and before the step under way
        self.log_every = max(1, steps // 500)
        self.last_loss = float("nan")
        self.steps_now = 0
        self.measured_at = 0  # the step after which `each_epoch` was last asked
        self.last_batch: tuple[Tensor, Tensor] | None = None
        self.view_seconds = self.step_seconds = self.seconds_before = 0.0
        self.started = self.step_started = time.perf_counter()

    def seconds(self) -> float:
        """Of training so far, over all attempts."""
        return self.seconds_before + time.perf_counter() - self.started

    def on_train_start(self) -> None:
        # A checkpoint at an epoch's last step is older than the epoch's measurement, which a crash may have lost.
        if self.global_step and self.global_step % len(self.batches) == 0 and self.measured_at != self.global_step:
            self.on_train_epoch_end()
        if self.global_step >= self.steps:  # resumed at the last step: Lightning would take one more
            self.trainer.should_stop = True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.step_started = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.step_seconds += time.perf_counter() - self.step_started

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
        ids, images = batch
        if self.each_step is not None:
            self.each_step(self.global_step)
        # Views, dropout and whatever else draws: the same at this step, resumed or not.
        seed_everything(derived_seed(self.seed, self.global_step, *([rank_of()] if rank_of() else [])))
        start = time.perf_counter()
        pixels = images.float() / 255
        views = self.view(torch.cat([pixels, pixels]))
        self.view_seconds += time.perf_counter() - start
        self.last_batch = ids, views
        encode = nn.Sequential(self.encoder, self.projector)
        self.skipping, self.statistics = False, [(buffer, buffer.clone()) for buffer in encode.buffers()]
        projections = encode(views) if self.chunk is None else in_chunks(encode, views, size=self.chunk)
        # Ranks skip together: those whose numbers are finite would wait for the others in the criterion.
        if bool(mean_over_ranks((~torch.isfinite(projections)).any().float())):
            return self._skipped("the encoder's output is not finite")
        x, y = projections.chunk(2)
        try:
            loss: Tensor = self.criterion(x, y)
        except ValueError as error:  # scores that overflowed are refused by the loss itself
            raise self._failure(str(error)) from error
        mean_loss = float(mean_over_ranks(loss))
        if not math.isfinite(mean_loss):
            return self._skipped(f"the loss is {mean_loss}")
        self.last_loss = mean_loss
        self.steps_now += 1
        self.log("loss", loss, prog_bar=True, logger=False)
        if self.global_step % self.log_every == 0 or self.global_step == self.steps - 1:
            figures = {} if self.each_loss is None else self.each_loss()
            further = {key: float(mean_over_ranks(loss.new_tensor(value))) for key, value in figures.items()}
            rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]  # one optimiser
            self._record({"loss": self.last_loss, "lr": rate, **further})
        return loss

    def on_after_backward(self) -> None:
        """Refuses, at the first step, a parameter without a gradient: the ranks' backward passes would not meet."""
        if world_size() == 1 or self.steps_now != 1:
            return
        unused = [name for name, p in self.named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            raise RefusedByAll(
                f"the loss of step {self.global_step} does not depend on {', '.join(unused[:3])}{more}: on several "
                "ranks gradients would not be averaged; freeze it (requires_grad = False) or take it out of the modules"
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leaves a step without gradients if one of them is not finite: what is None moves no weight and no moment."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if self.trainer.scaler is not None or bool(torch.isfinite(nn.utils.get_total_norm(gradients, math.inf))):
            return
        if not self.skipping:
            self._skip("a gradient is not finite")
        optimizer.zero_grad()

    def on_train_epoch_end(self) -> None:
        self._refuse_broken_weights()
        self.measured_at = self.global_step
        if self.each_epoch is None or rank_of():
            return
        try:
            with torch.no_grad(), in_evaluation_mode(self):
                measured = self.each_epoch()
        except ValueError as error:  # weights that are finite and huge
            raise self._failure(f"measured after the epoch: {error}") from error
        self._record(measured, step=self.global_step - 1)

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay, fused=True)
        # Of ten steps a tenth is one, which torch divides by, less one.
        warm = 0.2 if self.steps == 10 else 0.1
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, total_steps=max(self.steps, 2), pct_start=warm, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._refuse_broken_weights()
        checkpoint["steps"] = self.steps
        checkpoint["world"] = world_size()
        checkpoint["last_loss"] = self.last_loss
        checkpoint["skipped"] = self.skipped
        checkpoint["measured_at"] = self.measured_at
        checkpoint["seconds"] = self.seconds()
        for logger in self.loggers:  # the curve reaches as far as the checkpoint, whatever happens next
            logger.save()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        source = self.resumed_from or "the checkpoint"
        check_state(self, checkpoint["state_dict"], source=source)
        if checkpoint["steps"] != self.steps:  # the schedule of the learning rate is another one
            raise InputError(f"{source} is of a training of {checkpoint['steps']} steps, expected {self.steps}")
        world = checkpoint.get("world", world_size())  # not in files of earlier versions
        if world != world_size() and rank_of() == 0:
            warnings.warn(
                f"{source} was saved by {world} rank(s) and is continued by {world_size()}: what follows is not bit "
                "for bit what it would have been",
                stacklevel=2,
            )
        self.last_loss = checkpoint["last_loss"]
        self.skipped = checkpoint["skipped"]
        self.measured_at = checkpoint["measured_at"]
        self.seconds_before = checkpoint["seconds"]
        # Lightning restores a loader's state in the middle of an epoch only, not at its end.
        epoch, given = divmod(checkpoint["global_step"], len(self.batches))
        self.batches.load_state_dict({"epoch": epoch, "given": given})
        # Lightning miscounts epochs in what it saves after it has resumed at an epoch's end: the step says them all.
        begun = epoch + (given > 0)
        done = epoch if given or self.measured_at == checkpoint["global_step"] else epoch - 1
        for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            progress.update(ready=begun, started=begun, processed=done, completed=epoch if given else epoch - 1)

    def _record(self, figures: dict[str, float], *, step: int | None = None) -> None:
        """Logs at once: what `self.log` holds back would be missing from a checkpoint's curve after a crash."""
        step = self.global_step if step is None else step
        for logger in self.loggers:
            logger.log_metrics({**figures, "epoch": step // len(self.batches)}, step=step)

    def _refuse_broken_weights(self) -> None:
        """The last step of an epoch has no next one to notice; broken weights must reach neither file nor figure."""
        if self.last_batch is not None and not all(bool(torch.isfinite(p).all()) for p in self.parameters()):
            raise self._failure("the step left weights that are not finite")

    def _skipped(self, what: str) -> Tensor:
        """A loss whose gradients are NaN on all ranks and of all parameters, for `on_before_optimizer_step` to drop."""
        self._skip(what)
        return math.nan * torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum()

    def _skip(self, what: str) -> None:
        """Leaves out the step under way, on all ranks, if another one may be."""
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters()):
            raise self._failure(f"{what}, nor are the weights", RefusedByAll)
        if self.skipped >= self.skip_steps:
            after = f", after {self.skipped} skipped steps" if self.skipped else ""
            raise self._failure(f"{what}{after}", RefusedByAll)
        self.skipped += 1
        self.skipping = True
        with torch.no_grad():
            for buffer, before in self.statistics:
                buffer.copy_(before)
        path = self._save_batch()
        if rank_of() == 0:
            warnings.warn(f"step {self.global_step} is skipped: {what}; the batch is saved in {path}", stacklevel=2)

    def _failure(self, what: str, kind: type[InputError] = InputError) -> InputError:
        return kind(
            f"training stopped at step {self.global_step} (epoch {self.current_epoch}): {what}; the batch is saved in "
            f"{self._save_batch()}; a lower learning rate or a higher temperature is the usual remedy"
        )

    def _save_batch(self) -> Path:
        rank = f"-rank-{rank_of()}" if world_size() > 1 else ""
        path = self.out / f"failed-step-{self.global_step}{rank}.safetensors"
        if self.last_batch is not None:
            save_tensors(path, dict(zip(("ids", "views"), self.last_batch, strict=True)))
        return path


class _Stopped(BaseException):
    """A checkpoint was written because the process was asked to stop; not an error that anybody should catch."""


class _StopRequest:
    """The signal that asked this process to stop, heard between steps; a second one is obeyed at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        # Elsewhere than in the main thread there is nothing to hear; a shell's background job ignores Ctrl-C.
        heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.getsignal(number) for number in heard}
        self.before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def listen(self) -> None:
        """From here on a signal is a request."""
        for number in self.before:
            signal.signal(number, self._hear)

    def ignore(self) -> None:
        """Gives signals back to whom they belonged."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def obey(self) -> NoReturn:
        """Ends the process as the signal would have."""
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self.signal = signal.Signals(number)
            self.obey()
        self.signal = signal.Signals(number)


class _Checkpoints(Checkpoint):
    """Writes a checkpoint every so many steps or each epoch, and when asked to stop; keeps the newest two."""

    def __init__(self, folder: Path, every: int | None, stop: _StopRequest) -> None:
        self.folder, self.every, self.stop = folder, every, stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.listen()  # not earlier: Lightning would put handlers of its own in front

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        # Ranks hear a signal at different times, and have to stop after the same step.
        asked = torch.tensor(float(self.stop.signal is not None), device=trainer.strategy.root_device)
        stopping = bool(mean_over_ranks(asked) > 0)
        if stopping or (self.every and trainer.global_step % self.every == 0):
            self._save(trainer)
        if stopping:
            raise _Stopped

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.every:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            # Those of later steps are of a future that this training, resumed from an earlier one, has not taken.
            earlier = sorted(p for p in self.folder.glob("step-*.ckpt") if p.name < path.name)
            for old in self.folder.glob("step-*.ckpt"):
                if old not in (path, *earlier[-1:]):
                    old.unlink(missing_ok=True)


class CheckedFiles(TorchCheckpointIO):
    """Lightning's checkpoints by `contrastive.checkpoints`: ``pl.Trainer(plugins=[CheckedFiles()])``.

    Its own writer goes through the system's temporary folder, which on a full disk destroys the previous file as well.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint; whatever cannot be read without running code has no place in it."""
        save_checkpoint(path, checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint if it is whole, and never runs code, whatever `weights_only` says."""
        return load_checkpoint(path, map_location=map_location or "cpu")


def _csv_logger(out: Path, before: dict[str, Any] | None) -> CSVLogger:
    """A logger that keeps what earlier attempts logged up to the checkpoint; Lightning's deletes it."""
    kept: list[dict[str, str]] = []
    if before is not None and (out / "metrics.csv").is_file():
        step, measured = int(before["global_step"]), int(before["measured_at"])  # what was measured later will be again
        with (out / "metrics.csv").open(newline="", encoding="utf-8") as file:
            # A disk that was full may have cut the last line off.
            whole = (row for row in csv.DictReader(file) if (row.get("step") or "").isdecimal())
            kept = [row for row in whole if int(row["step"]) < (step if row.get("loss") else measured)]
    logger = CSVLogger(out, name="", version="", flush_logs_every_n_steps=50)
    logger.experiment.metrics = kept
    logger.save()
    return logger


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's advice about devices, loggers and workers does not apply here; what goes wrong still raises."""
    names = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\..*")
            warnings.filterwarnings(
                "ignore",
                category=UserWarning,
                message=r".*(Experiment logs directory|num_workers|weights_only|lr_scheduler).*",
            )
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
