"""Search and retrieval: against loops, scikit-learn, FAISS and pytorch-metric-learning, and their known defects."""

import inspect
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive import _faiss, neighbours, retrieval
from contrastive.assessment import Assessment
from contrastive.errors import InputError
from contrastive.intervals import bootstrap_interval
from contrastive.neighbours import Search
from contrastive.retrieval import evaluate_retrieval, instance_recall, search

METRICS = ["cosine", "inner_product", "euclidean"]

needs_faiss = pytest.mark.skipif(not _faiss.available(), reason="faiss is not installed")
backends = pytest.mark.parametrize("backend", ["torch", pytest.param("faiss", marks=needs_faiss)])
metrics = pytest.mark.parametrize("metric", METRICS)


def slow_score(x, y, metric):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    if metric == "inner_product":
        return dot
    if metric == "euclidean":
        return -sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
    lengths = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
    return dot / lengths if lengths else 0.0


def slow_search(queries, gallery, k, metric, exclude_self=False):
    ids, scores = [], []
    for i, x in enumerate(queries.tolist()):
        found = [
            (-slow_score(x, y, metric), j) for j, y in enumerate(gallery.tolist()) if not (exclude_self and i == j)
        ]
        found.sort()
        ids.append([j for _, j in found[:k]])
        scores.append([-score for score, _ in found[:k]])
    return torch.tensor(ids), torch.tensor(scores)


def slow_evaluation(embeddings, labels, ks, metric, gallery=None, gallery_labels=None):
    """Means by the formulas, each query by itself."""
    alone = gallery is None
    gallery, gallery_labels = (embeddings, labels) if alone else (gallery, gallery_labels)
    values = {name: [] for name in [*(f"recall@{k}" for k in ks), "precision@1", "r_precision", "map@r"]}
    depth = len(gallery) - alone
    ids, _ = slow_search(embeddings, gallery, depth, metric, exclude_self=alone)
    excluded = 0
    for i, row in enumerate(ids.tolist()):
        hits = [gallery_labels[j] == labels[i] for j in row]
        r = sum(hits)
        if r == 0:
            excluded += 1
            continue
        for k in ks:
            values[f"recall@{k}"].append(float(any(hits[:k])))
        values["precision@1"].append(float(hits[0]))
        values["r_precision"].append(sum(hits[:r]) / r)
        values["map@r"].append(sum(sum(hits[: j + 1]) / (j + 1) for j in range(r) if hits[j]) / r)
    return {name: sum(v) / len(v) for name, v in values.items()}, excluded


# --- search against references ----------------------------------------------------------------------------------------


@backends
@metrics
@pytest.mark.parametrize("exclude_self", [False, True])
def test_search_equals_the_loop(backend, metric, exclude_self):
    x = torch.randn(17, 5)
    y = x if exclude_self else torch.randn(23, 5)
    for k in (1, 4, len(y) - exclude_self):
        ranking = search(x, y, k, metric=metric, backend=backend, exclude_self=exclude_self)
        ids, scores = slow_search(x, y, k, metric, exclude_self)
        assert torch.equal(ranking.ids, ids)
        torch.testing.assert_close(ranking.scores, scores, atol=2e-5, rtol=2e-5)
        assert ranking.ids.dtype == torch.int64
        assert ranking.scores.dtype == torch.float32


@pytest.mark.parametrize(("metric", "theirs"), [("cosine", "cosine"), ("euclidean", "sqeuclidean")])
def test_search_equals_scikit_learn(metric, theirs):
    from sklearn.neighbors import NearestNeighbors

    x, y = torch.randn(60, 16, dtype=torch.float64), torch.randn(500, 16, dtype=torch.float64)
    distances, ids = NearestNeighbors(n_neighbors=9, metric=theirs, algorithm="brute").fit(y).kneighbors(x)
    ranking = search(x, y, 9, metric=metric)
    assert torch.equal(ranking.ids, torch.from_numpy(ids))
    expected = 1 - distances if metric == "cosine" else -distances
    torch.testing.assert_close(ranking.scores, torch.from_numpy(expected), atol=1e-10, rtol=1e-10)


@needs_faiss
@metrics
@pytest.mark.parametrize("exclude_self", [False, True])
def test_both_back_ends_agree(metric, exclude_self):
    x = torch.randn(700, 24)
    y = x if exclude_self else torch.randn(900, 24)
    ours = search(x, y, 50, metric=metric, backend="torch", exclude_self=exclude_self)
    theirs = search(x, y, 50, metric=metric, backend="faiss", exclude_self=exclude_self)
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=1e-5)
    differ = ours.ids != theirs.ids
    assert differ.float().mean() < 1e-3  # neighbours whose scores agree to rounding
    if bool(differ.any()):
        assert bool(((ours.scores - theirs.scores).abs()[differ] < 1e-5 * ours.scores.abs().max()).all())


@pytest.mark.parametrize(("block", "width", "entries"), [(8, 4, 10), (50, 7, 100), (2**23, 2**14, 2**22)])
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@metrics
def test_block_sizes_do_not_matter(block, width, entries, exclude_self, dtype, metric, monkeypatch):
    x = torch.randint(-2, 3, (40, 3)).to(dtype)  # many ties, at every border between blocks
    expected = search(x, x, 6, metric=metric, backend="torch", exclude_self=exclude_self)
    monkeypatch.setattr(neighbours, "BLOCK", block)
    monkeypatch.setattr(neighbours, "BLOCK_WIDTH", width)
    monkeypatch.setattr(neighbours, "RANKING_BLOCK", entries)
    ranking = search(x, x, 6, metric=metric, backend="torch", exclude_self=exclude_self)
    assert torch.equal(ranking.ids, expected.ids)
    assert torch.equal(ranking.scores, expected.scores)


# --- ties, duplicates, self -------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("metric", ["inner_product", "euclidean"])
@pytest.mark.parametrize("exclude_self", [False, True])
@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(1, 3), st.integers(0, 2**31))
def test_equal_scores_come_in_the_order_of_ids(backend, metric, exclude_self, rows, dim, seed):
    # Small integers: every score is exact, so the loop and the back ends see the same ties.
    x = torch.randint(-1, 2, (rows, dim), generator=torch.Generator().manual_seed(seed)).float() * 4 * rows
    for k in {1, (rows + 1) // 2, rows - exclude_self}:
        ranking = search(x, x, k, metric=metric, backend=backend, exclude_self=exclude_self)
        ids, scores = slow_search(x, x, k, metric, exclude_self)
        if metric == "inner_product":
            assert torch.equal(ranking.ids, ids)
        else:  # centring rounds: the scores agree, and within equal scores the ids ascend
            torch.testing.assert_close(ranking.scores, scores, atol=1e-2, rtol=1e-4)
            ties = ranking.scores[:, 1:] == ranking.scores[:, :-1]
            assert bool((ranking.ids.diff(dim=1)[ties] > 0).all())
        assert bool((ranking.scores.diff(dim=1) <= 0).all())


@backends
@metrics
def test_self_is_excluded_by_id_among_exact_duplicates(backend, metric):
    rows = torch.randn(30, 8)
    x = rows.repeat(10, 1)  # ten copies each: dropping the first column would be wrong nine times in ten
    ranking = search(x, x, 9, metric=metric, backend=backend, exclude_self=True)
    assert not bool((ranking.ids == torch.arange(300)[:, None]).any())
    if metric != "inner_product":
        assert bool((ranking.ids % 30 == torch.arange(300)[:, None] % 30).all())
    # and no id twice
    assert bool((ranking.ids.sort(1).values.diff(dim=1) > 0).all())


@backends
@metrics
@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [0.3, -0.7, 0.1]])
def test_collapsed_embeddings_rank_by_id(backend, metric, row):
    x = torch.tensor([row]).repeat(25, 1)
    ranking = search(x, x, 24, metric=metric, backend=backend, exclude_self=True)
    expected = torch.tensor([[j for j in range(25) if j != i] for i in range(25)])
    assert torch.equal(ranking.ids, expected)
    assert torch.equal(search(x, x, 3, metric=metric, backend=backend, exclude_self=True).ids, expected[:, :3])


