"""The K-pair loss, forward and backward, beside the peers: time by turns, memory in processes of their own.

``python -m benchmarks.speed.objectives`` prints the table of `benchmarks/speed/objectives.json` and writes it. All
losses get the same two batches of K embeddings of width 128, a cosine critic at temperature 0.1, and return the
gradients of both. Peers run with the float32 matmul precision that they are faster with, of those that multiply in
float32 on the processor; ours with torch's default, which it leaves alone. One thread is timed by the process's own
clock. Needs the extra `bench`.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.measure import (
    Goal,
    Row,
    Setting,
    best_setting,
    by_turns,
    clock,
    compared,
    context,
    in_a_fresh_process,
    peak_mb,
    show,
    write,
)
from contrastive import Cosine, KPairLoss
from contrastive.gemm import fast_products
from miners import hcl, topk

WIDTH, TEMPERATURE, TILE = 128, 0.1, 512
Loss = Callable[[Tensor, Tensor], Tensor]


def plain_one(x: Tensor, y: Tensor) -> Tensor:
    """One direction, as anybody writes it."""
    return F.cross_entropy(F.normalize(x) @ F.normalize(y).T / TEMPERATURE, torch.arange(len(x)))


def plain_both(x: Tensor, y: Tensor) -> Tensor:
    """Both directions, as in CLIP."""
    scores, labels = F.normalize(x) @ F.normalize(y).T / TEMPERATURE, torch.arange(len(x))
    return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2


def plain_views(x: Tensor, y: Tensor) -> Tensor:
    """NT-Xent, as in SimCLR."""
    z = F.normalize(torch.cat([x, y]))
    scores = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.arange(len(z)).roll(len(x)))


def pml(name: str) -> Loss:
    """A loss of pytorch-metric-learning: x against y, every row a class of its own."""
    from pytorch_metric_learning import losses

    criterion = getattr(losses, name)(temperature=TEMPERATURE)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        labels = torch.arange(len(x))
        return criterion(x, labels, ref_emb=y, ref_labels=labels.clone())

    return loss


def pml_views(x: Tensor, y: Tensor) -> Tensor:
    """The NT-Xent of pytorch-metric-learning, of two views."""
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))(x, y)


def lightly(x: Tensor, y: Tensor) -> Tensor:
    """The NT-Xent of lightly."""
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)(x, y)


def info_nce(x: Tensor, y: Tensor) -> Tensor:
    """The one direction of info-nce-pytorch."""
    from info_nce import InfoNCE

    return InfoNCE(temperature=TEMPERATURE)(x, y)


def products(x: Tensor, y: Tensor, *, count: int) -> None:
    """The bare matrix products that a streamed loss needs, tile by tile: four for both directions, three for one."""
    dx, dy = torch.zeros_like(x), torch.zeros_like(y)
    tile = torch.empty(min(TILE, len(x)), min(TILE, len(y)))
    with torch.no_grad(), fast_products(x, len(x) * len(y) * WIDTH):
        for i in range(0, len(x), TILE):
            rows = slice(i, i + TILE)
            for j in range(0, len(y), TILE):
                columns = slice(j, j + TILE)
                for _ in range(count - 2):
                    torch.mm(x[rows], y[columns].T, out=tile)
                dx[rows].addmm_(tile, y[columns])
                dy[columns].addmm_(tile.T, x[rows])


def criterion(**options: object) -> Loss:
    """Ours."""
    return KPairLoss(Cosine(TEMPERATURE), **options)  # type: ignore[arg-type]  # names of options, from the table below


# Work: {name: (loss, largest K it is run at)}. Ours come first; what is compiled is compiled for every K.
WORKS: dict[str, dict[str, tuple[Callable[[], Loss], int]]] = {
    "one direction": {
        "kpair": (lambda: criterion(symmetric=False), 32768),
        "kpair, HCL": (lambda: criterion(symmetric=False, miner=hcl(1.0), tiled=True), 8192),
        "kpair, top 16": (lambda: criterion(symmetric=False, miner=topk(16), tiled=True), 8192),
        "plain torch": (lambda: plain_one, 8192),
        "info-nce-pytorch": (lambda: info_nce, 8192),
        "PML SupCon": (lambda: pml("SupConLoss"), 8192),
        "PML NTXent": (lambda: pml("NTXentLoss"), 512),
    },
    "both directions": {
        "kpair, stored": (lambda: criterion(tiled=False), 8192),
        "kpair, tiled": (lambda: criterion(tiled=True), 32768),
        "plain torch": (lambda: plain_both, 8192),
        "plain torch, compiled": (lambda: torch.compile(plain_both, dynamic=False), 8192),
    },
    "NT-Xent": {
        "kpair, stored": (lambda: criterion(intra_view=True, tiled=False), 2048),
        "kpair, tiled": (lambda: criterion(intra_view=True, tiled=True), 32768),
        "plain torch": (lambda: plain_views, 8192),
        "lightly": (lambda: lightly, 8192),
        "PML NTXent": (lambda: pml_views, 128),
    },
}
ALONE = "the products alone"
GOALS = {
    ("one direction", 128, "kpair", "plain torch"): [Goal(1 / 1.1)],
    ("both directions", 128, "kpair, stored", "plain torch"): [Goal(1 / 1.1)],
    ("NT-Xent", 128, "kpair, stored", "plain torch"): [Goal(1 / 1.1)],
    ("one direction", 512, "kpair", "PML NTXent"): [Goal(1000)],
    ("both directions", 2048, "kpair, stored", "plain torch"): [Goal(3.5)],
    ("one direction", 8192, "kpair", "info-nce-pytorch"): [Goal(3)],
    ("one direction", 8192, "kpair", "PML SupCon"): [Goal(9)],
    ("one direction", 8192, "kpair, HCL", "kpair"): [Goal(1 / 2)],
    ("one direction", 8192, "kpair, top 16", "kpair"): [Goal(1 / 2)],
    ("both directions", 8192, "kpair, tiled", "plain torch"): [Goal(5), Goal(40, of="memory")],
    ("both directions", 8192, "kpair, tiled", "plain torch, compiled"): [Goal(2.3)],
    ("both directions", 8192, "kpair, tiled", ALONE): [Goal(1 / 1.25)],
    ("NT-Xent", 8192, "kpair, tiled", "lightly"): [Goal(9), Goal(100, of="memory")],
}
# Both directions at K = 32768 within so many megabytes.
LARGE, LARGE_MB = 32768, 64.0
# Memory is measured from this K on: that of smaller batches is lost in what the libraries take.
SMALLEST_MEASURED = 2048


def batches(k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(k, WIDTH, generator=generator)
    y = x + torch.randn(k, WIDTH, generator=generator)  # positives at a cosine of about 0.7
    return x.requires_grad_(), y.requires_grad_()


def step(loss: Loss, x: Tensor, y: Tensor) -> None:
    """Forward and backward into gradients that are there already."""
    for z in (x, y):
        if z.grad is not None:
            z.grad.zero_()
    loss(x, y).backward()


def peak(work: str, name: str, k: int) -> float:
    """Megabytes beyond the inputs and their gradients, in this process; the libraries are warm."""
    loss = WORKS[work][name][0]()
    x, y = batches(k)
    for z in (x, y):
        z.grad = torch.zeros_like(z)
    if "compiled" in name:
        step(loss, x, y)
    else:
        small = batches(512 if name.startswith("kpair") else 64)  # both libraries of matrix products; PML is cubic
        for _ in range(2):
            step(loss, *small)
    return peak_mb(partial(step, loss, x, y))


def measured(work: str, k: int, *, seconds: float, memory: bool) -> Iterator[Row]:
    """All comparisons of one work at one K."""
    x, y = batches(k)
    names = [name for name, (_, largest) in WORKS[work].items() if k <= largest]
    entries = {}
    for name in names:
        run = partial(step, WORKS[work][name][0](), x, y)
        setting = Setting(run, clock=clock())
        entries[name] = setting.lasting() if name.startswith("kpair") else best_setting(setting)
    count = 3 if work == "one direction" else 4
    entries[ALONE] = Setting(partial(products, x.detach(), y.detach(), count=count), clock=clock()).lasting()
    times = by_turns(entries, seconds=seconds)
    megabytes: dict[str, float | None] = {}
    if memory:
        arguments = ("benchmarks.speed.objectives", "--peak")
        megabytes = {name: in_a_fresh_process(*arguments, work, name, str(k)) for name in names}
    for ours in (name for name in names if name.startswith("kpair")):
        for peer, setting in entries.items():
            goals = GOALS.get((work, k, ours, peer), [])
            # Among ours only what a goal compares.
            if peer == ours or (peer.startswith("kpair") and not goals) or (work == "NT-Xent" and peer == ALONE):
                continue
            label = peer if setting.precision == "highest" else f"{peer} ({setting.precision})"
            yield from compared(f"{work}, K = {k}", ours, peer, times, megabytes, goals, label=label)


def largest(times_of: int) -> Iterator[Row]:
    """Both directions beyond what a matrix of scores allows: the memory at K = 32768, and time as K grows fourfold."""
    milliseconds = {}
    for k in (LARGE, times_of * LARGE) if times_of > 1 else (LARGE,):
        x, y = batches(k)
        run = Setting(partial(step, WORKS["both directions"]["kpair, tiled"][0](), x, y), clock=clock())
        milliseconds[k] = statistics.median(run.timed() for _ in range(3 if k == LARGE else 1))
        megabytes = in_a_fresh_process(
            "benchmarks.speed.objectives", "--peak", "both directions", "kpair, tiled", str(k)
        )
        first = k == LARGE
        yield Row(
            work=f"both directions, K = {k}",
            ours="kpair, tiled",
            peer=None if first else f"{times_of**2} times the time of K = {LARGE}",
            ours_ms=milliseconds[k],
            peer_ms=None if first else milliseconds[LARGE] * times_of**2,
            ratio=None,
            spread=None,
            ours_mb=megabytes,
            peer_mb=None,
            goal=f"within {LARGE_MB:g} MB" if first else None,
            met=megabytes is not None and megabytes <= LARGE_MB if first else None,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("objectives.json"), metavar="FILE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sizes", type=lambda s: [int(k) for k in s.split(",")], default=[128, 512, 2048, 8192])
    parser.add_argument("--seconds", type=float, default=20.0, help="rounds of a work at a size go on for so long")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--largest", type=int, default=1, metavar="N", help=f"also run K = N * {LARGE}, 4 for 131072")
    parser.add_argument("--peak", nargs=3, metavar=("WORK", "NAME", "K"), help="print the megabytes of one entry")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        work, name, k = options.peak
        print(peak(work, name, int(k)))
        return
    rows: list[Row] = []
    about = context(options.threads)

    def add(found: Iterator[Row]) -> None:
        for row in found:
            rows.append(row)
            print(f"{row.work}: {row.ours} beside {row.peer}", flush=True)
        write(rows, options.json, about)

    for k in options.sizes:
        for work in WORKS:
            torch._dynamo.reset()
            add(measured(work, k, seconds=options.seconds, memory=not options.no_memory and k >= SMALLEST_MEASURED))
    if not options.no_memory:
        add(largest(options.largest))
    show(rows, f"forward and backward, d = {WIDTH}, temperature {TEMPERATURE}, {options.threads} threads")


if __name__ == "__main__":
    main()
