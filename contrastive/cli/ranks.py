"""A file of embeddings shared out to the processes that ``torchrun -m kpair evaluate`` starts."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from contrastive import launch
from contrastive.errors import InputError
from contrastive.neighbours import as_rows
from contrastive.shards import Shard

__all__ = ["own_part", "refuse", "shard"]

T = TypeVar("T", bound=Sequence[Any] | Tensor | None)


def refuse(options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuses what one process alone can do.

    Arguments:
        options: of the command line.
        names: of those that go with one process; given if not None and not ``"never"``.

    Raises:
        InputError: for the first of them that is given.
    """
    given = [name for name in names if options[name] not in (None, "never")]
    if launch.launched() and given:
        raise InputError(f"--{given[0].replace('_', '-')} goes with one process, not with torchrun")


def own_part(rows: T) -> T:
    """This process's share of rows, the first process's first; all of them where there is one.

    Arguments:
        rows: of all, the same in every process; or None.
    """
    if not launch.launched() or rows is None:
        return rows
    rank, world, total = dist.get_rank(), dist.get_world_size(), len(rows)
    share: T = rows[rank * total // world : (rank + 1) * total // world]  # type: ignore[assignment]  # a slice of a T
    return share


def shard(name: str, rows: Tensor) -> Tensor | Shard:
    """This process's share of a file of embeddings; all of it where there is one process.

    Arguments:
        name: of the rows, for messages.
        rows: of the file, all of them are checked: a message names the row of the file.

    Raises:
        InputError: in every process, for rows that are not finite.
    """
    return Shard(own_part(as_rows("kpair evaluate", name, rows))) if launch.launched() else rows
