"""Processes that torchrun started: they meet, agree on what they are about to do, and say once what went wrong.

Started alone, a process is rank 0 of 1 and everything here is as if it were not there.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from contrastive.collectives import Group, world_size
from contrastive.errors import InputError

__all__ = [
    "RefusedByAll",
    "agree",
    "by_first",
    "first",
    "joined",
    "launched",
    "of_all",
    "of_another_rank",
    "restarted",
    "together",
]

T = TypeVar("T")


class RefusedByAll(InputError):
    """What every rank refuses at the same time, so that one of them may say it."""


def launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


def first() -> bool:
    """Whether this is the rank that writes files and speaks: 0, or the only one."""
    return not launched() or os.environ["RANK"] == "0"


def restarted() -> bool:
    """Whether torchrun started this process again, after a rank had failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextmanager
def joined(timeout: float = 1800.0) -> Iterator[None]:
    """Holds the group of all ranks; what other ranks than the first print is not shown.

    Under ``torchrun --max-restarts`` a restarted rank finds the addresses of dead ones in the launcher's store, and
    never joins (pytorch issue 135712) unless the variable ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` is set. Here every
    attempt has keys of its own, so that restarts work without; a warning says what other programs need.

    Arguments:
        timeout: seconds that a rank waits for another one, in any exchange.

    Example:
        >>> with joined():
        ...     first()
        True
    """
    if not launched() or world_size() > 1:
        yield
        return
    if first() and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and not _separate_store():
        warnings.warn(
            "torchrun may restart this run, and TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is not set: this program restarts "
            "without it, but most do not",
            stacklevel=3,
        )
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    wait = timedelta(seconds=timeout)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store, _, _ = next(rendezvous("env://", rank, world, timeout=wait))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(store=PrefixStore(f"attempt-{attempt}", store), rank=rank, world_size=world, timeout=wait)
    with contextlib.nullcontext() if first() else contextlib.redirect_stdout(io.StringIO()):
        yield
    dist.destroy_process_group()  # not after a failure: the others may be gone, and so is this process soon


def together(function: Callable[[], T], group: Group = None) -> T:
    """Calls a function on every rank; what one rank refuses, all refuse, so that none is left waiting.

    Arguments:
        function: may raise `InputError`.
        group: of ranks; None: all.

    Raises:
        RefusedByAll: on every rank; names the ranks, where not all have failed.
    """
    result, failure = None, None
    try:
        result = function()
    except InputError as error:
        failure = str(error)
    failures = of_all(failure, group)
    failed = [rank for rank, message in enumerate(failures) if message is not None]
    if failed:
        where = "" if len(failed) == len(failures) else f"rank {', '.join(map(str, failed))}: "
        raise RefusedByAll(f"{where}{failures[failed[0]]}")
    return result  # type: ignore[return-value]  # there was no failure


def by_first(function: Callable[[], T]) -> T:
    """Calls a function on the first rank alone and gives all ranks what it returned, or refused.

    Arguments:
        function: may raise `InputError`; what it returns is pickled.

    Raises:
        RefusedByAll: on every rank.
    """
    outcome: list[Any] = [None, None]
    if first():
        try:
            outcome[0] = function()
        except InputError as error:
            outcome[1] = str(error)
    if world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    result, failure = outcome
    if failure is not None:
        raise RefusedByAll(failure)
    return result  # type: ignore[no-any-return]  # a T, as the function promised


def agree(facts: Mapping[str, Any]) -> None:
    """Compares what the ranks are about to do, before the first step.

    Arguments:
        facts: by name: options, versions, checksums of data.

    Raises:
        RefusedByAll: on every rank, where they differ; names what, and who has which.
    """
    ranks = of_all(dict(facts))
    for name in ranks[0]:
        values = [repr(other.get(name)) for other in ranks]
        if len(set(values)) > 1:
            shown = ", ".join(f"{value[:60]} on rank {values.index(value)}" for value in dict.fromkeys(values))
            raise RefusedByAll(f"the ranks differ in {name}: {shown}; expected the same on all")


def of_another_rank(error: BaseException) -> bool:
    """Whether an error says no more than that another rank has gone: its own message has the cause.

    Arguments:
        error: that ended this rank.
    """
    if world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    words = ("Connection", "connection", "NCCL", "Timed out", "timed out")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def of_all(value: T, group: Group = None) -> list[T]:
    """An object of every rank, rank 0 first.

    Arguments:
        value: of this rank; it is pickled.
        group: of ranks; None: all.

    Example:
        >>> of_all("here")
        ['here']
    """
    if world_size(group) == 1:
        return [value]
    found: list[Any] = [None] * world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def _separate_store() -> bool:
    return os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") == "1"
