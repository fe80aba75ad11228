"""The data sets of the systems: training images, held-out ones to choose by, and test images."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.splits import HELD_OUT, with_held_out
from contrastive.data import ImageData, ImageSplit, cifar10, mnist, stl10
from contrastive.errors import InputError

__all__ = ["SHAPES", "SOURCES", "Images", "everything", "load", "made_up"]

SOURCES = {"cifar10": cifar10, "mnist": mnist, "stl10": stl10}
SHAPES = {"cifar10": (3, 32, 32), "mnist": (1, 28, 28), "stl10": (3, 96, 96)}


@dataclass(frozen=True, eq=False)
class Images:
    """A data set in three parts, or four.

    Arguments:
        train: what encoders and probes are fitted on.
        held_out: further training images; settings are chosen by them.
        test: looked at once, when settings stand.
        unlabelled: what encoders are fitted on instead, where there are such images.
    """

    train: ImageSplit
    held_out: ImageSplit
    test: ImageSplit
    unlabelled: ImageSplit | None = None

    @property
    def of_encoder(self) -> Tensor:
        """The images that an encoder is fitted on; probes need labels, and take those of `train`."""
        return (self.train if self.unlabelled is None else self.unlabelled).images

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
    """Reads a data set and splits its training images; of unlabelled ones a tenth of the labelled are held out.

    Arguments:
        name: of `SOURCES`.
        root: the folder with the files.
        images: how many to train an encoder on, the first ones where they have no labels.
        download: whether to fetch what is missing.

    Raises:
        InputError: for more images than there are, and where files are missing.
    """
    data = whole(name, root, download=download)
    if data.unlabelled is None:
        held_out = min(HELD_OUT, len(data.train) - images)
        return Images(*with_held_out(data, images, held_out), data.test)
    if images > len(data.unlabelled):
        raise InputError(f"{name}: {images} images without labels, but there are {len(data.unlabelled)}")
    held_out = len(data.train) // 10
    unlabelled = ImageSplit(data.unlabelled.images[:images], None)  # still in its file
    return Images(*with_held_out(data, len(data.train) - held_out, held_out), data.test, unlabelled)


def made_up(name: str, images: int) -> Images:
    """Ten noisy patterns of the shape of a data set: enough to see that everything runs.

    Arguments:
        name: of `SOURCES`.
        images: how many to train on.
    """
    shape = SHAPES[name]
    patterns = torch.rand(10, *shape, generator=torch.Generator().manual_seed(7))
    splits = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(images) % 10
        pixels = 0.6 * patterns[labels] + 0.4 * torch.rand(images, *shape, generator=generator)
        splits.append(ImageSplit((255 * pixels).to(torch.uint8), labels))
    return Images(*splits)