@backends
def test_one_query_or_one_gallery_row(backend):
    # A product with a single vector rounds differently by position: equal rows must still tie.
    y = torch.randn(1, 128).repeat(5003, 1)
    assert search(torch.randn(1, 128), y, 7, metric="inner_product", backend=backend).ids.tolist() == [[*range(7)]]
    assert search(torch.randn(3, 128), y[:1], 1, backend=backend).ids.tolist() == [[0], [0], [0]]


@backends
def test_zero_vectors_have_cosine_zero(backend):
    y = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    ranking = search(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), y, 3, backend=backend)
    assert ranking.ids.tolist() == [[0, 1, 2], [2, 1, 0]]
    assert ranking.scores.tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]]


# --- numbers ----------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("scale", [1e-38, 1e30, 3e38])
def test_cosine_of_any_length(backend, scale):
    x = torch.nn.functional.normalize(torch.randn(20, 6), dim=1)
    assert torch.equal(search(x, x, 5, backend=backend).ids, search(scale * x, x / 3, 5, backend=backend).ids)


@backends
def test_distances_far_from_the_origin(backend):
    # |x|^2 + |y|^2 - 2xy of these cancels to nothing in float32.
    x = torch.randint(-50, 50, (40, 6)).float()
    near = search(x, x, 6, metric="euclidean", backend=backend, exclude_self=True)
    far = search(x + 2.0**18, x + 2.0**18, 6, metric="euclidean", backend=backend, exclude_self=True)
    torch.testing.assert_close(far.scores, near.scores, atol=0.5, rtol=1e-4)


@backends
def test_distances_of_near_duplicates(backend):
    x = torch.randn(50, 16)
    y = x + 1e-5 * torch.randn(50, 16)
    ranking = search(x, y, 1, metric="euclidean", backend=backend)
    assert ranking.ids.flatten().tolist() == list(range(50))
    expected = -(x.double() - y.double()).square().sum(1)
    torch.testing.assert_close(ranking.scores.flatten().double(), expected, rtol=0.05, atol=0)
    exact = search(x, x, 1, metric="euclidean", backend=backend).scores
    assert exact.tolist() == [[0.0]] * 50
    assert not bool(exact.signbit().any())


@backends
def test_the_order_of_near_duplicates(backend):
    # 2 x.y - |y|^2 cannot tell these apart; the distances computed anew can, and set the order.
    x = torch.randn(20, 16)
    steps = 1e-5 * torch.randperm(12) + 1e-5
    y = (x[:, None] + steps[:, None] * torch.nn.functional.normalize(torch.randn(20, 12, 16), dim=2)).flatten(0, 1)
    ranking = search(x, y, 12, metric="euclidean", backend=backend)
    distances = (x[:, None].double() - y[ranking.ids].double()).square().sum(2)
    assert bool((distances[:, 1:] > 0.98 * distances[:, :-1]).all())
    assert bool((ranking.scores.diff(dim=1) <= 0).all())


@backends
def test_the_cut_among_near_duplicates(backend):
    # Fewer are asked for than 2 x.y - |y|^2 cannot tell apart: the nearest must be among them all the same.
    x = torch.randn(20, 16)
    steps = 1e-5 * torch.randperm(12) + 1e-5
    y = (x[:, None] + steps[:, None] * torch.nn.functional.normalize(torch.randn(20, 12, 16), dim=2)).flatten(0, 1)
    true = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    for k in (1, 5):
        found = search(x, y, k, metric="euclidean", backend=backend)
        assert bool((true.gather(1, found.ids)[:, -1:] < 1.02 * true.kthvalue(k, dim=1, keepdim=True).values).all())
    tight = torch.tensor([[1.0, 0.0], [1.0001, 0.0], [-1.0, 0.0], [-1.0001, 0.0]])
    found = search(tight, tight, 1, metric="euclidean", backend=backend)
    assert found.ids.flatten().tolist() == [0, 1, 2, 3]
    assert found.scores.flatten().tolist() == [0.0] * 4
    others = search(tight, tight, 3, metric="euclidean", backend=backend, exclude_self=True)
    assert others.ids[:, 0].tolist() == [1, 0, 3, 2]


def test_each_finds_itself_among_near_duplicates():
    tight = torch.tensor([[1.0, 0.0], [1.0001, 0.0], [-1.0, 0.0], [-1.0001, 0.0]])
    assert instance_recall(tight, tight, metric="euclidean").mean == {"recall@1": 1.0}


def test_precision_of_the_input():
    step = 1e-9
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 2 * step], [1.0, step], [1.0, 3 * step]], dtype=torch.float64)
    for backend in ("auto", "torch"):
        ranking = search(x, y, 3, metric="euclidean", backend=backend)
        assert ranking.ids.tolist() == [[1, 0, 2]]
        assert ranking.scores.dtype == torch.float64
    assert search(x.float(), y, 1, metric="euclidean").scores.dtype == torch.float64
    if _faiss.available():
        assert search(x, y, 3, backend="faiss").scores.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    x = torch.randn(30, 8).to(dtype)
    half, full = search(x, x, 4), search(x.float(), x.float(), 4)
    assert half.scores.dtype == torch.float32
    assert torch.equal(half.ids, full.ids)
    assert torch.equal(half.scores, full.scores)


