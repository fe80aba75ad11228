"""Metrics from hits: against loops written from the formulas, and scikit-learn."""

import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive.errors import InputError
from contrastive.metrics import (
    average_precision,
    coverage_at,
    knn_at,
    map_at_r,
    ndcg_at,
    precision_at,
    r_precision,
    recall_at,
    reciprocal_rank,
    retrieval_metrics,
    tie_groups,
)


def slow_recall(row, relevant, k):
    return float(any(row[:k]))


def slow_precision(row, relevant, k):
    return sum(row[:k]) / k


def slow_coverage(row, relevant, k):
    return sum(row[:k]) / relevant


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
    (lambda hits, relevant: coverage_at(hits, relevant, 1), lambda row, r: slow_coverage(row, r, 1)),
    (
        lambda hits, relevant: coverage_at(hits, relevant, hits.shape[1]),
        lambda row, r: slow_coverage(row, r, len(row)),
    ),
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
    alone = {
        "recall@1": recall_at(hits, 1),
        "cmc@1": recall_at(hits, 1),
        f"recall@{depth}": recall_at(hits, depth),
        f"coverage@{depth}": coverage_at(hits, relevant, depth),
        "precision@1": precision_at(hits, 1),
        "r_precision": r_precision(hits, relevant),
        "map@r": map_at_r(hits, relevant),
        "map": average_precision(hits, relevant),
        "mrr": reciprocal_rank(hits),
        "mrr@1": reciprocal_rank(hits[:, :1]),
    }
    together = retrieval_metrics(hits, relevant, list(alone))
    assert list(together) == list(alone)
    for name, values in alone.items():
        assert torch.equal(together[name], values), name
    first = hits[:, :1]
    torch.testing.assert_close(
        retrieval_metrics(hits, relevant, ["map@1"])["map@1"], average_precision(first, relevant)
    )


# --- ties: every metric is its mean over all orders of equal items ----------------------------------------------------


def orders(scores, items):
    """All rankings by score that differ in the order of equal ones."""
    groups = [[x for s, x in zip(scores, items, strict=True) if s == value] for value in sorted(set(scores))[::-1]]
    for parts in itertools.product(*(list(itertools.permutations(group)) for group in groups)):
        yield [x for part in parts for x in part]


def dcg(gains):
    return sum(g / math.log2(j + 2) for j, g in enumerate(gains))


def majority(classes, truth):
    counts = {c: classes.count(c) for c in classes}
    best = [c for c in counts if counts[c] == max(counts.values())]
    return (truth in best) / len(best)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6), st.data())
def test_ties_give_the_mean_over_all_orders(items, data):
    items = sorted(items, key=lambda item: -item[0])
    scores, grades = [s for s, _ in items], [g for _, g in items]
    if not any(grades):
        grades[-1] = 1
    depth = data.draw(st.integers(1, len(items)))  # the last group may reach beyond the ranking
    k = data.draw(st.integers(1, depth))
    relevant = sum(g > 0 for g in grades)
    last = [g for s, g in zip(scores, grades, strict=True) if s == scores[depth - 1]]
    row = torch.tensor([scores[:depth]], dtype=torch.float32)
    gains = torch.tensor([grades[:depth]], dtype=torch.float64)
    hits, total = gains > 0, torch.tensor([relevant])
    ties = tie_groups(
        row, hits, last_size=torch.tensor([len(last)]), last_hits=torch.tensor([sum(g > 0 for g in last)])
    )
    everything = [[g > 0 for g in order] for order in orders(scores, grades)]
    ranked = [order[:depth] for order in everything]
    expected = {
        f"recall@{k}": [slow_recall(order, relevant, k) for order in ranked],
        f"coverage@{k}": [slow_coverage(order, relevant, k) for order in ranked],
        f"precision@{k}": [slow_precision(order, relevant, k) for order in ranked],
        f"mrr@{k}": [slow_reciprocal_rank(order[:k], relevant) for order in ranked],
        "mrr": [slow_reciprocal_rank(order, relevant) for order in ranked],
        "map": [slow_average_precision(order, relevant) for order in ranked],
        f"map@{k}": [slow_average_precision(order, relevant, k) for order in ranked],
    }
    if relevant <= depth:
        expected["r_precision"] = [slow_r_precision(order, relevant) for order in ranked]
        expected["map@r"] = [slow_map_at_r(order, relevant) for order in ranked]
    found = retrieval_metrics(hits, total, list(expected), ties=ties)
    for name, values in expected.items():
        assert found[name].item() == pytest.approx(sum(values) / len(values), abs=1e-6), name
    for name, value in (
        (f"recall@{k}", recall_at(hits, k, ties=ties)),
        (f"coverage@{k}", coverage_at(hits, total, k, ties=ties)),
        (f"precision@{k}", precision_at(hits, k, ties=ties)),
        ("mrr", reciprocal_rank(hits, ties=ties)),
        ("map", average_precision(hits, total, ties=ties)),
    ):
        assert torch.equal(found[name], value), name
    ideal = sorted(grades, reverse=True)
    values = [dcg(order[:k]) / dcg(ideal[:k]) for order in orders(scores, grades)]
    averaged = ties.average(gains, torch.tensor([float(sum(last))]))
    assert ndcg_at(averaged, torch.tensor([ideal]).double(), k).item() == pytest.approx(
        sum(values) / len(values), abs=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=8), st.integers(0, 3), st.data())
