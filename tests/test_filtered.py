"""Exact search by a filter: nothing is lost, whatever the precision, the signs, the order of rows, or threads."""

import pytest
import torch
from references import AWKWARD, awkward

from contrastive import _faiss, filtered, neighbours
from contrastive.codes import Codes
from contrastive.retrieval import search

pytestmark = pytest.mark.skipif(not _faiss.scores_pairs(), reason="FAISS is not installed")
METRICS = ["cosine", "inner_product", "euclidean"]
ROWS = 1500


@pytest.fixture
def small_blocks(monkeypatch):
    """Strips of a few rows, three blocks of columns, groups of a few members."""
    monkeypatch.setattr(filtered, "WIDTH", 512)
    monkeypatch.setattr(filtered, "ENTRIES", 512 * 70)
    monkeypatch.setattr(filtered, "_GROUPS", 64)


def check(x, y, metric, dtype, own):
    """Against all scores in float64; returns how many queries were left to others."""
    k = 5
    values, ids, crowded = filtered.nearest(x, y, Codes.of(y, metric, dtype), k, own)
    expected = -torch.cdist(x.double(), y.double()).square() if metric == "euclidean" else x.double() @ y.double().T
    tolerance = 2e-6 * float(expected.abs().max())
    if own is not None:
        expected[torch.arange(len(x)), own] = -torch.inf
        assert not (ids == own[:, None])[~crowded].any()
    values, ids, expected = values[~crowded], ids[~crowded], expected[~crowded]
    best = expected.sort(dim=1, descending=True, stable=True).values[:, :k]
    torch.testing.assert_close(values.double(), best, atol=tolerance, rtol=2e-6)
    torch.testing.assert_close(expected.gather(1, ids), best, atol=tolerance, rtol=2e-6)
    assert all(len(set(row)) == k for row in ids.tolist())
    return int(crowded.sum())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", [*AWKWARD, "reversed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("leave_out", [False, True])
def test_nothing_is_lost(metric, kind, dtype, leave_out):
    x = awkward("sorted" if kind == "reversed" else kind, torch.Generator().manual_seed(1), ROWS)
    x = x.flip(0) if kind == "reversed" else x
    # Rows as the library prepares them: what the search decides is checked, not what preparing rounds.
    y, _ = neighbours.prepared("test", x, x, metric, torch.float32)
    some = torch.arange(0, ROWS, 3)
    crowded = check(y[some], y, metric, dtype, some if leave_out else None)
    # Distances of a millionth of the longest row are beyond float32, and so are cosines of 1 - 1e-8.
    if (kind, metric) not in {("lengths", "euclidean"), ("near duplicates", "cosine")}:
        assert crowded == 0 or (dtype == torch.bfloat16 and kind in ("near duplicates", "one direction"))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_rounding_of_products_is_counted(dtype):
    # Codes are exact; in bfloat16 products above 256 are not.
    x = torch.randint(0, 8, (ROWS, 20), generator=torch.Generator().manual_seed(1)).float()
    check(x[:300], x, "inner_product", dtype, torch.arange(300))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
def test_little_more_than_what_is_asked_for_is_scored(metric, monkeypatch):
    pairs = []
    scores = _faiss.scores
    monkeypatch.setattr(
        _faiss, "scores", lambda x, row, *rest, **options: pairs.append(len(row)) or scores(x, row, *rest, **options)
    )
    x = awkward("plain", torch.Generator().manual_seed(1), ROWS)
    y, _ = neighbours.prepared("test", x, x, metric, torch.float32)
    filtered.nearest(y, y, Codes.of(y, metric, torch.float32), 5, None)
    # A block of three adds what is above the best of the ones before: 5, 5 and 2.5 in the mean, and a few more.
    assert sum(pairs) < 14 * ROWS


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.999])
def test_signs_do_not_matter(dtype, share):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(300, 20, generator=generator), -torch.rand(ROWS, 20, generator=generator)
    positive = torch.rand(ROWS, generator=generator) < share
    y[positive] *= -1
    for order in (positive.int().argsort(), positive.int().argsort(descending=True)):
        assert check(x, y[order], "inner_product", dtype, None) == 0


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_scores_stand_in_the_order_of_rows(metric, dtype, monkeypatch):
    monkeypatch.setattr(neighbours, "faster_dtype", lambda *where: dtype)
    monkeypatch.setattr(_faiss, "gpu_count", lambda: 0)
    generator = torch.Generator().manual_seed(2)
    # Whole numbers, their mean too, so that all libraries find equal scores equal: for the cosine, rows of one length.
    x = torch.randint(-2, 3, (100, 6), generator=generator).float()
    x = torch.cat([x, -x]).repeat(5, 1)
    if metric == "cosine":
        x = torch.tensor([1.0, -1.0])[torch.randint(0, 2, (500, 16), generator=generator)].repeat(2, 1)
    for own in (False, True):
        found, expected = (
            search(x, x, 7, metric=metric, exclude_self=own, backend=backend) for backend in ("auto", "torch")
        )
        assert torch.equal(found.ids, expected.ids)
        torch.testing.assert_close(found.scores, expected.scores)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
