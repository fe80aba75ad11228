"""Runs a function on several ranks of torch.distributed (gloo), each a process of its own.

The processes are started once, at the first call, and serve all tests after it; they are forked from a server that has
imported what takes seconds. Each has the variables that torchrun sets.
"""

import atexit
import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from multiprocessing.connection import wait

import torch
import torch.distributed as dist

__all__ = ["RankFailed", "run_ranks"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["contrastive.cli.train", "contrastive.training", "miners", "sklearn.datasets"])
_workers = []  # (process, connection), rank by rank


class RankFailed(Exception):
    """What the first rank that failed said; `rank` is its number."""

    def __init__(self, rank, message):
        super().__init__(f"rank {rank}: {message}")
        self.rank = rank


def run_ranks(function, world, *args, timeout=180.0):
    """Calls ``function(rank, world, *args)`` on `world` ranks of one group and returns what they return.

    Arguments:
        function: module-level, in a module that the processes can import.
        world: how many ranks.
        args: pickled.
        timeout: seconds for all of it; also how long a collective waits for a rank.

    Raises:
        RankFailed: of the rank that failed first; all ranks are gone then, and the next call starts new ones.
    """
    while len(_workers) < world:
        _workers.append(_started(len(_workers)))
    ranks = _workers[:world]
    folder = tempfile.mkdtemp()
    try:
        for rank, (_, connection) in enumerate(ranks):
            connection.send_bytes(pickle.dumps((function, rank, world, args, f"{folder}/store", timeout)))
        return _results(ranks, time.monotonic() + timeout)
    except BaseException:
        _stop()
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _results(ranks, deadline):
    found, waiting = {}, dict(enumerate(ranks))
    while waiting:
        ready = wait([c for _, c in waiting.values()], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailed(min(waiting), f"timed out, as did ranks {sorted(waiting)}")
        for rank, (process, connection) in list(waiting.items()):
            if connection not in ready:
                continue
            try:
                result, message = pickle.loads(connection.recv_bytes())
            except EOFError:
                process.join(5)
                raise RankFailed(rank, f"died with exit code {process.exitcode}") from None
            if message is not None:
                raise RankFailed(rank, message)
            found[rank] = result
            del waiting[rank]
    return [found[rank] for rank in range(len(ranks))]


def _started(rank):
    here, there = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_serve, args=(there,), daemon=True, name=f"rank {rank}")
    process.start()
    there.close()
    return process, here


def _serve(connection):
    torch.set_num_threads(1)
    while True:
        try:
            function, rank, world, args, store, timeout = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
        )
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "tests"}
        os.environ |= {f"{prefix}RANK": str(rank) for prefix in ("", "LOCAL_")}
        os.environ |= {f"{prefix}WORLD_SIZE": str(world) for prefix in ("", "LOCAL_")}
        torch.manual_seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                answer = function(rank, world, *args), None
        except Exception:
            answer = None, traceback.format_exc()
        failed = answer[1] is not None
        if not failed:  # the store's file is removed after the last answer, and what destroys the group still reads it
            dist.destroy_process_group()
        connection.send_bytes(pickle.dumps(answer))
        if failed:  # the others may wait for this rank: its answer must not wait for them
            dist.destroy_process_group()


@atexit.register
def _stop():
    for process, connection in _workers:
        process.kill()
        process.join()
        connection.close()
    _workers.clear()
