"""Our miners beside those of pytorch-metric-learning (PML): time by turns, memory in processes of their own.

``python -m benchmarks.speed.miners`` prints the table of `benchmarks/speed/miners.json` and writes it; with
``--memory`` it takes the memory of ours again and leaves the rest of the file as it is. All mine the
same labelled batch of B embeddings of width 128, four of every class, ours through
`contrastive.interop.as_pml_miner`: what is timed is ``miner(embeddings, labels)``, from embeddings to triplets, three
positives an anchor. PML's `BatchHardMiner` returns one positive an anchor, and its `MultiSimilarityMiner` pairs. Peers
run with the float32 matmul precision that they are faster with; ours with torch's default, which it leaves alone. Needs
the extra `bench`.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning import miners as pml
from torch import Tensor

from benchmarks.speed.measure import (
    Goal,
    Row,
    Setting,
    best_setting,
    by_turns,
    compared,
    context,
    in_a_fresh_process,
    peak_mb,
    show,
    write,
)
from contrastive.gemm import fast_products
from contrastive.interop import as_pml_miner
from miners import distance_weighted, hardest, hcl, semihard, topk

WIDTH, PER_CLASS, STRIP = 128, 4, 256
Mine = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def products(x: Tensor, labels: Tensor) -> None:
    """The bare matrix product that any exact miner needs, strip by strip."""
    strip = torch.empty(min(STRIP, len(x)), len(x))
    with fast_products(x, len(x) ** 2 * WIDTH):
        for i in range(0, len(x), STRIP):
            torch.mm(x[i : i + STRIP], x.T, out=strip[: len(x) - i])


# Work: {name: (miner, largest B it is run at)}. Ours come first.
WORKS: dict[str, dict[str, tuple[Callable[[], Mine], int]]] = {
    "hardest": {
        "kpair hardest": (lambda: as_pml_miner(hardest()), 16384),
        "PML BatchHard": (pml.BatchHardMiner, 4096),
    },
    "hard": {
        "kpair top 16": (lambda: as_pml_miner(topk(16)), 16384),
        "PML MultiSimilarity": (pml.MultiSimilarityMiner, 4096),
        "PML TripletMargin": (lambda: pml.TripletMarginMiner(type_of_triplets="hard"), 1024),
    },
    "semi-hard": {
        "kpair semi-hard": (lambda: as_pml_miner(semihard(0.2)), 4096),
        "PML TripletMargin": (lambda: pml.TripletMarginMiner(type_of_triplets="semihard"), 1024),
    },
    "distance-weighted": {
        "kpair distance-weighted, drawn": (lambda: as_pml_miner(distance_weighted(1.0, WIDTH, k=1)), 4096),
        "kpair distance-weighted, soft": (lambda: as_pml_miner(distance_weighted(1.0, WIDTH)), 4096),
        "PML DistanceWeighted": (pml.DistanceWeightedMiner, 1024),
    },
    "soft weights": {
        "kpair HCL": (lambda: as_pml_miner(hcl(5.0)), 4096),
    },
}
ALONE = "the product alone"
GOALS = {
    ("hardest", 1024, "kpair hardest", "PML BatchHard"): [Goal(9)],
    ("hardest", 4096, "kpair hardest", "PML BatchHard"): [Goal(15)],
    ("hard", 1024, "kpair top 16", "PML TripletMargin"): [Goal(150)],
    ("hard", 4096, "kpair top 16", "PML MultiSimilarity"): [Goal(20)],
    ("distance-weighted", 1024, "kpair distance-weighted, drawn", "PML DistanceWeighted"): [Goal(50)],
}
# From this B on memory is measured, and held to a strip of 256 rows, times so many copies, in floats, and to the
# triplets in a buffer that doubles. That of smaller batches is lost in what the libraries take.
SMALLEST_MEASURED, COPIES = 4096, 4
# Whose triplets at the margin that is timed are larger than the matrix that is not to be formed: fewer of them.
FEWER = {"kpair semi-hard": lambda: as_pml_miner(semihard(0.01))}


def batch(b: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(b) // PER_CLASS
    x = torch.randn(b, WIDTH, generator=generator)
    # Classes overlap: cosines of about 0.4 within them, so that hard and semi-hard negatives are there to be found.
    return x + 0.8 * torch.randn(b // PER_CLASS, WIDTH, generator=generator)[labels], labels


def peak(work: str, name: str, b: int) -> float:
    """Megabytes beyond the batch, the triplets included, in this process; the libraries are warm."""
    mine = FEWER.get(name, WORKS[work][name][0])()
    small = batch(512 if name.startswith("kpair") else 64)
    for _ in range(2):
        mine(*small)
    return peak_mb(partial(mine, *batch(b)))


def memory(work: str, name: str, b: int) -> float | None:
    return in_a_fresh_process("benchmarks.speed.miners", "--peak", work, name, str(b))


def measured(work: str, b: int, *, seconds: float, with_memory: bool) -> Iterator[Row]:
    """All comparisons of one work at one B."""
    x, labels = batch(b)
    names = [name for name, (_, largest) in WORKS[work].items() if b <= largest]
    entries = {}
    for name in names:
        run = partial(WORKS[work][name][0](), x, labels)
        entries[name] = Setting(run).lasting() if name.startswith("kpair") else best_setting(Setting(run))
    if not entries:
        return
    entries[ALONE] = Setting(partial(products, x, labels)).lasting()
    times = by_turns(entries, seconds=seconds)
    megabytes = {name: memory(work, name, b) for name in names} if with_memory else {}
    for ours in (name for name in names if name.startswith("kpair")):
        for peer, setting in entries.items():
            if peer.startswith("kpair"):
                continue
            goals = GOALS.get((work, b, ours, peer), [])
            label = peer if setting.precision == "highest" else f"{peer} ({setting.precision})"
            beside = {} if ours in FEWER else megabytes  # another margin than the one that is timed
            yield from compared(f"{work}, B = {b}", ours, peer, times, beside, goals, label=label)
        if ours in megabytes:
            yield within(work, ours, b, megabytes[ours])


def within(work: str, ours: str, b: int, used: float | None) -> Row:
    """The goal of the memory, which is less than the matrix of scores alone: to form it is to miss the goal."""
    triplets = len(FEWER.get(ours, WORKS[work][ours][0])()(*batch(b))[0])
    allowed, matrix = (COPIES * STRIP * b * 4 + 2 * triplets * 3 * 8) / 1e6, b * b * 4 / 1e6
    assert allowed < matrix
    return Row(
        work=f"{work}, B = {b}",
        ours=ours + (", margin 0.01" if ours in FEWER else ""),
        peer=None,
        ours_ms=None,
        peer_ms=None,
        ratio=None,
        spread=None,
        ours_mb=used,
        peer_mb=None,
        goal=f"within {allowed:.0f} MB: {COPIES} strips, {triplets} triplets (matrix: {matrix:.0f})",
        met=used is not None and used <= allowed,
    )


def with_memory_again(written: list[dict[str, Any]], about: dict[str, object]) -> Iterator[dict[str, Any]]:
    """The rows of a file, those of the memory of ours measured again in their places."""
    for row in written:
        if row["peer"] is not None:
            yield row
            continue
        work, b = row["work"].split(", B = ")
        ours = row["ours"].split(", margin")[0]
        again = within(work, ours, int(b), memory(work, ours, int(b)))
        print(f"{again.work}: {again.ours}: {again.ours_mb} MB, {again.goal}", flush=True)
        yield {**asdict(again), **about}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("miners.json"), metavar="FILE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sizes", type=lambda s: [int(b) for b in s.split(",")], default=[1024, 4096, 16384])
    parser.add_argument("--seconds", type=float, default=20.0, help="rounds of a work at a size go on for so long")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--memory", action="store_true", help="measure the memory of ours again, and nothing else")
    parser.add_argument("--peak", nargs=3, metavar=("WORK", "NAME", "B"), help="print the megabytes of one entry")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        work, name, b = options.peak
        print(peak(work, name, int(b)))
        return
    rows: list[Row] = []
    about = context(options.threads)
    if options.memory:
        written = json.loads(options.json.read_text(encoding="utf-8"))
        again = list(with_memory_again(written, about))
        options.json.write_text(json.dumps(again, indent=1) + "\n", encoding="utf-8")
        return
    for b in options.sizes:
        for work in WORKS:
            with_memory = not options.no_memory and b >= SMALLEST_MEASURED
            for row in measured(work, b, seconds=options.seconds, with_memory=with_memory):
                rows.append(row)
                print(f"{row.work}: {row.ours} beside {row.peer}", flush=True)
            write(rows, options.json, about)
    show(rows, f"miners on labelled batches, d = {WIDTH}, {PER_CLASS} of a class, {options.threads} threads")


if __name__ == "__main__":
    main()
