"""The data sets of the systems: training images, held-out ones to choose by, and test images."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from benchmarks.splits import HELD_OUT, with_held_out
from contrastive.data import ImageData, ImageSplit, cifar10, mnist

__all__ = ["Images", "everything", "load", "made_up"]

SOURCES = {"cifar10": cifar10, "mnist": mnist}
# Shapes of what `load` makes up instead.
MADE_UP = {"cifar10": (3, 32, 32), "mnist": (1, 28, 28)}


@dataclass(frozen=True, eq=False)
class Images:
    """A data set in three parts.

    Arguments:
        train: what encoders and probes are fitted on.
        held_out: further training images; settings are chosen by them.
        test: looked at once, when settings stand.
    """

    train: ImageSplit
    held_out: ImageSplit
    test: ImageSplit

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def everything(images: Images) -> Images:
    """Holds nothing back."""
    return images


@cache
def whole(name: str, root: Path | None, *, download: bool = False) -> ImageData:
    """Reads a data set, once a process.

    Arguments:
        name: of `SOURCES`.
        root: the folder with the files.
        download: whether to fetch what is missing.

    Raises:
        InputError: where files are missing, with how to get them.
    """
    return SOURCES[name](root, download=download)


def load(name: str, root: Path | None, images: int, *, download: bool = False) -> Images:
    """Reads a data set and splits its training images.

    Arguments:
        name: of `SOURCES`.
        root: the folder with the files.
        images: how many to train on.
        download: whether to fetch what is missing.
    """
    data = whole(name, root, download=download)
    held_out = min(HELD_OUT, len(data.train) - images)
    return Images(*with_held_out(data, images, held_out), data.test)


def made_up(name: str, images: int) -> Images:
    """Ten noisy patterns of the shape of a data set: enough to see that everything runs.

    Arguments:
        name: of `SOURCES`.
        images: how many to train on.
    """
    shape = MADE_UP[name]
    patterns = torch.rand(10, *shape, generator=torch.Generator().manual_seed(7))
    splits = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(images) % 10
        pixels = 0.6 * patterns[labels] + 0.4 * torch.rand(images, *shape, generator=generator)
        splits.append(ImageSplit((255 * pixels).to(torch.uint8), labels))
    return Images(*splits)
