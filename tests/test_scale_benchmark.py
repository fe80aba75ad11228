"""The formulas of bytes count what the collectives are given; the benchmark runs and makes its tables."""

import json
import sys

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from benchmarks.scale import __main__ as benchmark
from benchmarks.scale import steps
from benchmarks.scale.wire import gather_bytes, projected, ring_bytes
from contrastive import Cosine, GlobalBatch, KPairLoss


def sent(rank, world, pairs, width, ring):
    """Bytes of embeddings that a step hands to others, counted where the collectives are called."""
    count = [0]
    gather, scatter, batch = dist.all_gather, dist.reduce_scatter, dist.batch_isend_irecv

    def all_gather(parts, x, **options):
        count[0] += (world - 1) * x.numel() * x.element_size() if x.ndim > 1 else 0  # not the lengths
        return gather(parts, x, **options)

    def reduce_scatter(own, shares, **options):
        count[0] += (world - 1) * own.numel() * own.element_size()
        return scatter(own, shares, **options)

    def batch_isend_irecv(operations):
        count[0] += sum(o.tensor.numel() * o.tensor.element_size() for o in operations if o.op is dist.isend)
        return batch(operations)

    dist.all_gather, dist.reduce_scatter, dist.batch_isend_irecv = all_gather, reduce_scatter, batch_isend_irecv
    try:
        x, y = (torch.randn(pairs, width, requires_grad=True) for _ in range(2))
        GlobalBatch(KPairLoss(Cosine()), ring=ring)(x, y).backward()
    finally:
        dist.all_gather, dist.reduce_scatter, dist.batch_isend_irecv = gather, scatter, batch
    return count[0]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("ring", [False, True])
def test_the_formulas_count_what_is_sent(world, ring):
    formula = ring_bytes if ring else gather_bytes
    assert sum(run_ranks(sent, world, 5, 7, ring)) == formula(world, 5, 7)


def test_projections():
    assert gather_bytes(4, 5, 7, scatters=False) == gather_bytes(4, 5, 7) * 3 / 2
    for world in (8, 64, 1024):
        gathered, around = (projected(world, 1024, 512, ring=ring) for ring in (False, True))
        assert gathered.gigabytes == pytest.approx(gather_bytes(world, 1024, 512) / world / 1e9)
        assert around.keys_gb < gathered.keys_gb
        assert around.products_ms < gathered.products_ms


def figures(rank, world):
    return steps._times(16, 8, 3), steps._peak(16, 8, "ring")


def test_the_benchmark_makes_its_tables(tmp_path, monkeypatch, capsys):
    (timed, peak), _ = run_ranks(figures, 2)
    assert all(len(timed[name]["ms"]) == 3 == len(timed[name]["bytes"]) for name in ("gather", "ring"))
    monkeypatch.setattr(steps, "_on_ranks", lambda world, work, *_: timed if work is steps._times else peak)
    path = tmp_path / "rows.json"
    words = ["--worlds", "2", "--pairs", "16", "--width", "8", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["scale", *words])
    benchmark.main()
    rows = json.loads(path.read_text())
    assert [row["scheme"] for row in rows] == ["gather", "ring"]
    assert all(row["ms"] > 0 and row["formula"] > 0 for row in rows)
    table = capsys.readouterr().out
    assert "| ring | 2 | 16 | 32 |" in table
    monkeypatch.setattr(sys, "argv", ["scale", "--table", "--json", str(path)])
    benchmark.main()
    assert capsys.readouterr().out == table