def test_what_crowds_is_ranked_by_torch(metric, monkeypatch):
    monkeypatch.setattr(_faiss, "gpu_count", lambda: 0)
    settled = []
    rank = neighbours._torch_top
    monkeypatch.setattr(
        neighbours, "_torch_top", lambda x, *rest, **more: settled.append(len(x)) or rank(x, *rest, **more)
    )
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1400, 8, generator=generator)
    x[200:900] = x[200]  # half of it collapsed
    found = search(x, x, 6, metric=metric, exclude_self=True)
    assert sum(settled) >= 700
    assert sum(settled) < 1400
    assert found.ids[200].tolist() == [201, 202, 203, 204, 205, 206]
    assert found.ids[899].tolist() == [200, 201, 202, 203, 204, 205]
    expected = search(x, x, 6, metric=metric, exclude_self=True, backend="torch")
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_blocks_and_threads_change_no_digit(dtype, monkeypatch):
    x = torch.randn(3000, 16, generator=torch.Generator().manual_seed(4))
    codes, own = Codes.of(x, "euclidean", dtype), torch.arange(3000)
    expected = filtered.nearest(x, x, codes, 9, own)
    threads = torch.get_num_threads()
    try:
        for count, width, entries in ((1, 700, 10**5), (2, 2**16, 2**23), (3, 1100, 10**4)):
            torch.set_num_threads(count)
            monkeypatch.setattr(filtered, "WIDTH", width)
            monkeypatch.setattr(filtered, "ENTRIES", entries)
            monkeypatch.setattr(filtered, "_GROUPS", 64)
            found = filtered.nearest(x, x, codes, 9, own)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_rows_that_crowd_in_bfloat16_are_told_apart_by_float32(monkeypatch):
    monkeypatch.setattr(_faiss, "gpu_count", lambda: 0)
    monkeypatch.setattr(neighbours, "faster_dtype", lambda *where: torch.bfloat16)
    used = []
    of = Codes.of
    monkeypatch.setattr(neighbours.Codes, "of", lambda y, metric, dtype: used.append(dtype) or of(y, metric, dtype))
    x = 1.0 + 0.02 * torch.randn(5000, 20, generator=torch.Generator().manual_seed(6))  # cosines of about 0.9996
    found = search(x, x, 5, exclude_self=True)
    assert used == [torch.bfloat16, torch.float32]  # once, for both strips
    expected = search(x, x, 5, exclude_self=True, backend="torch")
    assert float((found.ids == expected.ids).float().mean()) > 0.99


def test_rows_that_overflow_in_the_filter_are_left_to_others(monkeypatch):
    monkeypatch.setattr(_faiss, "gpu_count", lambda: 0)
    generator = torch.Generator().manual_seed(5)
    y = 1e-30 * torch.randn(2500, 8, generator=generator)
    x = torch.cat([1e30 * torch.randn(3, 8, generator=generator), 1e-30 * torch.randn(3, 8, generator=generator)])
    found, expected = (search(x, y, 5, metric="inner_product", backend=backend) for backend in ("auto", "torch"))
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.scores, expected.scores, atol=0, rtol=1e-5)


def test_small_galleries_and_deep_rankings_are_ranked_as_they_are():
    assert filtered.pays(2048, 10)
    assert not filtered.pays(2047, 10)
    assert not filtered.pays(10**6, 1025)
    assert filtered.pays(10**6, 1024)
