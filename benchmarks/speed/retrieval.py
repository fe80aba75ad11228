"""Retrieval evaluation beside what others offer: time by turns, memory in processes of their own.

    OPENBLAS_CORETYPE=SkylakeX python -m benchmarks.speed.retrieval --threads 1

prints its table and writes it to `benchmarks/speed/retrieval.json`. N embeddings of width 128 with labels drawn from
N / 100 classes, leave one out: recall@1 (which is precision@1), R-precision and MAP@R, hence rankings about 135 deep;
"all metrics" are all that look at the first 100 or R; mAP and the reciprocal rank, which look at everything, apart.

- pytorch-metric-learning's `AccuracyCalculator`, these three metrics, its own search by FAISS; its best setting asks
  for as many neighbours as the largest class has (``k="max_bin_count"``), and so do we.
- FAISS' search alone, as deep: no metric. pytorch-metric-learning searches for everything where mAP is asked for.
- scikit-learn's brute-force neighbours and the metrics by numpy, written for this table.
- torchmetrics, 1,000 queries against each other, for it takes a score and a query number of every pair.
- ranx, precision@1, R-precision and the reciprocal rank of rankings that are there already, in its own types; filling
  these is not timed.

FAISS and scikit-learn multiply by OpenBLAS, whose choice of kernels follows OPENBLAS_CORETYPE: set it to what the
processor can do, or both are slow. One thread is timed by the process's own clock. Needs the extra `bench`.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import faiss
import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor

from benchmarks.speed.measure import (
    Goal,
    Row,
    Setting,
    by_turns,
    clock,
    compared,
    context,
    in_a_fresh_process,
    peak_mb,
    show,
    write,
)
from contrastive import evaluate_retrieval
from contrastive.metrics import retrieval_metrics
from contrastive.retrieval import search

WIDTH, PER_CLASS = 128, 100
Batch = tuple[Tensor, Tensor]


def batch(n: int) -> Batch:
    """Embeddings of unit length, classes that overlap."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(max(1, n // PER_CLASS), (n,), generator=generator)
    centres = torch.randn(int(labels.max()) + 1, WIDTH, generator=generator)
    return torch.nn.functional.normalize(centres[labels] + 2 * torch.randn(n, WIDTH, generator=generator)), labels


def depth(labels: Tensor) -> int:
    return int(labels.bincount().max())


# --- what is timed: each takes a batch --------------------------------------------------------------------------------


def ours(x: Tensor, labels: Tensor, ks: tuple[int, ...] = (1,)) -> dict[str, float]:
    return evaluate_retrieval(x, labels, ks=ks).mean


def ours_all(x: Tensor, labels: Tensor) -> dict[str, float]:
    metrics = ("recall", "coverage", "precision", "ndcg", "knn", "r_precision", "map@r")
    return evaluate_retrieval(x, labels, ks=(1, 10, 100), metrics=metrics).mean


def ours_whole(x: Tensor, labels: Tensor) -> dict[str, float]:
    return evaluate_retrieval(x, labels, ks=(), metrics=("map", "mrr")).mean


def ours_recall(x: Tensor, labels: Tensor) -> dict[str, float]:
    return evaluate_retrieval(x, labels, ks=(10,), metrics=("recall",)).mean


def ours_search(x: Tensor, labels: Tensor) -> object:
    return search(x, x, depth(labels) - 1, exclude_self=True)


def faiss_search(x: Tensor, labels: Tensor) -> object:
    """An index filled and asked: FAISS' best, for inner products of unit rows are cosines."""
    index = faiss.IndexFlatIP(WIDTH)
    index.add(x.numpy())
    return index.search(x.numpy(), depth(labels))


def pml(x: Tensor, labels: Tensor) -> object:
    include = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    return AccuracyCalculator(include=include, k="max_bin_count", device=torch.device("cpu")).get_accuracy(x, labels)


def pml_whole(x: Tensor, labels: Tensor) -> object:
    include = ("mean_average_precision", "mean_reciprocal_rank")
    return AccuracyCalculator(include=include, device=torch.device("cpu")).get_accuracy(x, labels)


def pml_default(x: Tensor, labels: Tensor) -> object:
    """All its metrics that need no clustering, and its own choice of k."""
    include = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank")
    return AccuracyCalculator(include=include, device=torch.device("cpu")).get_accuracy(x, labels)


