"""Images cut in two: the upper half is x, the lower half is y."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive.data import ImageSplit, cifar10, fashion_mnist, mnist

__all__ = ["MADE_UP", "NAMES", "Batches", "Halves", "Split", "load", "spread"]

SOURCES = {"mnist": mnist, "fashion-mnist": fashion_mnist, "cifar10": cifar10}
MADE_UP = "made-up"
NAMES = (*SOURCES, MADE_UP)
ROWS = 14  # of each half; of the 32 rows of CIFAR-10 the four in the middle are left out


@dataclass(frozen=True, eq=False)
class Split:
    """One split, pixels as bytes.

    Arguments:
        x: upper halves, flattened.
        y: lower halves, flattened.
        labels: one an image.
    """

    x: Tensor
    y: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def views(
        self, rows: Tensor | slice, *, noise: float = 0.0, coupled: bool = True, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Both halves of some images, in [0, 1].

        Arguments:
            rows: which.
            noise: deviation of what is added to every pixel.
            coupled: whether both halves get the same vector.
            generator: of the noise.
        """
        x, y = self.x[rows].float() / 255, self.y[rows].float() / 255
        if not noise:
            return x, y
        first = noise * torch.randn(x.shape, generator=generator)
        return x + first, y + (first if coupled else noise * torch.randn(y.shape, generator=generator))


@dataclass(frozen=True, eq=False)
class Halves:
    """A data set of halves.

    Arguments:
        name: of the data set.
        shape: channels, height and width of a half.
        train: what encoders and probes are fitted on.
        test: held out.
    """

    name: str
    shape: tuple[int, int, int]
    train: Split
    test: Split

    @property
    def dim(self) -> int:
        """Pixels of a half."""
        channels, height, width = self.shape
        return channels * height * width


@cache
def load(name: str, root: Path | None, *, download: bool = False) -> Halves:
    """Reads a data set, once a process.

    Arguments:
        name: one of `NAMES`; ``made-up`` needs no file.
        root: the folder with the files.
        download: whether to fetch what is missing.

    Raises:
        InputError: where files are missing, with how to get them.
    """
    if name == MADE_UP:
        train, test = _made_up(512, seed=0), _made_up(256, seed=1)
    else:
        data = SOURCES[name](root, download=download)
        train, test = data.train, data.test
    channels, _, width = train.images.shape[1:]
    return Halves(name, (channels, ROWS, width), _cut(train), _cut(test))


def _cut(split: ImageSplit) -> Split:
    return Split(split.images[:, :, :ROWS].flatten(1), split.images[:, :, -ROWS:].flatten(1), split.labels)


def _made_up(count: int, *, seed: int) -> ImageSplit:
    """Ten noisy patterns: enough to see that everything runs."""
    patterns = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    images = 0.6 * patterns[labels] + 0.4 * torch.rand(count, 1, 28, 28, generator=generator)
    return ImageSplit((255 * images).to(torch.uint8), labels)


class Batches:
    """Rows of whole batches, epoch after epoch; knows its place.

    Arguments:
        count: rows of the data.
        size: rows of a batch.
        generator: of the order of every epoch; noise may be drawn from it in between.
    """

    def __init__(self, count: int, size: int, generator: torch.Generator) -> None:
        self.count, self.size, self.generator = count, size, generator
        self._order, self._taken = torch.empty(0, dtype=torch.int64), 0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self._taken + self.size > len(self._order):
            self._order, self._taken = torch.randperm(self.count, generator=self.generator), 0
        self._taken += self.size
        return self._order[self._taken - self.size : self._taken]

    def state_dict(self) -> dict[str, Any]:
        """The order of this epoch, the place in it, and the generator."""
        return {"order": self._order, "taken": self._taken, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._order, self._taken = state["order"], state["taken"]
        self.generator.set_state(state["generator"])


def spread(count: int, rows: int | None) -> slice:
    """So many rows at equal distances: files may be sorted by class.

    Arguments:
        count: of all rows.
        rows: None for all.
    """
    step = max(1, count // (rows or count))
    return slice(0, None if rows is None else rows * step, step)
