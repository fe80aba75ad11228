"""The generators that a training draws from, torch's, NumPy's and Python's: seeded, kept, brought back."""

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from contrastive.collectives import world_size

__all__ = ["drawing_from", "random_state", "seed_everything", "set_random_state"]


def seed_everything(seed: int) -> None:
    """Seeds torch (all devices), NumPy's global generator and Python's.

    Arguments:
        seed: at least 0.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # the global one, which a caller's code may draw from
    random.seed(seed)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Draws within the block come from a seed, those after it go on as if it had not been; on the CPU.

    Arguments:
        seed: at least 0.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> with drawing_from(3):
        ...     inside = torch.rand(1)
        >>> after = torch.rand(1)
        >>> bool(after == torch.rand(1, generator=torch.Generator().manual_seed(0)))
        True
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def random_state() -> dict[str, Any]:
    """The state of all generators on all ranks, in tensors and plain values, for a checkpoint.

    Where `torch.distributed` runs, every rank must call, and each gets the states of all.

    Returns:
        A dict that `set_random_state` takes and that `torch.load(weights_only=True)` can read.
    """
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    here: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    ranks: list[Any] = [here]
    if world_size() > 1:
        ranks = [None] * world_size()
        dist.all_gather_object(ranks, here)
    return {"ranks": ranks}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Brings back what `random_state` gave, each rank its own; of another number of ranks it says so and goes on.

    Arguments:
        state: of `random_state`.
    """
    ranks, world = state["ranks"], world_size()
    rank = dist.get_rank() if world > 1 else 0
    if len(ranks) != world:
        warnings.warn(
            f"saved by {len(ranks)} rank(s) and continued by {world}: what follows is not bit for bit what it would "
            "have been",
            stacklevel=2,
        )
        if rank >= len(ranks):
            return  # a rank that was not there keeps the generators it has
    own = ranks[rank]
    # A view into a larger tensor, as a loader may give, crashes torch (2.14): hence clones.
    torch.set_rng_state(own["torch"].clone())
    name, keys, *rest = own["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss = own["python"]
    random.setstate((version, tuple(numbers), gauss))
    if len(own["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([device.clone() for device in own["cuda"]])
