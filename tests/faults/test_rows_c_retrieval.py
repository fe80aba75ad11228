"""Evaluation of retrieval: rows 13 to 19 of docs/reliability.md."""

import os
import subprocess
import sys

import pytest
import torch
from references import refused
from test_rows_a_inputs import holds

from contrastive import _faiss, evaluate_retrieval, search

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
