"""Metrics from hits: against loops written from the formulas, and scikit-learn."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive.errors import InputError
from contrastive.metrics import (
    average_precision,
    map_at_r,
    precision_at,
    r_precision,
    recall_at,
    reciprocal_rank,
    retrieval_metrics,
)


def slow_recall(row, relevant, k):
    return float(any(row[:k]))


def slow_precision(row, relevant, k):
    return sum(row[:k]) / k


def slow_r_precision(row, relevant):
    return slow_precision(row, relevant, relevant)


def slow_average_precision(row, relevant, depth=None):
    total = 0.0
    for j, hit in enumerate(row[:depth], start=1):
        if hit:
            total += sum(row[:j]) / j
    return total / relevant


def slow_map_at_r(row, relevant):
    return slow_average_precision(row, relevant, relevant)


def slow_reciprocal_rank(row, relevant):
    for j, hit in enumerate(row, start=1):
        if hit:
            return 1 / j
    return 0.0


@st.composite
def rankings(draw):
    queries, depth = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    hits = [[draw(st.booleans()) for _ in range(depth)] for _ in range(queries)]
    relevant = [draw(st.integers(max(1, sum(row)), depth)) for row in hits]
    return torch.tensor(hits), torch.tensor(relevant)


PAIRS = [
    (lambda hits, relevant: r_precision(hits, relevant), slow_r_precision),
    (lambda hits, relevant: map_at_r(hits, relevant), slow_map_at_r),
    (lambda hits, relevant: average_precision(hits, relevant), slow_average_precision),
    (lambda hits, relevant: reciprocal_rank(hits), slow_reciprocal_rank),
    (lambda hits, relevant: recall_at(hits, 1), lambda row, r: slow_recall(row, r, 1)),
    (lambda hits, relevant: recall_at(hits, hits.shape[1]), lambda row, r: slow_recall(row, r, len(row))),
    (lambda hits, relevant: precision_at(hits, 1), lambda row, r: slow_precision(row, r, 1)),
    (lambda hits, relevant: precision_at(hits, hits.shape[1]), lambda row, r: slow_precision(row, r, len(row))),
]


@pytest.mark.parametrize(("fast", "slow"), PAIRS)
@settings(max_examples=40, deadline=None)
@given(rankings())
def test_equals_the_loop(fast, slow, ranking):
    hits, relevant = ranking
    values = fast(hits, relevant)
    expected = [slow(row, r) for row, r in zip(hits.tolist(), relevant.tolist(), strict=True)]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)
    assert values.dtype == torch.float32
    assert bool(((values >= 0) & (values <= 1)).all())


@settings(max_examples=40, deadline=None)
@given(rankings())
def test_order_of_the_metrics(ranking):
    hits, relevant = ranking
    assert bool((map_at_r(hits, relevant) <= r_precision(hits, relevant) + 1e-6).all())
    assert bool((map_at_r(hits, relevant) <= average_precision(hits, relevant) + 1e-6).all())
    recalls = torch.stack([recall_at(hits, k) for k in range(1, hits.shape[1] + 1)])
    assert bool((recalls.diff(dim=0) >= 0).all())
    torch.testing.assert_close(precision_at(hits, 1), recall_at(hits, 1))


@settings(max_examples=20, deadline=None)
@given(rankings())
def test_one_cumulative_sum_gives_the_same(ranking):
    hits, relevant = ranking
    depth = hits.shape[1]
    together = retrieval_metrics(hits, relevant, ks=(1, depth))
    assert set(together) == {"recall@1", f"recall@{depth}", "precision@1", "r_precision", "map@r"}
    assert torch.equal(together["recall@1"], recall_at(hits, 1))
    assert torch.equal(together[f"recall@{depth}"], recall_at(hits, depth))
    assert torch.equal(together["precision@1"], precision_at(hits, 1))
    assert torch.equal(together["r_precision"], r_precision(hits, relevant))
    assert torch.equal(together["map@r"], map_at_r(hits, relevant))


def test_average_precision_is_scikit_learns():
    from sklearn.metrics import average_precision_score

    hits = torch.rand(20, 50) < 0.3
    scores = torch.arange(50, 0, -1).numpy()
    expected = [average_precision_score(row.numpy(), scores) for row in hits]
    torch.testing.assert_close(
        average_precision(hits, hits.sum(1)).double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_a_perfect_ranking_reads_exactly_one():
    hits = torch.ones(3, 6000, dtype=torch.bool)
    relevant = torch.tensor([6000, 5999, 6000])
    hits[1, 5999] = False
    for metric in (r_precision, map_at_r, average_precision):
        assert metric(hits, relevant).tolist() == [1.0, 1.0, 1.0]


def test_relevant_items_that_were_not_retrieved_count():
    # One of ten found at the first rank: 0.1, not 1.0 as where the hits alone are counted.
    hits = torch.zeros(1, 5, dtype=torch.bool)
    hits[0, 0] = True
    assert average_precision(hits, torch.tensor([10])).item() == pytest.approx(0.1)
    assert reciprocal_rank(torch.zeros(1, 5, dtype=torch.bool)).item() == 0.0


def test_queries_without_a_relevant_item_are_refused():
    hits = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(InputError, match="retrieval_metrics: query 1 has 0 relevant items"):
        retrieval_metrics(hits, torch.tensor([2, 0]), ks=(1,))
    for metric in (r_precision, map_at_r, average_precision):
        with pytest.raises(InputError, match=rf"{metric.__name__}: query 1 has 0 relevant items, expected at least 1"):
            metric(hits, torch.tensor([2, 0]))


def test_what_does_not_fit_is_refused():
    hits = torch.ones(2, 3, dtype=torch.bool)
    for k in (0, 4, -1):
        with pytest.raises(InputError, match=rf"recall_at: k is {k}, expected 1 to 3"):
            recall_at(hits, k)
        with pytest.raises(InputError, match=rf"precision_at: k is {k}, expected 1 to 3"):
            precision_at(hits, k)
    with pytest.raises(InputError, match="retrieval_metrics: k is 4"):
        retrieval_metrics(hits, torch.tensor([3, 3]), ks=(1, 4))
    with pytest.raises(InputError, match="map_at_r: the ranking is 3 deep, expected at least 7"):
        map_at_r(hits, torch.tensor([3, 7]))
    with pytest.raises(InputError, match="average_precision: query 1 has 3 hits, expected at most 2"):
        average_precision(hits, torch.tensor([3, 2]))
    with pytest.raises(InputError, match=r"r_precision: relevant has shape \(1,\) for 2 queries"):
        inspect.unwrap(r_precision)(hits, torch.tensor([3]))


def test_input_is_left_alone():
    hits, relevant = torch.rand(4, 6) < 0.5, torch.tensor([6, 6, 6, 6])
    before = hits.clone()
    retrieval_metrics(hits, relevant, ks=(1, 3))
    assert torch.equal(hits, before)
    strided = torch.stack([hits, ~hits], 2)[:, :, 0]
    assert torch.equal(map_at_r(strided, relevant), map_at_r(hits, relevant))
