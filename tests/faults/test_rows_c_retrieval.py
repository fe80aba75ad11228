"""Evaluation of retrieval: rows 13 to 19 of docs/reliability.md."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from ranks import run_ranks
from references import refused
from test_rows_a_inputs import holds
from torch.utils.data import DistributedSampler

from contrastive import Shard, _faiss, evaluate_retrieval, neighbours, search

BACKENDS = ("torch", "faiss")


def test_row13_k_beyond_the_gallery_is_refused_and_no_minus_one_reaches_a_label():
    holds("k_beyond_the_gallery_is_refused", "evaluator")
    x = torch.randn(6, 3)
    for backend in BACKENDS:
        for k in (0, 7):
            with refused("k is", str(k)):
                search(x, x, k, backend=backend)
        assert int(search(x, x, 6, backend=backend).ids.min()) >= 0
    # An index that finds less than k says -1: no item, not the last one.
    x, labels = torch.randn(400, 8), torch.arange(400) % 2
    found = evaluate_retrieval(x, labels, ks=(390,), metrics=("precision@390",), backend="IVF64,Flat", nprobe=1)
    assert found.mean["precision@390"] < 0.2  # with the last row's label in every empty place it would be half


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_row14_a_query_that_is_not_finite_is_refused_by_its_row(backend, value):
    x = torch.randn(9, 4)
    broken = x.clone()
    broken[5, 2] = value
    for queries, gallery in ((broken, x), (x, broken)):
        with refused("search", "5"):
            search(queries, gallery, 2, backend=backend)
    with refused("evaluate_retrieval", "5"):
        evaluate_retrieval(broken, torch.arange(9) // 3, ks=(1,), backend=backend)


def test_row15_duplicates_and_ties():
    for check in ("duplicates_do_not_find_themselves", "the_order_of_rows_does_not_matter", "is_that_of_the_loop"):
        holds(check, "evaluator")
    x = torch.randint(-1, 2, (90, 3)).float()
    labels = torch.arange(90) // 30  # sorted by class
    found = [
        evaluate_retrieval(x[order], labels[order], ks=(1, 5), backend=backend, metric=metric).mean
        for metric in ("euclidean", "inner_product")
        for order in (torch.arange(90), torch.randperm(90))
        for backend in BACKENDS
    ]
    for key in ("recall@1", "recall@5", "map@r"):
        for of_metric in (found[:4], found[4:]):
            assert [means[key] for means in of_metric] == pytest.approx([of_metric[0][key]] * 4, abs=1e-12)


def test_row16_a_class_of_one_is_left_out_and_counted():
    holds("a_class_of_one_is_left_out", "evaluator")
    result = evaluate_retrieval(torch.randn(7, 3), torch.tensor([0, 0, 1, 1, 2, 3, 1]), ks=(1,))
    assert result.excluded == 2


ROWS = 61  # not divisible by the ranks


def rows_and_labels():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % 6
    return torch.randn(6, 8, generator=generator)[labels] + torch.randn(ROWS, 8, generator=generator), labels


def on_a_rank(rank, world, parts, folder):
    """Recall and neighbours of rows that this rank has on its disk, read a few at a time."""
    own = torch.tensor(parts[rank])
    rows, labels = rows_and_labels()
    np.save(f"{folder}/{world}-{rank}.npy", rows[own].numpy())
    before = neighbours.GALLERY_KEPT, neighbours.GALLERY_BLOCK
    neighbours.GALLERY_KEPT, neighbours.GALLERY_BLOCK = 0, 8 * 11
    try:
        shard = Shard(np.load(f"{folder}/{world}-{rank}.npy", mmap_mode="c"), ids=own)
        means = evaluate_retrieval(shard, labels[own], ks=(1, 5)).mean
        return len(shard), means, own, search(shard, shard, 7, exclude_self=True)
    finally:
        neighbours.GALLERY_KEPT, neighbours.GALLERY_BLOCK = before


@pytest.mark.parametrize(
    "parts",
    [
        [[*range(ROWS)]],
        [[*range(0, ROWS, 2)], [*range(1, ROWS, 2)]],
        [[*range(58)], [*range(58, ROWS)]],  # fewer than k
        [[*range(30)], [*range(30, 59)], [59, 60]],
        [[*DistributedSampler(range(ROWS), 3, rank)] for rank in range(3)],  # some rows twice, to come out even
    ],
    ids=["one rank", "two", "two, uneven", "three, uneven", "three, padded by the sampler"],
)
def test_row17_whoever_holds_what_the_figures_are_those_of_one_process(tmp_path, parts):
    rows, labels = rows_and_labels()
    scores = torch.nn.functional.normalize(rows.double(), dim=1)
    nearest = (scores @ scores.T).fill_diagonal_(-torch.inf).argsort(1, descending=True)
    found = run_ranks(on_a_rank, len(parts), parts, str(tmp_path))
    for length, means, own, ranking in found:
        assert length == ROWS
        for k in (1, 5):
            recall = (labels[nearest[:, :k]] == labels[:, None]).any(1).double().mean()
            assert means[f"recall@{k}"] == pytest.approx(float(recall), abs=1e-12)
        assert torch.equal(ranking.ids, nearest[own, :7])


@pytest.fixture
def fresh_detection():
    _faiss._module.cache_clear()
    yield
    _faiss._module.cache_clear()


def test_row18_without_faiss_torch_searches_and_the_wish_for_it_is_one_sentence(monkeypatch, fresh_detection):
    x, labels = torch.randn(30, 3), torch.arange(30) % 3
    with_it = evaluate_retrieval(x, labels, ks=(1,)).mean
    _faiss._module.cache_clear()
    monkeypatch.setitem(sys.modules, "faiss", None)  # an import raises ImportError
    assert evaluate_retrieval(x, labels, ks=(1,)).mean == pytest.approx(with_it, abs=1e-6)
    with refused("backend is 'faiss', which needs FAISS", "pip install"):
        search(x, x, 2, backend="faiss")


def test_row18_the_gpus_function_is_never_called_without_one(monkeypatch, fresh_detection):
    """It would end the process."""
    import faiss

    _faiss._module.cache_clear()
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", lambda *_, **__: pytest.fail("knn_gpu was called"), raising=False)
    x = torch.randn(40, 5)
    assert search(x, x, 1, backend="faiss").ids.flatten().tolist() == list(range(40))


def test_row19_a_fork_after_a_search_does_not_hang():
    code = """
import torch
from contrastive import search
from torch.utils.data import DataLoader

torch.set_num_threads(2)
x = torch.randn(2000, 16)

class Nearest:
    def __len__(self): return 4
    def __getitem__(self, i): return search(x[i:i + 1].repeat(200, 1), x, 2, backend="faiss").ids[0, 0]

search(x, x, 2, backend="faiss")
print(torch.cat(list(DataLoader(Nearest(), 2, num_workers=2, multiprocessing_context="fork"))).tolist())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[0, 1, 2, 3]"), done.stderr
