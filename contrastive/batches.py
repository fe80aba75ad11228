"""Shuffled batches whose order is a pure function of seed and epoch: of images in memory, and for any `DataLoader`."""

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from contrastive.randomness import drawing_from

__all__ = ["Batches", "EpochBatches", "Seeded", "derived_seed", "epoch_batches"]

Batch = TypeVar("Batch")


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


def epoch_batches(
    length: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1, start: int = 0
) -> Iterator[Int64[Tensor, " batch"]]:
    """The batches of an epoch from one of them on: a pure function of its arguments.

    The epoch is a shuffle of all items, cut into global batches of ``world * batch_size``, of which every rank takes
    its part: the same items meet in a step, however many ranks share the global batch. What is left at the end is left
    out.

    Arguments:
        length: how many items there are.
        batch_size: items a batch of one rank.
        seed: of the shuffles.
        epoch: which of them.
        rank: whose part.
        world: how many ranks there are.
        start: how many batches are passed over.

    Example:
        >>> [ids.tolist() for ids in epoch_batches(7, 3, seed=0, epoch=0)]
        [[4, 6, 3], [0, 1, 5]]
        >>> [ids.tolist() for ids in epoch_batches(7, 1, seed=0, epoch=0, rank=2, world=3, start=1)]
        [[5]]
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
    order = torch.randperm(length, generator=generator)
    for step in range(start, length // (batch_size * world)):
        first = (step * world + rank) * batch_size
        yield order[first : first + batch_size]


class Batches:
    """Creates an iterable of ``(ids, images)``: each epoch is a new shuffle, its last incomplete batch left out.

    It is stateful in the sense of Lightning (`state_dict`, `load_state_dict`): a run that is killed in the middle of
    an epoch goes on with the very batch it would have seen. One process, no workers: indexing a tensor in memory
    takes less time than handing a batch from one process to another.

    Arguments:
        images: uint8, in memory.
        batch_size: images a batch; at most ``len(images)``.
        seed: of the shuffles.
        rank: whose part of every batch is handed out.
        world: how many ranks share a batch; parts differ by one at most.
    """

    def __init__(
        self, images: UInt8[Tensor, "n c h w"], batch_size: int, *, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.rank, self.world = rank, world
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0  # the epoch under way, or the next one
        self.given = 0  # batches of it handed out
        self.seconds = 0.0  # spent here rather than in training

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = epoch_batches(len(self.images), self.batch_size, seed=self.seed, epoch=self.epoch, start=self.given)
        start = time.perf_counter()
        for whole in batches:
            ids = whole.tensor_split(self.world)[self.rank]
            batch = ids, self.images[ids]
            self.seconds += time.perf_counter() - start
            # Said before the batch is handed out: a checkpoint after the last one belongs to the next epoch.
            self.epoch, self.given = _after(self.epoch, self.given, len(self))
            yield batch
            start = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The position: epoch and batches handed out."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved position."""
        self.epoch, self.given = state["epoch"], state["given"]


class EpochBatches(Sampler[list[Any]]):
    """Creates a batch sampler for any `DataLoader`, with or without workers, that a killed run goes on with exactly.

    Its order is that of `epoch_batches`. Workers ask for batches ahead of the training, so the sampler cannot know how
    far that is: `counted` counts what was handed out, and `state_dict` says it.

    Arguments:
        length: how many items the data set has.
        batch_size: items a batch of one rank.
        seed: of the shuffles.
        rank: of this process, such as `torch.distributed.get_rank`.
        world: how many processes there are.
        seeded: whether to ask the data set for ``(index, seed)`` and not for ``index``: for `Seeded`.

    Raises:
        ValueError: for a batch that the items do not fill, and a rank that is none.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampler = EpochBatches(6, 2, seed=0)
        >>> loader = DataLoader(range(6), batch_sampler=sampler)
        >>> while sampler.epoch < 2:
        ...     for batch in sampler.counted(loader):
        ...         pass  # a step; save_checkpoint(path, {"sampler": sampler.state_dict(), ...})
        >>> sampler.state_dict()["epoch"]
        2
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, seeded: bool = False
    ) -> None:
        if not 1 <= batch_size * world <= length:
            raise ValueError(
                f"EpochBatches: {world} rank(s) with batches of {batch_size} take {world * batch_size} items a step, "
                f"expected 1 to {length}, the number of items"
            )
        if not 0 <= rank < world:
            raise ValueError(f"EpochBatches: rank is {rank}, expected 0 to {world - 1}")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.seeded = rank, world, seeded
        self.epoch = 0  # the epoch under way, or the next one
        self.given = 0  # batches of it that the training has taken

    def __len__(self) -> int:
        return self.length // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[Any]]:
        batches = epoch_batches(
            self.length, self.batch_size, seed=self.seed, epoch=self.epoch, rank=self.rank, world=self.world,
            start=self.given,
        )  # fmt: skip
        epoch = self.epoch  # of this iterator: `counted` moves on while workers still ask
        for ids in batches:
            items = ids.tolist()
            yield [(item, derived_seed(self.seed, epoch, item)) for item in items] if self.seeded else items

    def counted(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of a loader that are left of this epoch; each counts as taken when it is handed out.

        The global generator is as it was when the first is asked for: a `DataLoader` draws from it, which a resumed
        run would do once more. What it draws, the seeds of its workers, is another for every epoch.

        Arguments:
            loader: a `DataLoader` with this sampler as its `batch_sampler`.
        """
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(derived_seed(self.seed, self.epoch, self.given, self.rank))
        batches = iter(loader)
        torch.set_rng_state(before)
        for batch in batches:
            self.epoch, self.given = _after(self.epoch, self.given, len(self))
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position, and the sizes that it is counted in."""
        return {"epoch": self.epoch, "given": self.given, "batch_size": self.batch_size, "world": self.world}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a saved position.

        With another number of ranks or another batch size a warning says that the run is not bit for bit the same: it
        goes on at the global batch that holds the first item which was not taken.

        Arguments:
            state: of `state_dict`.
        """
        before, now = state["batch_size"] * state["world"], self.batch_size * self.world
        self.epoch, self.given = state["epoch"], state["given"] * before // now
        if self.given >= len(self):  # the items that are left make no batch
            self.epoch, self.given = self.epoch + 1, 0
        if (state["batch_size"], state["world"]) != (self.batch_size, self.world):
            warnings.warn(
                f"saved by {state['world']} rank(s) with batches of {state['batch_size']} and continued by "
                f"{self.world} with batches of {self.batch_size}: what follows is not bit for bit what it would have "
                "been",
                stacklevel=2,
            )


class Seeded(Dataset[Any]):
    """Wraps a data set that draws (augmentations, crops): what an item draws depends on seed, epoch and item alone.

    Neither the number of workers nor a resume in the middle of an epoch changes it; for ``EpochBatches(seeded=True)``.

    Arguments:
        dataset: with `__len__` and `__getitem__`; it may draw from torch's, NumPy's and Python's global generators.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> class Noisy(Dataset):
        ...     def __getitem__(self, index): return index + torch.rand(())
        ...     def __len__(self): return 4
        >>> loader = DataLoader(Seeded(Noisy()), batch_sampler=EpochBatches(4, 4, seeded=True))
        >>> torch.equal(*[next(iter(loader)) for _ in range(2)])
        True
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # a Dataset need not have a length, this one does

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        with drawing_from(seed):
            return self.dataset[index]


def _after(epoch: int, given: int, length: int) -> tuple[int, int]:
    """Where one more batch leads: after the last to the next epoch."""
    return (epoch, given + 1) if given + 1 < length else (epoch + 1, 0)
