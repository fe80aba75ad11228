"""The k largest entries of rows of any width are those that ranking the whole row finds."""

import math

import pytest
import torch

from contrastive.ranking import columns_of_largest, largest, largest_in_order, largest_of_columns, merged
from miners import hardest, topk
from tests import references
from tests.references import INF, close, scores_with_gaps

# Below four groups' worth of columns all are ranked; above they are dealt to 128 groups, or 256, or 32 times as many as
# are needed. Up to 512 numpy ranks, beyond torch.
WIDTHS = [1, 7, 128, 511, 512, 513, 1024, 1031, 4099]
KS = [1, 2, 4, 5, 16, 31, 32, 33, 64, 65, 100, 500]


def values(scores, k):
    found, columns = largest(scores, k)
    assert columns.shape == (len(scores), k)
    assert torch.equal(columns, columns_of_largest(scores, k))
    assert torch.equal(scores.gather(1, columns), found)
    assert all(len(set(row)) == k for row in columns.tolist())
    return found.sort(1, descending=True).values


@pytest.mark.parametrize("width", WIDTHS)
def test_are_those_of_a_sort(width):
    ties = torch.randint(5, (6, width)).double()
    gaps, _ = scores_with_gaps(6, width, absent=0.9)
    for scores in (torch.randn(6, width), ties, gaps, torch.zeros(6, width), torch.full((6, width), -INF)):
        for k in {*KS, width - 1, width}:
            if 1 <= k <= width:
                assert torch.equal(values(scores, k), scores.sort(1, descending=True).values[:, :k])


@pytest.mark.parametrize("width", [512, 1024, 1500, 4099])
@pytest.mark.parametrize("k", [1, 4, 16, 60])
def test_wherever_they_stand(width, k):
    # Ascending, descending, all in one group, all in the columns that are in none.
    line = torch.arange(width).double()
    one_group = (torch.arange(width) % 128 == 3).double() * (1 + line)
    for scores in (line, -line, one_group, line % 128, -((line - width // 2) ** 2)):
        scores = scores.expand(3, -1).contiguous()
        assert torch.equal(values(scores, k), scores.topk(k, dim=1).values)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_a_miner_of_wide_rows_is_its_loop(k):
    scores, targets = scores_with_gaps(3, 1100, absent=0.3)
    scores[1] = scores[1].new_full((1100,), -INF).scatter(0, targets[1], 1.0)
    scores[2].scatter_(0, targets[2], 100.0)  # the positive is not one of the k
    present = scores > -INF
    for miner in [topk(k), *([hardest()] if k == 1 else [])]:
        close(miner(scores, targets)[present], references.topk(k)(scores, targets)[present], 0.0)


@pytest.mark.parametrize("k", [1, 16])
def test_a_broken_score_is_kept(k):
    scores = torch.randn(2, 1100)
    scores[1, 700] = math.nan
    assert 700 in topk(k)(scores, torch.zeros(2, dtype=torch.int64))[1].eq(0).nonzero()


def test_gradients_reach_the_largest():
    scores = torch.randn(3, 600, requires_grad=True)
    found, columns = largest(scores, 8)
    found.sum().backward()
    assert torch.equal(scores.grad, torch.zeros(3, 600).scatter(1, columns, 1.0))


def test_an_empty_strip():
    assert columns_of_largest(torch.empty(0, 600), 8).shape == (0, 8)


@pytest.mark.parametrize("rows", [1, 15, 63, 64, 65, 79, 256, 300])
def test_the_largest_of_columns(rows):
    for scores in (torch.randn(rows, 7), torch.full((rows, 7), -INF), torch.randn(7, rows).T, torch.randn(rows, 0)):
        found, at = largest_of_columns(scores)
        assert torch.equal(found, scores.amax(0))
        assert torch.equal(scores.gather(0, at[None]).squeeze(0), found)
    ends = torch.zeros(rows, 2)
    ends[0, 0] = ends[-1, 1] = 1.0
    assert largest_of_columns(ends)[1].tolist() == [0, rows - 1]


def sorted_by_hand(scores, k):
    """The larger first, among equals the lower column: a stable sort."""
    found = scores.sort(dim=1, descending=True, stable=True)
    return found.values[:, :k], found.indices[:, :k]


class TestInOrder:
    @pytest.mark.parametrize("width", [5, 2047, 2048, 2049, 3000, 5000])
    def test_are_those_of_a_stable_sort(self, width):
        near_duplicates = torch.randn(6, width)
        near_duplicates[:, 7 % width :: 11] = 5.0
        gaps, _ = scores_with_gaps(6, width, absent=0.97)
        coarse = torch.randn(6, width).round(decimals=1)
        equal = torch.zeros(6, width)
        for scores in (torch.randn(6, width), torch.randn(6, width).double(), near_duplicates, gaps, coarse, equal):
            for k in {k for k in (1, 2, 10, 100, 170, 171, 400, width - 1, width) if 1 <= k <= width}:
                values, ids = sorted_by_hand(scores, k)
                found = largest_in_order(scores, k)
                assert torch.equal(found[0], values)
                assert torch.equal(found[1], ids)

    def test_some_columns_of_a_wider_buffer(self):
        scores = torch.randn(8, 4096)
        found, expected = largest_in_order(scores[:, :3000], 20), sorted_by_hand(scores[:, :3000], 20)
        assert torch.equal(found[1], expected[1])

    def test_few_and_no_rows(self):
        for rows in (0, 1):
            values, ids = largest_in_order(torch.randn(rows, 3000), 9)
            assert values.shape == ids.shape == (rows, 9)

    @pytest.mark.parametrize("ties", [False, True])
    def test_two_rankings_merge_into_that_of_both(self, ties):
        scores = torch.randn(9, 600)
        scores = scores.round(decimals=1) if ties else scores
        first = sorted_by_hand(scores[:, :350], 40)
        values, ids = sorted_by_hand(scores[:, 350:], 40)
        found, expected = merged(first, (values, ids + 350), 40), sorted_by_hand(scores, 40)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert merged(None, first, 40) is first
