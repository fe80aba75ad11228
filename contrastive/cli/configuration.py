"""The options of ``kpair train``: read, checked, completed."""

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser

from contrastive.cli.names import PARTS, miner_of
from contrastive.errors import InputError
from contrastive.options import parse

__all__ = ["read_options"]


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """Reads the options of a training run and refuses whatever can be refused before the data are read.

    Arguments:
        words: of the command line; ``--config FILE`` among them for a configuration that was saved.

    Returns:
        All options, nested.

    Raises:
        InputError: in one sentence.
    """
    config = parse(
        words,
        prog="kpair train",
        description="Trains an encoder on images without labels, evaluates it, and writes a run folder with a report. "
        "The options of a part (--encoder, --projector, --critic, --miner) depend on its name: "
        "kpair train --miner hcl --help shows those of hcl.",
        parts=PARTS,
        add_options=_add_options,
    )
    _check(config)
    return config


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        type=str,
        default="digits",
        metavar="NAME",
        help="digits | mnist | fashion-mnist | cifar10 | stl10 (its labelled images) | omniglot | folder:PATH",
    )
    add(
        "--data-root",
        type=str | None,
        default=os.environ.get("CONTRASTIVE_DATA"),
        help="folder that holds the data sets (default: $CONTRASTIVE_DATA)",
    )
    add("--download", type=bool, default=False, help="fetch a missing data set into the data root")
    add("--limit", type=int | None, default=None, help="training images to use, for training and for fitting probes")
    add("--image-size", type=int, default=64, help="side of the images of a folder:PATH, in pixels")
    add(
        "--corrupt",
        type=Literal["skip", "refuse"],
        default="skip",
        help="what to do with unreadable images of a folder:PATH",
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
    add(
        "--chunk",
        type=int | None,
        default=None,
        help="views to encode at a time, for batches beyond the memory; not with batch normalisation",
    )
    add(
        "--skip-steps",
        type=int,
        default=3,
        help="steps that may be left out because a number in them is not finite; the next one ends the training",
    )
    add("--timeout", type=float, default=1800.0, help="under torchrun, seconds that a rank waits for another")


def _check(config: dict[str, Any]) -> None:
    """Whatever can be refused before the data are read; fills in defaults that depend on other options."""
    if config["epochs"] is None:
        config["epochs"] = 60 if config["data"] == "digits" else 10
    for option in ("epochs", "batch_size", "image_size", "checkpoint_every", "chunk"):
        if config[option] is not None and config[option] < 1:
            raise InputError(f"--{option.replace('_', '-')} is {config[option]}, expected at least 1")
    if config["skip_steps"] < 0:
        raise InputError(f"--skip-steps is {config['skip_steps']}, expected at least 0")
    if not (math.isfinite(config["lr"]) and config["lr"] > 0):
        raise InputError(f"--lr is {config['lr']}, expected a positive number")
    if not (math.isfinite(config["weight_decay"]) and config["weight_decay"] >= 0):
        raise InputError(f"--weight-decay is {config['weight_decay']}, expected a number of at least 0")
    if not (math.isfinite(config["timeout"]) and config["timeout"] > 0):
        raise InputError(f"--timeout is {config['timeout']}, expected a positive number of seconds")
    temperature = config["temperature"]
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"--temperature is {temperature}, expected a positive number")
    if config["accelerator"] == "gpu" and not torch.cuda.is_available():
        raise InputError("--accelerator is gpu, but torch finds none here")
    if config["accelerator"] == "mps" and not torch.backends.mps.is_available():
        raise InputError("--accelerator is mps, but torch finds none here")
    if not 0 <= config["seed"] < 2**32:
        raise InputError(f"--seed is {config['seed']}, expected a number from 0 to 2**32 - 1")
    if config["tensorboard"] and find_spec("tensorboard") is None:
        raise InputError("--tensorboard: the package is not installed: pip install 'kpair[tensorboard]'")
    if config["accelerator"] == "cpu" and config["precision"] == "16-mixed":
        raise InputError("--precision 16-mixed needs an accelerator; on the CPU there is bf16-mixed")
    miner_of(config)  # its options are its own to check, before any data are read