@pytest.mark.parametrize("other", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@metrics
@backends
def test_half_precision_beside_another(backend, metric, other):
    x, y = torch.randn(20, 8, dtype=torch.float64).to(other), torch.randn(40, 8).half()
    labels = torch.arange(40) % 4
    wide = torch.promote_types(other, torch.float32)
    ranking, expected = (search(x, rows, 5, metric=metric, backend=backend) for rows in (y, y.to(wide)))
    assert ranking.scores.dtype == (torch.float32 if backend == "faiss" else wide)
    assert torch.equal(ranking.ids, expected.ids)
    assert torch.equal(ranking.scores, expected.scores)
    options = {"gallery_labels": labels, "metric": metric, "backend": backend, "ks": (1, 3)}
    found, of_wide = (evaluate_retrieval(x, labels[:20], gallery=rows, **options).mean for rows in (y, y.to(wide)))
    assert found == of_wide
    assert instance_recall(x, y, metric=metric).mean == instance_recall(x, y.to(wide), metric=metric).mean


def test_read_only_arrays_are_not_copied(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert retrieval.as_rows("test", "rows", mapped).data_ptr() == mapped.ctypes.data
    for metric in METRICS:
        assert torch.equal(search(mapped, mapped, 3, metric=metric).ids, search(x, x, 3, metric=metric).ids)


@metrics
def test_autocast_changes_nothing(metric):
    x, y = torch.randn(40, 32), torch.randn(60, 32)
    expected = search(x, y, 10, metric=metric, backend="torch")
    recall = instance_recall(x, y, metric=metric, ks=(5,)).mean
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ranking = search(x, y, 10, metric=metric, backend="torch")
        assert instance_recall(x, y, metric=metric, ks=(5,)).mean == recall
    assert torch.equal(ranking.scores, expected.scores)


@backends
def test_arrays_views_and_gradients(backend):
    x, y = torch.randn(12, 6), torch.randn(20, 6)
    expected = search(x, y, 5, backend=backend)
    read_only = y.numpy().copy()
    read_only.flags.writeable = False
    for queries, gallery in [
        (x.numpy(), y.numpy()),
        (x, read_only),
        (np.ascontiguousarray(x.numpy()[::-1])[::-1], y.numpy().astype(">f4")),
        (x.T.contiguous().T, torch.stack([y, y], 2)[:, :, 1]),
        (x.clone().requires_grad_(), y),
    ]:
        ranking = search(queries, gallery, 5, backend=backend)
        assert torch.equal(ranking.ids, expected.ids)
        torch.testing.assert_close(ranking.scores, expected.scores)
        assert not ranking.scores.requires_grad


@backends
@metrics
def test_input_is_left_alone(backend, metric):
    x, labels = 5 + torch.randn(30, 4), torch.arange(30) % 3
    before, labels_before = x.clone(), labels.clone()
    search(x, x, 3, metric=metric, backend=backend, exclude_self=True)
    search(x.numpy(), x.numpy(), 3, metric=metric, backend=backend)
    evaluate_retrieval(x, labels, metric=metric, backend=backend)
    instance_recall(x, x, metric=metric)
    assert torch.equal(x, before)
    assert torch.equal(labels, labels_before)


# --- what is refused --------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(backend, value):
    x, y = torch.randn(6, 3), torch.randn(7, 3)
    broken = y.clone()
    broken[[2, 5], 1] = value
    with pytest.raises(InputError, match="search: gallery holds NaN or infinity in 2 rows, the first is row 2"):
        search(x, broken, 2, backend=backend)
    with pytest.raises(InputError, match="search: queries holds NaN or infinity in 2 rows, the first is row 2"):
        search(broken, y, 2, backend=backend)
    with pytest.raises(InputError, match="evaluate_retrieval: embeddings holds NaN or infinity"):
        evaluate_retrieval(broken, [0] * 7, backend=backend)
    with pytest.raises(InputError, match="instance_recall: queries holds NaN or infinity"):
        instance_recall(broken, y)


@backends
@pytest.mark.parametrize("metric", ["inner_product", "euclidean"])
def test_scores_that_overflow_are_refused(backend, metric):
    x = torch.tensor([[1e20, 1e20], [1e20, -1e20], [1.0, 1.0]])
    for run in (lambda: search(x, x, 2, metric=metric, backend=backend), lambda: instance_recall(x, x, metric=metric)):
        with pytest.raises(InputError, match="more than float32 holds, expected embeddings of a smaller scale"):
            run()
    wide = torch.tensor([[1e30, 0.0], [0.0, 1e30]], dtype=torch.float64)
    if backend == "torch":
        assert search(wide, wide, 1, metric=metric, backend=backend).ids.flatten().tolist() == [0, 1]
    else:
        with pytest.raises(InputError, match="more than float32 holds"):
            search(wide, wide, 1, metric=metric, backend=backend)


@backends
def test_k_beyond_the_gallery_is_refused(backend):
    x = torch.randn(4, 3)
    for k in (0, -1, 5):
        with pytest.raises(InputError, match=rf"search: k is {k}, expected 1 to 4, the size of the gallery$"):
            search(x, x, k, backend=backend)
    with pytest.raises(InputError, match="k is 4, expected 1 to 3, the size of the gallery without the query itself"):
        search(x, x, 4, backend=backend, exclude_self=True)
    ids = search(x, x, 3, backend=backend, exclude_self=True).ids
    assert bool((ids >= 0).all())


@pytest.mark.parametrize(
    ("queries", "gallery", "message"),
    [
        (torch.randn(3), torch.randn(3, 2), r"queries has shape \(3,\), expected \[rows, dim\]"),
        (torch.randn(3, 2), torch.randn(3, 2, 1), r"gallery has shape \(3, 2, 1\)"),
        (torch.randn(0, 2), torch.randn(3, 2), r"queries has shape \(0, 2\)"),
        (torch.randn(3, 2), torch.randn(0, 2), r"gallery has shape \(0, 2\)"),
        (torch.randn(3, 0), torch.randn(3, 0), r"queries has shape \(3, 0\)"),
        (torch.randn(3, 2), torch.randn(3, 4), r"queries have shape \(3, 2\) and gallery \(3, 4\), expected the same"),
        (torch.ones(3, 2, dtype=torch.int64), torch.randn(3, 2), "queries has dtype torch.int64"),
        (torch.randn(3, 2), np.ones((3, 2), dtype=np.int32), "gallery has dtype int32"),
        (torch.randn(3, 2), np.full((3, 2), "a"), "gallery has dtype <U1"),
        (torch.ones(3, 2, dtype=torch.complex64), torch.randn(3, 2), "queries has dtype torch.complex64"),
    ],
)
def test_shapes_and_dtypes_that_do_not_fit_are_refused(queries, gallery, message):
    with pytest.raises(InputError, match="search: .*" + message):
        search(queries, gallery, 1)


def test_options_that_do_not_exist_are_refused():
    x = torch.randn(3, 2)
    bare = inspect.unwrap(search)  # without the run-time type check of the tests
    with pytest.raises(InputError, match="metric is 'l2', expected one of cosine, inner_product, euclidean"):
        bare(x, x, 1, metric="l2")
    with pytest.raises(InputError, match="backend is 'scann', expected one of auto, torch, faiss"):
        bare(x, x, 1, backend="scann")
    with pytest.raises(InputError, match="exclude_self=True with 3 queries and a gallery of 2"):
        search(x, x[:2], 1, exclude_self=True)


# --- ids, blocks, approximate search ----------------------------------------------------------------------------------


@backends
@metrics
def test_with_ids_no_order_of_the_rows_matters(backend, metric):
    x, y = torch.randint(-1, 2, (20, 3)).float(), torch.randint(-1, 2, (64, 3)).float()
    ids = torch.randperm(1000)[:64]
    expected = search(x, y, 9, metric=metric, backend=backend, gallery_ids=ids)
    order = torch.randperm(64)
    ranking = search(x, y[order], 9, metric=metric, backend=backend, gallery_ids=ids[order])
    assert torch.equal(ranking.ids, expected.ids)
    ties = ranking.scores[:, 1:] == ranking.scores[:, :-1]
    assert bool(ties.any())
    assert bool((ranking.ids.diff(dim=1)[ties] > 0).all())
    # Without ties they are the rows under other names.
    y = torch.randn(64, 3)
    plain = search(x + 0.1, y, 9, metric=metric, backend=backend).ids
    assert torch.equal(search(x + 0.1, y, 9, metric=metric, backend=backend, gallery_ids=ids).ids, ids[plain])


@backends
@metrics
def test_some_rows_of_the_gallery_as_queries(backend, metric):
    y = torch.randn(40, 3).repeat(2, 1)  # each twice
    rows = torch.tensor([3, 70, 11])
    expected = search(y, y, 5, metric=metric, backend=backend, exclude_self=True).ids[rows]
    assert torch.equal(search(y[rows], y, 5, metric=metric, backend=backend, exclude_self=rows).ids, expected)
    ids = torch.arange(80).flip(0) + 5
    named = search(y[rows], y, 5, metric=metric, backend=backend, exclude_self=ids[rows], gallery_ids=ids)
    assert not bool((named.ids == ids[rows][:, None]).any())
    assert torch.equal(named.scores, search(y[rows], y, 5, metric=metric, backend=backend, exclude_self=rows).scores)
    alone = search(y, y, 5, metric=metric, backend=backend, exclude_self=True, gallery_ids=ids)
    assert torch.equal(alone.ids[rows], named.ids)


def test_ids_that_do_not_fit_are_refused():
    x = torch.randn(3, 2)
    for options, message in [
        ({"gallery_ids": torch.tensor([1, 2, 2])}, "gallery_ids hold 2 more than once, expected each once"),
        ({"gallery_ids": torch.tensor([1, 2, -1])}, "gallery_ids hold -1, expected ids of at least 0"),
        ({"exclude_self": torch.tensor([0, 1, 3])}, "exclude_self holds id 3, expected ids that the gallery holds"),
        ({"exclude_self": torch.tensor([0, 1, -1])}, "exclude_self holds id -1"),
        ({"exclude_self": torch.tensor([5, 6, 8]), "gallery_ids": torch.tensor([5, 6, 7])}, "exclude_self holds id 8"),
        (
            {"exclude_self": torch.tensor([5, 6, 7]), "gallery_ids": torch.tensor([5, 6, 7]), "k": 3},
            "k is 3, expected 1",
        ),
    ]:
        with pytest.raises(InputError, match=f"search: {message}"):
            search(x, x, **({"k": 1} | options))
    bare = inspect.unwrap(search)
    with pytest.raises(InputError, match=r"gallery_ids have dtype torch.int64 and shape \(2,\), expected 3 integers"):
        bare(x, x, 1, gallery_ids=torch.tensor([1, 2]))
    with pytest.raises(InputError, match=r"exclude_self has dtype torch.float32 .* expected the ids of 3 queries"):
        bare(x, x, 1, exclude_self=torch.zeros(3))


@backends
@metrics
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("held", [("RANKINGS_HELD", 1), ("QUERIES_HELD", 14), ("QUERIES_HELD", 2**20)], ids=str)
def test_blocks_of_the_gallery_do_not_matter(backend, metric, exclude_self, held, monkeypatch):
    x, y = torch.randint(-2, 3, (2, 23, 3)).float()
    x, y = torch.cat([x, -x]), torch.cat([y, -y])  # of mean 0, so that distances are exact
    y = x if exclude_self else y
    expected = search(x, y, 12, metric=metric, backend=backend, exclude_self=exclude_self)
    monkeypatch.setattr(neighbours, "GALLERY_KEPT", 0)
    monkeypatch.setattr(neighbours, "GALLERY_BLOCK", 3 * 7)  # blocks of 7 rows, fewer than k, the last of four
    monkeypatch.setattr(neighbours, *held)
    monkeypatch.setattr(neighbours, "RANKING_BLOCK", 100)  # strips of 7 queries
    told = []
    ranking = search(
        x, y, 12, metric=metric, backend=backend, exclude_self=exclude_self, on_progress=lambda *done: told.append(done)
    )
    assert torch.equal(ranking.ids, expected.ids)
    torch.testing.assert_close(ranking.scores, expected.scores, atol=1e-5, rtol=1e-5)
    assert told == [(i + 1, 49) for i in range(49)]


def test_rankings_over_several_blocks_are_given_as_soon_as_their_queries_are_through(monkeypatch):
    """Not after the last query: what a killed evaluation goes on with."""
    monkeypatch.setattr(neighbours, "GALLERY_KEPT", 0)
    monkeypatch.setattr(neighbours, "GALLERY_BLOCK", 3 * 7)
    monkeypatch.setattr(neighbours, "RANKING_BLOCK", 40)  # strips of 8 queries
    monkeypatch.setattr(neighbours, "QUERIES_HELD", 16)
    x, told = torch.randn(40, 3), []
    target = neighbours.Target("test", neighbours.as_rows("test", "x", x), metric="cosine", backend="torch")
    run = neighbours.Search("test", target.rows, target, progress=lambda *done: told.append(done))
    seen = [(part.stop, len(told)) for part, _, _ in run.rankings(3)]
    blocks = len(target.blocks)
    assert blocks == 6
    assert seen == [(8, 2 * blocks), (16, 2 * blocks), (24, 4 * blocks), (32, 4 * blocks), (40, 5 * blocks)]


@needs_faiss
@metrics
@pytest.mark.parametrize("factory", ["IVF16,Flat", "HNSW16", "IVF8,PQ4x4", "Flat"])
def test_an_index_by_its_factory_string(factory, metric):
    x = torch.randn(2000, 8)
    exact = search(x[:200], x, 5, metric=metric, exclude_self=torch.arange(200))
    ranking = search(x[:200], x, 5, metric=metric, backend=factory, exclude_self=torch.arange(200), nprobe=4)
    found = ranking.ids >= 0
    assert not bool((ranking.ids == torch.arange(200)[:, None]).any())
    share = (ranking.ids[:, :, None] == exact.ids[:, None, :]).any(2).float().mean()
    assert share > {"IVF8,PQ4x4": 0.3, "Flat": 0.99}.get(factory, 0.6)
    # What is found has its true score, in order.
    pairs = search(x[:200], x, 1999, metric=metric, exclude_self=torch.arange(200), backend="torch")
    scores = torch.full((200, 2000), -torch.inf).scatter_(1, pairs.ids, pairs.scores)
    of_found = scores.gather(1, ranking.ids.clamp_min(0)).masked_fill(~found, -torch.inf)
    torch.testing.assert_close(ranking.scores, of_found, atol=1e-4, rtol=1e-4)
    assert bool((ranking.scores[:, 1:] <= ranking.scores[:, :-1]).all())


@needs_faiss
def test_short_codes_find_more_than_they_are_asked_for():
    # Their own scores are rounded: among four times as many, scored exactly, the right ones are found.
    x = torch.randn(4000, 32)
    exact = search(x[:200], x, 5).ids
    for factory, least in {"IVF8,PQ8": 0.75, "PCA16,Flat": 0.42, "IVF8,SQ4": 0.95}.items():
        found = search(x[:200], x, 5, backend=factory, nprobe=8).ids
        assert (found[:, :, None] == exact[:, None, :]).any(2).float().mean() > least
    index = _faiss.build("t", x.numpy(), [x.numpy()], "IVF8,Flat", inner_product=True, nprobe=1)
    assert _faiss.candidates(index) == 1
    index = _faiss.build("t", x.numpy(), [x.numpy()], "HNSW8", inner_product=True, nprobe=1)
    assert _faiss.candidates(index) == 1


@needs_faiss
def test_an_index_is_trained_on_all_parts_of_the_gallery(monkeypatch):
    # Sorted by class, as data sets often are: lists that were learnt from the first class tell the others apart badly.
    x = torch.randn(16, 8).repeat_interleave(128, 0) + 0.3 * torch.randn(2048, 8)
    options = {"metrics": ("recall@1",), "backend": "IVF16,Flat", "nprobe": 1}
    expected = evaluate_retrieval(x, torch.arange(2048) // 2, **options).index_recall
    monkeypatch.setattr(neighbours, "GALLERY_KEPT", 0)
    monkeypatch.setattr(neighbours, "GALLERY_BLOCK", 8 * 512)  # four classes a block
    result = evaluate_retrieval(x, torch.arange(2048) // 2, **options)
    assert result.index_recall > 0.9 * expected > 0.8


@needs_faiss
def test_what_an_index_does_not_find_is_no_item():
    # One list of many is searched: it holds fewer than k, and nothing may be read at -1.
    x, labels = torch.randn(400, 4), torch.arange(400) % 8
    ranking = search(x, x, 60, backend="IVF32,Flat", nprobe=1)
    missing = ranking.ids < 0
    assert bool(missing.any())
    assert bool((ranking.scores[missing] == -torch.inf).all())
    assert bool((missing.int().diff(dim=1) >= 0).all())
    names = ("coverage", "precision", "ndcg", "knn", "r_precision", "map@r")
    exact = evaluate_retrieval(x, labels, ks=(60,), metrics=names)
    result = evaluate_retrieval(x, labels, ks=(60,), metrics=names, backend="IVF32,Flat", nprobe=1)
    assert exact.index_recall is None
    assert 0.05 < result.index_recall < 0.6
    assert result.mean["coverage@60"] < 0.7 * exact.mean["coverage@60"]
    full = evaluate_retrieval(x, labels, ks=(60,), metrics=names, backend="IVF32,Flat", nprobe=32)
    assert full.index_recall == 1.0
    assert full.mean == pytest.approx(exact.mean, abs=1e-6)


@needs_faiss
def test_no_lists_to_search_are_refused():
    x = torch.randn(300, 4)
    with pytest.raises(InputError, match="nprobe is 0, expected at least 1"):
        evaluate_retrieval(x, torch.arange(300) % 7, backend="IVF4,Flat", nprobe=0)


@pytest.mark.parametrize("second", [0.9, 0.8])
def test_what_an_index_does_not_find_votes_for_nothing_whether_others_tie_or_not(second, monkeypatch):
    x = torch.nn.functional.normalize(torch.randn(12, 4), dim=1)
    assessment = Assessment("t", x, [0] * 6 + [1] * 6, metrics=("knn@5",), backend="torch")
    ids = torch.tensor([[1, 2, -1, -1, -1]])
    scores = torch.tensor([[0.9, second, -torch.inf, -torch.inf, -torch.inf]])
    monkeypatch.setattr(Search, "approximate", property(lambda _: True))
    found = assessment._values(assessment.search, slice(0, 1), ids, scores)
    assert float(found["knn@5"]) == 0.0


def test_an_index_that_cannot_be_is_refused():
    x = torch.randn(20, 4)
    for factory, message in [
        ("IVF16384,Flat", "index 'IVF16384,Flat': "),
        ("PQ3", "index 'PQ3': "),
        ("IVF", "index 'IVF"),
    ]:
        with pytest.raises(InputError, match=f"search: {message}"):
            search(x, x, 1, backend=factory)


FORKED = """
import sys
import torch
from contrastive import search
from torch.utils.data import DataLoader

torch.set_num_threads(2)
x = torch.randn(3000, 32, generator=torch.Generator().manual_seed(0))
x[900:1200] = x[0]  # a tie of so many is left to other products, and their threads
x[900:1200, 0] += 1e-6 * torch.arange(300)

class Neighbours:
    def __len__(self):
        return 8
    def __getitem__(self, i):
        return search(x[300 * i:300 * i + 300], x, 5, backend=backend).ids

def child():
    sys.exit(0 if torch.equal(Neighbours()[3], expected[900:1200]) else 1)

way, backend = sys.argv[1:]
expected = search(x, x, 5, backend=backend).ids  # by two threads
if way == "a process":
    process = torch.multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    print(process.exitcode)
    process.kill()
else:
    loader = DataLoader(Neighbours(), None, num_workers=2, multiprocessing_context="fork")
    found = torch.cat(list(loader))
    again = search(x, x, 5, backend=backend).ids
    print(0 if torch.equal(found, expected[:2400]) and torch.equal(again, expected) else 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "backend"),
    [
        ("a DataLoader", "auto"),
        ("a DataLoader", "torch"),
        pytest.param("a DataLoader", "faiss", marks=needs_faiss),
        # Where FAISS is not loaded torch hangs in a process that is no worker of a DataLoader, whatever it computes.
        pytest.param("a process", "auto", marks=needs_faiss),
        pytest.param("a process", "faiss", marks=needs_faiss),
    ],
)
def test_a_forked_child_does_not_hang(way, backend):
    # The threads of OpenMP do not survive a fork; a child that waited for them would wait forever.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", "-c", FORKED, way, backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


# --- faiss, there or not ----------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_detection():
    _faiss._module.cache_clear()
    yield
    _faiss._module.cache_clear()


def test_without_faiss_torch_answers(monkeypatch, fresh_detection):
    monkeypatch.setitem(sys.modules, "faiss", None)  # import raises ImportError
    assert not _faiss.available()
    assert not _faiss.safe_by_default()
    assert _faiss.gpu_count() == 0
    x = torch.randn(5, 3)
    assert torch.equal(search(x, x, 2).ids, search(x, x, 2, backend="torch").ids)
    with pytest.raises(InputError, match=r"backend is 'faiss', which needs FAISS: pip install 'kpair\[faiss\]'"):
        search(x, x, 2, backend="faiss")
    with pytest.raises(RuntimeError, match="FAISS is not available"):
        _faiss.knn(x.numpy(), x.numpy(), 1, inner_product=True)


class _FakeFaiss:
    METRIC_INNER_PRODUCT, METRIC_L2 = 0, 1
    gpus = 0
    calls: list

    def __init__(self, answer=((0,), (1,)), gpus=0):
        self.answer, self.gpus, self.calls = answer, gpus, []

    def _answer(self, queries):
        return np.zeros((len(queries), 1), np.float32), np.array(self.answer, np.int64)[: len(queries)]

    def knn(self, queries, gallery, k, metric):
        self.calls.append("cpu")
        return self._answer(queries)

    def knn_gpu(self, resources, queries, gallery, k, metric):
        self.calls.append("gpu")
        return self._answer(queries)

    def get_num_gpus(self):
        return self.gpus

    def StandardGpuResources(self):
        return object()


class _WithoutDistances:
    METRIC_INNER_PRODUCT = 0

    def knn(self, queries, gallery, k, metric):
        return np.zeros((2, 1), np.float32), np.array([[0], [1]])


def test_a_module_that_answers_wrongly_is_not_faiss(monkeypatch, fresh_detection):
    monkeypatch.setitem(sys.modules, "faiss", _FakeFaiss(answer=((1,), (0,))))
    assert not _faiss.available()
    _faiss._module.cache_clear()
    for leftover in (object(), _WithoutDistances()):  # a namespace left over from an uninstalled twin, say
        _faiss._module.cache_clear()
        monkeypatch.setitem(sys.modules, "faiss", leftover)
        assert not _faiss.available()


def test_the_gpu_function_is_called_with_a_gpu_only(monkeypatch, fresh_detection):
    # Without a GPU `knn_gpu` aborts the whole process.
    for gpus, expected in [(0, "cpu"), (2, "gpu")]:
        _faiss._module.cache_clear()
        _faiss._gpu_resources.cache_clear()
        fake = _FakeFaiss(gpus=gpus)
        monkeypatch.setitem(sys.modules, "faiss", fake)
        assert _faiss.gpu_count() == gpus
        points = np.eye(2, dtype=np.float32)
        _faiss.knn(points, points, 1, inner_product=True)
        assert fake.calls[-1] == expected
        _faiss.knn(points, points, _faiss.GPU_MAX_K + 1, inner_product=True)
        assert fake.calls[-1] == "cpu"
    _faiss._gpu_resources.cache_clear()


@needs_faiss
def test_what_auto_chooses(monkeypatch):
    calls = []
    knn = _faiss.knn
    monkeypatch.setattr(_faiss, "knn", lambda *args, **kwargs: calls.append(1) or knn(*args, **kwargs))
    x = torch.randn(5, 3)
    search(x, x, 1)
    assert len(calls) == (sys.platform != "darwin")
    calls.clear()
    search(x.double(), x.double(), 1)
    assert not calls
    monkeypatch.setattr(sys, "platform", "darwin")  # two OpenMP runtimes
    search(x, x, 1)
    assert not calls
    search(x, x, 1, backend="faiss")
    assert calls


def test_importing_stays_light():
    code = (
        "import sys, contrastive.retrieval, contrastive.metrics, contrastive.geometry, contrastive.probing;"
        "print([m for m in ('faiss', 'sklearn', 'pytorch_metric_learning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# --- evaluation -------------------------------------------------------------------------------------------------------


@backends
@metrics
def test_evaluation_equals_the_loop(backend, metric):
    x, labels = torch.randn(40, 4), torch.randint(0, 12, (40,))
    labels[0] = 99
    result = evaluate_retrieval(x, labels, ks=(1, 3, 7), metric=metric, backend=backend)
    expected, excluded = slow_evaluation(x, labels.tolist(), (1, 3, 7), metric)
    assert result.mean == pytest.approx(expected, abs=1e-6)
    assert result.excluded == excluded > 0
    gallery, gallery_labels = torch.randn(30, 4), torch.randint(0, 8, (30,))
    result = evaluate_retrieval(
        x, labels, gallery=gallery, gallery_labels=gallery_labels, ks=(1, 2), metric=metric, backend=backend
    )
    expected, excluded = slow_evaluation(x, labels.tolist(), (1, 2), metric, gallery, gallery_labels.tolist())
    assert result.mean == pytest.approx(expected, abs=1e-6)
    assert result.excluded == excluded > 0


@pytest.mark.parametrize("own_gallery", [True, False])
def test_evaluation_equals_pml_where_that_is_right(own_gallery):
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    names = {
        "precision_at_1": "precision@1",
        "r_precision": "r_precision",
        "mean_average_precision_at_r": "map@r",
    }
    x, labels = torch.randn(300, 8), torch.randint(0, 40, (300,))
    labels[7] = 1000  # alone in its class
    knn = CustomKNN(LpDistance(normalize_embeddings=False), batch_size=64)
    calculator = AccuracyCalculator(include=tuple(names), k="max_bin_count", device=torch.device("cpu"), knn_func=knn)
    if own_gallery:
        theirs = calculator.get_accuracy(x, labels)
        ours = evaluate_retrieval(x, labels, metric="euclidean")
    else:
        y, gallery_labels = torch.randn(200, 8), torch.randint(0, 40, (200,))
        theirs = calculator.get_accuracy(x, labels, y, gallery_labels)
        ours = evaluate_retrieval(x, labels, gallery=y, gallery_labels=gallery_labels, metric="euclidean")
    assert ours.excluded == 1
    for their_name, name in names.items():
        assert ours.mean[name] == pytest.approx(theirs[their_name], abs=1e-6), name


@backends
def test_knn_of_the_evaluation_equals_scikit_learn(backend):
    from sklearn.neighbors import KNeighborsClassifier

    x, labels = torch.randn(200, 6), torch.randint(0, 5, (200,))
    y, truth = torch.randn(150, 6), torch.randint(0, 5, (150,))
    expected = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(x, labels).score(y, truth)
    result = evaluate_retrieval(y, truth, gallery=x, gallery_labels=labels, backend=backend)
    assert result.mean["precision@1"] == result.mean["recall@1"] == pytest.approx(expected)


@backends
def test_default_k_beyond_the_gallery_are_dropped_and_passed_ones_refused(backend):
    # Elsewhere the missing neighbours have id -1 and read the last label.
    x = torch.randn(7, 3)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    result = evaluate_retrieval(x, labels, backend=backend)
    assert result.dropped == (10, 100)
    assert list(result.mean) == ["recall@1", "recall@5", "precision@1", "r_precision", "map@r"]
    with pytest.raises(InputError, match="k is 10, expected 1 to 6, the items a query can retrieve"):
        evaluate_retrieval(x, labels, ks=(1, 5, 10, 100), backend=backend)
    with pytest.raises(InputError, match="k is 0, expected 1 to 6"):
        evaluate_retrieval(x, labels, ks=(0,), backend=backend)
    with_gallery = evaluate_retrieval(x, labels, gallery=x[:5] + 1, gallery_labels=labels[:5], backend=backend)
    assert with_gallery.dropped == (10, 100)
    assert inspect.signature(evaluate_retrieval).parameters["ks"].default == (1, 5, 10, 100)
    full = evaluate_retrieval(x, labels, ks=(6, 6), backend=backend)
    assert full.mean["recall@6"] == 1.0
    assert full.dropped == ()


@pytest.mark.parametrize("make", [torch.tensor, np.array, list])
def test_labels_above_2_to_24_do_not_merge(make):
    # As float32, 2**24 and 2**24 + 1 are one number.
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    labels = [2**24, 2**24 + 1, 2**24, 2**24 + 1]
    assert evaluate_retrieval(x, make(labels), ks=(1,)).mean["recall@1"] == 0.0
    labels = [2**62, 2**62, 2**62 + 1, 2**62 + 1]
    assert evaluate_retrieval(x, make(labels), ks=(1,)).mean["recall@1"] == 1.0


@pytest.mark.parametrize(
    "labels",
    [
        ["b", "b", "a", "a", "", "a"],
        ("b", "b", "a", "a", "", "a"),
        np.array(["b", "b", "a", "a", "", "a"]),
        np.array(["b", "b", "a", "a", "", "a"], dtype=object),
        torch.tensor([-5, -5, 3, 3, 0, 3]),
        torch.tensor([2, 2, 3, 3, 0, 3], dtype=torch.uint8),
        torch.stack([torch.tensor([2, 2, 3, 3, 0, 3])] * 2, 1)[:, 0],
        np.array([2, 2, 3, 3, 0, 3], dtype=np.uint64),
        np.array([2, 2, 3, 3, 0, 3])[::-1][::-1],
    ],
)
def test_kinds_of_labels(labels):
    x = torch.randn(6, 3)
    expected = evaluate_retrieval(x, torch.tensor([0, 0, 1, 1, 2, 1]))
    result = evaluate_retrieval(x, labels)
    assert result.mean == expected.mean
    assert result.excluded == 1
    other = evaluate_retrieval(x, labels, gallery=x.flip(0), gallery_labels=labels)
    assert other.excluded == 0


def test_labels_that_do_not_fit_are_refused():
    x = torch.randn(3, 2)
    for labels, message in [
        (torch.tensor([0.0, 1.0, 2.0]), "labels have dtype torch.float32, expected integers or strings"),
        (np.array([0.5, 1.0, 2.0]), "labels have dtype float64, expected integers or strings"),
        (np.array([2**63, 0, 0], dtype=np.uint64), "labels have dtype uint64"),
        (torch.tensor([0, 0]), "2 labels for 3 rows, expected one a row"),
        (["a", "a"], "2 labels for 3 rows"),
        (["a", 1, 1], "labels hold 1 strings among 3"),
        ([], "labels are empty, expected integers or strings"),
        (torch.zeros(3, 1, dtype=torch.int64), r"labels have shape \(3, 1\), expected \[3\]"),
        (np.array([None, "a", "a"], dtype=object), "labels have dtype object"),
    ]:
        with pytest.raises(InputError, match="evaluate_retrieval: " + message):
            evaluate_retrieval(x, labels)
    with pytest.raises(InputError, match="evaluate_retrieval: labels are None, expected 3 integers or strings"):
        inspect.unwrap(evaluate_retrieval)(x, None)
    with pytest.raises(InputError, match="gallery_labels is missing"):
        evaluate_retrieval(x, [0, 0, 0], gallery=torch.randn(2, 2))
    with pytest.raises(InputError, match="gallery is missing"):
        evaluate_retrieval(x, [0, 0, 0], gallery_labels=[0, 0])
    with pytest.raises(InputError, match="expected integers in both or strings in both"):
        evaluate_retrieval(x, [0, 0, 0], gallery=torch.randn(2, 2), gallery_labels=["a", "b"])
    with pytest.raises(InputError, match="gallery is embeddings, expected other rows"):
        evaluate_retrieval(x, [0, 0, 0], gallery=x, gallery_labels=[0, 0, 0])


@backends
def test_singletons_are_excluded_and_counted(backend):
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.95, 0.05], [0.0, 1.0]])
    result = evaluate_retrieval(x, ["a", "a", "lone", "other"], ks=(1, 2), backend=backend)
    assert result.excluded == 2
    assert result.queries.tolist() == [0, 1]
    # The singleton stays in the gallery, between the two.
    assert result.per_query["recall@1"].tolist() == [0.0, 0.0]
    assert result.per_query["recall@2"].tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match=r"no query has a relevant item \(every label occurs once\)"):
        evaluate_retrieval(x, [0, 1, 2, 3], backend=backend)
    with pytest.raises(InputError, match="no label of the queries occurs in the gallery"):
        evaluate_retrieval(x, [0] * 4, gallery=x + 1, gallery_labels=[1] * 4, backend=backend)
    with pytest.raises(InputError, match="every label occurs once"):
        evaluate_retrieval(x[:1], [0], backend=backend)


@backends
def test_one_class_is_all_relevant(backend):
    result = evaluate_retrieval(torch.randn(20, 3), [7] * 20, backend=backend)
    assert set(result.mean.values()) == {1.0}
    assert set(result.interval.values()) == {(1.0, 1.0)}
    assert result.dropped == (100,)


@backends
def test_collapsed_embeddings_read_near_chance(backend):
    # Ties in the order of ids: with shuffled labels that is a random order.
    labels = torch.arange(500) % 10
    result = evaluate_retrieval(torch.ones(500, 4), labels[torch.randperm(500)], backend=backend)
    assert result.mean["r_precision"] == pytest.approx(0.1, abs=0.05)


@backends
@settings(max_examples=25, deadline=None)
@given(st.integers(4, 25), st.integers(2, 5), st.integers(0, 2**31))
def test_properties_of_the_evaluation(backend, rows, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator)
    labels = torch.randint(0, 3, (rows,), generator=generator)
    labels[1] = labels[0]
    y = torch.randn(rows, dim, generator=generator)
    ks = tuple(range(1, rows))
    result = evaluate_retrieval(x, labels, ks=ks, backend=backend)
    recalls = [result.mean[f"recall@{k}"] for k in ks]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0
    assert all(0.0 <= value <= 1.0 for value in result.mean.values())
    assert all(0.0 <= low <= high <= 1.0 for low, high in result.interval.values())
    assert result.mean["map@r"] <= result.mean["r_precision"] + 1e-6
    # The order of the gallery's rows does not matter without ties, nor does a rotation.
    order = torch.randperm(rows, generator=generator)
    q = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0].float()
    gallery_labels = labels.flip(0)
    expected = evaluate_retrieval(x, labels, gallery=y, gallery_labels=gallery_labels, ks=ks, backend=backend)
    permuted = evaluate_retrieval(
        x, labels, gallery=y[order], gallery_labels=gallery_labels[order], ks=ks, backend=backend
    )
    assert permuted.mean == pytest.approx(expected.mean, abs=1e-6)
    scores = search(x, y, rows, backend="torch").scores
    if bool((scores.diff(dim=1) < -1e-5).all()):
        rotated = evaluate_retrieval(
            x @ q, labels, gallery=y @ q, gallery_labels=gallery_labels, ks=ks, backend=backend
        )
        assert rotated.mean == pytest.approx(expected.mean, abs=1e-6)


def test_strips_do_not_matter(monkeypatch):
    x, labels = torch.randn(50, 4), torch.randint(0, 20, (50,))
    expected = evaluate_retrieval(x, labels)
    assert expected.excluded > 0
    monkeypatch.setattr(neighbours, "RANKING_BLOCK", 100)
    result = evaluate_retrieval(x, labels)
    assert result.mean == expected.mean
    assert all(torch.equal(result.per_query[name], expected.per_query[name]) for name in expected.per_query)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(5)
    values = torch.from_numpy(generator.random((60, 400)) < 0.3).double()
    ends = bootstrap_interval(values)
    covered = ((ends[:, 0] <= 0.3) & (ends[:, 1] >= 0.3)).double().mean()
    assert 0.88 < float(covered) < 0.99
    # its width is that of the normal approximation
    width = 2 * 1.96 * values.std(0) / math.sqrt(60)
    torch.testing.assert_close(ends[:, 1] - ends[:, 0], width, rtol=0.25, atol=0)


def test_the_interval_draws_whole_queries_from_its_own_generator(monkeypatch):
    values = torch.rand(30, 1, dtype=torch.float64).repeat(1, 2)
    state, theirs = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    ends = bootstrap_interval(values)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (np.random.get_state()[1] == theirs).all()  # noqa: NPY002
    assert torch.equal(ends[0], ends[1])  # the columns share their resamples
    assert torch.equal(bootstrap_interval(values), ends)
    assert not torch.equal(bootstrap_interval(values, seed=1), ends)
    reference = np.random.default_rng(0)
    means = [values[reference.integers(0, 30, 30), 0].mean() for _ in range(1000)]
    torch.testing.assert_close(ends[0], torch.tensor(np.quantile(means, [0.025, 0.975])))
    assert bootstrap_interval(values[:1])[0].tolist() == [float(values[0, 0])] * 2


# --- instances --------------------------------------------------------------------------------------------------------


def slow_instance_recall(queries, gallery, k, metric):
    values = []
    for i, x in enumerate(queries.tolist()):
        scores = [slow_score(x, y, metric) for y in gallery.tolist()]
        higher = sum(score > scores[i] for score in scores)
        equal = sum(score == scores[i] for score in scores)
        values.append(min(1.0, max(0.0, (k - higher) / equal)))
    return sum(values) / len(values)


@metrics
@pytest.mark.parametrize("distractors", [0, 9])
def test_instance_recall_equals_the_loop_and_the_ranking(metric, distractors):
    x = torch.randn(30, 4)
    y = torch.cat([x + 0.8 * torch.randn(30, 4), torch.randn(distractors, 4)])
    result = instance_recall(x, y, ks=(1, 5, 30), metric=metric)
    ids = search(x, y, 30, metric=metric).ids
    for k in (1, 5, 30):
        assert result.mean[f"recall@{k}"] == pytest.approx(slow_instance_recall(x, y, k, metric))
        ranked = (ids[:, :k] == torch.arange(30)[:, None]).any(1).float()
        assert torch.equal(result.per_query[f"recall@{k}"], ranked)
    assert list(result.mean) == ["recall@1", "recall@5", "recall@30"]
    assert result.excluded == 0


def test_instances_tie_where_products_round_as_they_are_cut(monkeypatch):
    x = torch.randn(40, 3)[torch.randint(40, (1100,))]  # equal rows, over two blocks of unequal size
    expected = instance_recall(x, x, ks=(1, 5)).mean
    multiply = retrieval.similarity

    def rounded(x, y, metric, *rest):
        return multiply(x, y, metric, *rest) * (1 + (len(x) + len(y)) % 11 * 2.0**-20)

    monkeypatch.setattr(retrieval, "similarity", rounded)
    assert instance_recall(x, x, ks=(1, 5)).mean == expected


def test_instance_recall_over_several_blocks():
    x = torch.randn(2100, 8)
    y = torch.cat([x, torch.randn(1100, 8)]) + 0.3 * torch.randn(3200, 8)
    result = instance_recall(x, y, ks=(1, 10), metric="euclidean")
    ids = search(x, y, 10, metric="euclidean", backend="torch").ids == torch.arange(2100)[:, None]
    assert result.mean["recall@1"] == pytest.approx(float(ids[:, 0].float().mean()), abs=1e-3)
    assert result.mean["recall@10"] == pytest.approx(float(ids.any(1).float().mean()), abs=1e-3)


@metrics
def test_instance_recall_of_ties_is_the_expectation(metric):
    # Exact in small integers: four duplicates of each row, so the own one is first in one of four orders.
    x = torch.eye(8)
    result = instance_recall(x.repeat(4, 1), x.repeat(4, 1), ks=(1, 2, 4, 5), metric=metric)
    assert result.mean == {"recall@1": 0.25, "recall@2": 0.5, "recall@4": 1.0, "recall@5": 1.0}


@metrics
@pytest.mark.parametrize("rows", [1, 2, 1025, 1500])
def test_collapsed_instances_read_chance(metric, rows):
    x = torch.randn(1, 37).repeat(rows, 1)
    result = instance_recall(x, x, ks=(1, rows), metric=metric)
    assert result.mean["recall@1"] == pytest.approx(1 / rows)
    assert result.mean[f"recall@{rows}"] == 1.0


def test_instances_that_do_not_fit_are_refused():
    x = torch.randn(4, 2)
    with pytest.raises(InputError, match="instance_recall: 4 queries and a gallery of 3"):
        instance_recall(x, x[:3])
    with pytest.raises(InputError, match="instance_recall: k is 5, expected 1 to 4"):
        instance_recall(x, x, ks=(5,))
    with pytest.raises(InputError, match="instance_recall: ks is empty"):
        instance_recall(x, x, ks=())
    with pytest.raises(InputError, match="expected the same width"):
        instance_recall(x, torch.randn(4, 3))


def test_no_warning_is_leaked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_only = np.random.default_rng(0).random((6, 3), dtype=np.float32)
        read_only.flags.writeable = False
        evaluate_retrieval(read_only, np.array([0, 0, 1, 1, 2, 2]))