def test_votes_of_neighbours(items, truth, data):
    items = sorted(items, key=lambda item: -item[0])
    scores, classes = [s for s, _ in items], [c for _, c in items]
    depth = data.draw(st.integers(1, len(items)))
    k = data.draw(st.integers(1, depth))
    row, of_row = torch.tensor([scores[:depth]], dtype=torch.float32), torch.tensor([classes[:depth]])
    t = torch.tensor([truth])
    assert knn_at(of_row, t, k).item() == pytest.approx(majority(classes[:k], truth), abs=1e-6)
    # With ties: shares of the group that is cut.
    votes = dict.fromkeys(range(4), 0.0)
    for s, c in items:
        before, size = sum(x > s for x in scores), scores.count(s)
        votes[c] += min(1, max(0, (k - before) / size))
    best = [c for c in votes if votes[c] > max(votes.values()) - 1e-9]
    last = [c for s, c in items if s == scores[depth - 1]]
    ties = tie_groups(row, of_row < 0, last_size=torch.tensor([len(last)]))
    counts = torch.tensor([[float(last.count(c)) for c in range(3)]])
    expected = (truth in best) / len(best)
    assert knn_at(of_row, t, k, ties=ties, last=counts).item() == pytest.approx(expected, abs=1e-6)
    if scores.count(scores[depth - 1]) == sum(s == scores[depth - 1] for s in scores[:depth]):
        assert knn_at(of_row, t, k, ties=ties).item() == pytest.approx(expected, abs=1e-6)


def test_large_groups_of_equal_score_read_chance():
    # 50,000 equal scores, 500 relevant: no factorial may overflow, no digit may be lost.
    scores, hits = torch.zeros(1, 1000), torch.zeros(1, 1000, dtype=torch.bool)
    ties = tie_groups(scores, hits, last_size=torch.tensor([50_000]), last_hits=torch.tensor([500]))
    relevant = torch.tensor([500])
    assert precision_at(hits, 10, ties=ties).item() == pytest.approx(0.01, rel=1e-6)
    assert coverage_at(hits, relevant, 1000, ties=ties).item() == pytest.approx(0.02, rel=1e-6)
    missed = math.prod((49_500 - i) / (50_000 - i) for i in range(10))
    assert recall_at(hits, 10, ties=ties).item() == pytest.approx(1 - missed, rel=1e-6)
    assert r_precision(hits, relevant, ties=ties).item() == pytest.approx(0.01, rel=1e-6)


def test_graded_gains():
    gains, ideal = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[3.0, 1.0, 1.0]])
    expected = dcg([0, 3, 1]) / dcg([3, 1, 1])
    assert ndcg_at(gains, ideal, 3).item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(InputError, match="ndcg_at: query 1 has no item of positive gain"):
        ndcg_at(gains.repeat(2, 1), torch.stack([ideal[0], ideal[0] * 0]), 3)
    with pytest.raises(InputError, match="ndcg_at: query 0 gains more than its ideal"):
        ndcg_at(gains, ideal / 9, 3)
    with pytest.raises(InputError, match="ndcg_at: k is 4"):
        ndcg_at(gains, ideal, 4)


@pytest.mark.parametrize("name", ["recall", "recall@", "map@q", "accuracy", "r_precision@2", "mrr@", "precision@r"])
def test_names_that_are_no_metric_are_refused(name):
    with pytest.raises(InputError, match=f"'{name}' is no metric of hits"):
        retrieval_metrics(torch.ones(1, 3, dtype=torch.bool), torch.tensor([3]), [name])


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
        retrieval_metrics(hits, torch.tensor([2, 0]), ["recall@1"])
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
        retrieval_metrics(hits, torch.tensor([3, 3]), ["recall@1", "recall@4"])
    with pytest.raises(InputError, match="map_at_r: the ranking is 3 deep, expected at least 7"):
        map_at_r(hits, torch.tensor([3, 7]))
    with pytest.raises(InputError, match="average_precision: query 1 has 3 hits, expected at most 2"):
        average_precision(hits, torch.tensor([3, 2]))
    with pytest.raises(InputError, match=r"r_precision: relevant has shape \(1,\) for 2 queries"):
        inspect.unwrap(r_precision)(hits, torch.tensor([3]))


def test_input_is_left_alone():
    hits, relevant = torch.rand(4, 6) < 0.5, torch.tensor([6, 6, 6, 6])
    before = hits.clone()
    retrieval_metrics(hits, relevant, ["recall@1", "map@r"])
    assert torch.equal(hits, before)
    strided = torch.stack([hits, ~hits], 2)[:, :, 0]
    assert torch.equal(map_at_r(strided, relevant), map_at_r(hits, relevant))