def scikit_learn(x: Tensor, labels: Tensor) -> dict[str, float]:
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=depth(labels), algorithm="brute", metric="euclidean").fit(x.numpy())
    ids, classes = found.kneighbors(x.numpy(), return_distance=False)[:, 1:], labels.numpy()
    hits = classes[ids] == classes[:, None]
    relevant = np.bincount(classes)[classes] - 1
    ranks = np.arange(1, hits.shape[1] + 1)
    counted = hits & (ranks <= relevant[:, None])
    precision = hits.cumsum(1) / ranks
    some = relevant > 0
    return {
        "recall@1": float(hits[some, 0].mean()),
        "r_precision": float((counted.sum(1)[some] / relevant[some]).mean()),
        "map@r": float(((precision * counted).sum(1)[some] / relevant[some]).mean()),
    }


def torchmetrics_(x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    from torchmetrics.retrieval import RetrievalMAP, RetrievalPrecision, RetrievalRPrecision

    n = len(x)
    others = ~torch.eye(n, dtype=torch.bool)
    scores = (x @ x.T + 1)[others]  # it takes no score of 0 or below for relevant
    relevant = (labels[:, None] == labels)[others]
    query = torch.arange(n)[:, None].expand(n, n)[others]
    metrics = (RetrievalPrecision(top_k=1), RetrievalRPrecision(), RetrievalMAP())
    return {type(metric).__name__: metric(scores, relevant, indexes=query) for metric in metrics}


@cache
def neighbours(x: Tensor, labels: Tensor) -> Tensor:
    return search(x, x, depth(labels) - 1, exclude_self=True).ids


def ours_of_rankings(x: Tensor, labels: Tensor) -> dict[str, float]:
    hits = labels[neighbours(x, labels)] == labels[:, None]
    relevant = labels.bincount()[labels] - 1
    found = retrieval_metrics(hits, relevant, ("precision@1", "r_precision", "mrr"))
    return {name: float(values.mean()) for name, values in found.items()}


@cache
def in_types_of_ranx(x: Tensor, labels: Tensor) -> tuple[object, object]:
    from ranx import Qrels, Run

    members = [np.flatnonzero(labels.numpy() == label) for label in range(int(labels.max()) + 1)]
    relevant = {f"q{i}": {f"d{j}": 1 for j in members[label] if j != i} for i, label in enumerate(labels.tolist())}
    ranks = {
        f"q{i}": {f"d{j}": float(-rank) for rank, j in enumerate(row)}
        for i, row in enumerate(neighbours(x, labels).tolist())
    }
    return Qrels(relevant), Run(ranks)


def ranx_of_rankings(x: Tensor, labels: Tensor) -> dict[str, float]:
    from numba import set_num_threads
    from ranx import evaluate

    set_num_threads(torch.get_num_threads())
    return evaluate(*in_types_of_ranx(x, labels), ["precision@1", "r-precision", "mrr"])


Work = Callable[[Tensor, Tensor], object]
# Work: {name: (what is timed, largest N it is run at)}. Ours come first.
WORKS: dict[str, dict[str, tuple[Work, int]]] = {
    "three metrics": {
        "kpair evaluate_retrieval": (ours, 100_000),
        "PML AccuracyCalculator": (pml, 100_000),
        "FAISS search alone": (faiss_search, 100_000),
        "scikit-learn and numpy": (scikit_learn, 10_000),
    },
    "all metrics": {
        "kpair evaluate_retrieval": (ours_all, 50_000),
        "FAISS search alone": (faiss_search, 50_000),
    },
    "mAP and reciprocal rank": {
        "kpair evaluate_retrieval": (ours_whole, 10_000),
        "PML AccuracyCalculator": (pml_whole, 10_000),
    },
    "recall@10": {
        "kpair evaluate_retrieval": (ours_recall, 100_000),
        "PML AccuracyCalculator, its k": (pml_default, 10_000),
    },
    "search": {
        "kpair search": (ours_search, 100_000),
        "FAISS search alone": (faiss_search, 100_000),
    },
    "metrics of rankings": {
        "kpair retrieval_metrics": (ours_of_rankings, 10_000),
        "ranx": (ranx_of_rankings, 10_000),
    },
    "three metrics, small": {
        "kpair evaluate_retrieval": (ours, 1_000),
        "torchmetrics": (torchmetrics_, 1_000),
    },
}
GOALS = {
    ("three metrics", 10_000, "PML AccuracyCalculator"): [Goal(1.2)],
    ("three metrics", 50_000, "PML AccuracyCalculator"): [Goal(1.5), Goal(2, "memory")],
    ("search", 10_000, "FAISS search alone"): [Goal(1 / 1.1)],
    ("search", 50_000, "FAISS search alone"): [Goal(1 / 1.1)],
    ("three metrics", 10_000, "FAISS search alone"): [Goal(1 / 1.08)],
    ("three metrics", 50_000, "FAISS search alone"): [Goal(1 / 1.08)],
    ("all metrics", 10_000, "FAISS search alone"): [Goal(1 / 1.08)],
    ("all metrics", 50_000, "FAISS search alone"): [Goal(1 / 1.08)],
    ("recall@10", 10_000, "PML AccuracyCalculator, its k"): [Goal(2)],
}
SMALLEST_MEASURED = 50_000
PEERS = ("torch", "pytorch-metric-learning", "faiss-cpu", "scikit-learn", "torchmetrics", "ranx")


def peak(work: str, name: str, n: int) -> float:
    """Megabytes beyond the embeddings, in this process; the libraries are warm."""
    run = WORKS[work][name][0]
    run(*batch(500))
    return peak_mb(partial(run, *batch(n)))


def agree(n: int = 2000) -> None:
    """What is compared reads the same figures, or nothing is timed."""
    x, labels = batch(n)
    found, theirs, third = ours(x, labels), pml(x, labels), scikit_learn(x, labels)
    assert isinstance(theirs, dict)
    names = {"recall@1": "precision_at_1", "r_precision": "r_precision", "map@r": "mean_average_precision_at_r"}
    for name, of_pml in names.items():
        if not (abs(found[name] - theirs[of_pml]) < 1e-5 and abs(found[name] - third[name]) < 1e-5):
            raise SystemExit(f"{name}: ours {found[name]}, PML {theirs[of_pml]}, scikit-learn {third[name]}")
    small = batch(200)
    for kpair, ranx in zip(ours_of_rankings(*small).values(), ranx_of_rankings(*small).values(), strict=True):
        if abs(kpair - ranx) > 1e-5:
            raise SystemExit(f"rankings: ours {kpair}, ranx {ranx}")
    everything, of_pml = ours_whole(*small), pml_whole(*small)
    assert isinstance(of_pml, dict)
    for name, its in (("map", "mean_average_precision"), ("mrr", "mean_reciprocal_rank")):
        if abs(everything[name] - of_pml[its]) > 1e-5:
            raise SystemExit(f"{name}: ours {everything[name]}, PML {of_pml[its]}")


def measured(work: str, n: int, *, seconds: float, with_memory: bool) -> Iterator[Row]:
    """All comparisons of one work at one N."""
    x, labels = batch(n)
    works = {name: run for name, (run, most) in WORKS[work].items() if n <= most}
    entries = {name: Setting(partial(run, x, labels), clock=clock()) for name, run in works.items()}
    if len(entries) < 2:
        return
    for setting in entries.values():
        setting.timed()  # warms up
    times = by_turns(entries, seconds=seconds, at_least=3)
    asked = [name for name in entries if with_memory]
    megabytes = {n_: in_a_fresh_process("benchmarks.speed.retrieval", "--peak", work, n_, str(n)) for n_ in asked}
    first, *peers = entries
    for peer in peers:
        yield from compared(f"{work}, N = {n}", first, peer, times, megabytes, GOALS.get((work, n, peer), []))


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("retrieval.json"), metavar="FILE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--sizes", type=lambda s: [int(n) for n in s.split(",")], default=[1_000, 10_000, 50_000, 100_000]
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="rounds of a work at a size go on for so long")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--peak", nargs=3, metavar=("WORK", "NAME", "N"), help="print the megabytes of one entry")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    if options.peak:
        work, name, n = options.peak
        print(peak(work, name, int(n)))
        return
    agree()
    rows: list[Row] = []
    about = {**context(options.threads, PEERS), "openblas": os.environ.get("OPENBLAS_CORETYPE")}
    for n in options.sizes:
        for work in WORKS:
            if (n <= 1000) != work.endswith("small"):
                continue
            with_memory = not options.no_memory and n >= SMALLEST_MEASURED
            for row in measured(work, n, seconds=options.seconds, with_memory=with_memory):
                rows.append(row)
                print(f"{row.work}: {row.ours} beside {row.peer}: {row.ratio:.2f}", flush=True)
            write(rows, options.json, about)
    show(rows, f"retrieval, d = {WIDTH}, {PER_CLASS} of a class, {options.threads} threads")


if __name__ == "__main__":
    main()
