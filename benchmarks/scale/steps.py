"""Steps of the loss over ranks, each a process with one thread: time, memory, and bytes on the loopback device."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from benchmarks.scale.wire import gather_bytes, ring_bytes
from benchmarks.speed.measure import peak_mb
from contrastive import Cosine, GlobalBatch, KPairLoss

__all__ = ["measured"]

SCHEMES = ("gather", "ring")


def measured(world: int, pairs: int, width: int, rounds: int) -> list[dict[str, object]]:
    """A row for each scheme, of ranks in processes of their own."""
    timed = _on_ranks(world, _times, pairs, width, rounds)
    return [
        {
            "scheme": name,
            "world": world,
            "pairs": pairs,
            "width": width,
            "ms": statistics.median(timed[name]["ms"]),
            "quartiles": statistics.quantiles(timed[name]["ms"], n=4)[::2],
            "mb": _on_ranks(world, _peak, pairs, width, name),
            "bytes": statistics.median(timed[name]["bytes"]),
            "formula": _formula(name)(world, pairs, width),
        }
        for name in SCHEMES
    ]


def _formula(name: str) -> Callable[[int, int, int], int]:
    return ring_bytes if name == "ring" else partial(gather_bytes, scatters=False)


def _on_ranks(world: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """What rank 0 returns."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (world, folder, work, arguments), nprocs=world)
        return json.loads((Path(folder) / "found").read_text())


def _rank(rank: int, world: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(rank)
    found = work(*arguments)
    dist.barrier()
    if rank == 0:
        (Path(folder) / "found").write_text(json.dumps(found))
    dist.destroy_process_group()


def _step(name: str, x: Tensor, y: Tensor) -> None:
    x.grad = y.grad = None
    GlobalBatch(KPairLoss(Cosine(0.1), tiled=True), ring=name == "ring")(x, y).backward()


def _inputs(pairs: int, width: int) -> list[Tensor]:
    return [torch.randn(pairs, width, requires_grad=True) for _ in range(2)]


def _peak(pairs: int, width: int, name: str) -> float:
    """Megabytes beyond inputs and their gradients, in a process that has taken no other step but a small one."""
    _step(name, *_inputs(8, width))
    x, y = _inputs(pairs, width)
    dist.barrier()
    return peak_mb(lambda: _step(name, x, y)) - 2 * pairs * width * 4 / 1e6


def _times(pairs: int, width: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds and bytes of every step, the schemes by turns."""
    x, y = _inputs(pairs, width)
    found: dict[str, dict[str, list[float]]] = {name: {"ms": [], "bytes": []} for name in SCHEMES}
    for name in SCHEMES:
        _step(name, x, y)  # warms up
    for _ in range(rounds):
        for name, figures in found.items():
            dist.barrier()
            before, start = _loopback(), time.perf_counter()
            _step(name, x, y)
            dist.barrier()
            figures["ms"].append(1e3 * (time.perf_counter() - start))
            figures["bytes"].append(_loopback() - before)
    return found


def _loopback() -> int:
    """Bytes that the loopback device has received."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[0])
    raise SystemExit("bytes on the wire are read from /proc/net/dev, which this machine does not have")
