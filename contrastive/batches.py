"""Shuffled batches of images that live in memory: the order is a pure function of seed and epoch."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

__all__ = ["Batches", "derived_seed"]


def derived_seed(*parts: int) -> int:
    """Mixes integers into a seed, so that (seed, step) and (seed + 1, step - 1) share nothing.

    >>> derived_seed(0, 1) != derived_seed(1, 0)
    True
    """
    mixed = 0x9E3779B97F4A7C15
    for part in parts:  # the finaliser of splitmix64, over each part
        mixed = (mixed + part + 0x9E3779B97F4A7C15) % 2**64
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63


class Batches:
    """Creates an iterable of ``(ids, images)``: each epoch is a new shuffle, its last incomplete batch left out.

    It is stateful in the sense of Lightning (`state_dict`, `load_state_dict`): a run that is killed in the middle of
    an epoch goes on with the very batch it would have seen. One process, no workers: indexing a tensor in memory
    takes less time than handing a batch from one process to another.

    Arguments:
        images: uint8, in memory.
        batch_size: images a batch; at most ``len(images)``.
        seed: of the shuffles.
    """

    def __init__(self, images: UInt8[Tensor, "n c h w"], batch_size: int, *, seed: int) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0  # the epoch under way, or the next one
        self.given = 0  # batches of it handed out
        self.seconds = 0.0  # spent here rather than in training

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.images), generator=generator)
        while self.given < len(self):
            start = time.perf_counter()
            ids = order[self.given * self.batch_size : (self.given + 1) * self.batch_size]
            batch = ids, self.images[ids]
            self.seconds += time.perf_counter() - start
            self.given += 1
            if self.given == len(self):
                # Said before the last batch is handed out: a checkpoint after it belongs to the next epoch.
                self.epoch, self.given = self.epoch + 1, 0
                yield batch
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position: epoch and batches handed out."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved position."""
        self.epoch, self.given = state["epoch"], state["given"]
