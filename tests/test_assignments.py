"""Soft assignments: formulas by loops, claims by enumeration of whole populations and of every sample."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import INF, refused

from contrastive.assignments import (
    conditional_entropy,
    discrete_information,
    divergence,
    entropy_balance,
    marginal_entropy,
)


def softmax(row):
    top = max(row)
    weights = [math.exp(v - top) for v in row]
    return [w / math.fsum(weights) for w in weights]


def xlogy(x, y):
    return x * math.log(y) if x else 0.0


def looped_information(logits, other, lam, symmetric):
    """Ji et al. (2019), eq. 3, cell by cell; lambda as in the authors' code."""
    p, q = ([softmax(row) for row in m.tolist()] for m in (logits, other))
    k = len(p[0])
    joint = [[math.fsum(a[c] * b[d] for a, b in zip(p, q, strict=True)) / len(p) for d in range(k)] for c in range(k)]
    if symmetric:
        joint = [[(joint[c][d] + joint[d][c]) / 2 for d in range(k)] for c in range(k)]
    rows = [math.fsum(row) for row in joint]
    columns = [math.fsum(joint[c][d] for c in range(k)) for d in range(k)]
    return math.fsum(
        xlogy(joint[c][d], joint[c][d]) - lam * xlogy(joint[c][d], rows[c]) - lam * xlogy(joint[c][d], columns[d])
        for c in range(k)
        for d in range(k)
    )


def random_logits(rows, classes, *, absent=0.2, scale=3.0):
    """Rows that exclude some classes, but never the first."""
    gaps = torch.rand(rows, classes) < absent
    gaps[:, 0] = False
    return (scale * torch.randn(rows, classes, dtype=torch.float64)).masked_fill(gaps, -INF)


def certain(classes, count):
    """One-hot rows as log-probabilities."""
    return torch.zeros(len(classes), count, dtype=torch.float64).masked_fill(
        ~torch.nn.functional.one_hot(torch.tensor(classes), count).bool(), -INF
    )


class TestFormulas:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 9), st.integers(1, 6), st.sampled_from([1.0, 1.5]), st.booleans(), st.integers(0, 2**31))
    def test_discrete_information(self, rows, classes, lam, symmetric, seed):
        torch.manual_seed(seed)
        a, b = random_logits(rows, classes), random_logits(rows, classes)
        found = float(discrete_information(a, b, lam=lam, symmetric=symmetric))
        assert found == pytest.approx(looped_information(a, b, lam, symmetric), abs=1e-12)
        assert float(discrete_information(a.float(), b.float(), lam=lam, symmetric=symmetric)) == pytest.approx(
            found, abs=1e-5
        )

    def test_discrete_information_within_autocast(self):
        """Little information, as at the start of a training: the joint of bfloat16 would have none of it."""
        a, b = 0.1 * torch.randn(64, 8), 0.1 * torch.randn(64, 8)
        expected = discrete_information(a, b)
        with torch.autocast("cpu", torch.bfloat16):
            assert float(discrete_information(a, b)) == float(expected)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**31))
    def test_entropies_and_divergence(self, rows, classes, seed):
        torch.manual_seed(seed)
        a, b = random_logits(rows, classes), random_logits(rows, classes, absent=0.0)
        p, q = ([softmax(row) for row in m.tolist()] for m in (a, b))
        of_rows = [-math.fsum(xlogy(v, v) for v in row) for row in p]
        together = -math.fsum(xlogy(v, v) for v in (math.fsum(column) / rows for column in zip(*p, strict=True)))
        assert conditional_entropy(a).tolist() == pytest.approx(of_rows, abs=1e-12)
        assert float(marginal_entropy(a)) == pytest.approx(together, abs=1e-12)
        assert float(entropy_balance(a, mu=4.0)) == pytest.approx(math.fsum(of_rows) / rows - 4 * together, abs=1e-12)
        expected = [
            math.fsum(xlogy(u, u) - xlogy(u, v) for u, v in zip(*pair, strict=True)) for pair in zip(p, q, strict=True)
        ]
        assert divergence(a, b).tolist() == pytest.approx(expected, abs=1e-12)

    def test_gradients_by_differences(self):
        a, b = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        for lam, symmetric in ((1.0, True), (1.5, True), (1.0, False)):
            assert torch.autograd.gradcheck(
                lambda x, y, lam=lam, s=symmetric: discrete_information(x, y, lam=lam, symmetric=s), (a, b)
            )
        assert torch.autograd.gradcheck(entropy_balance, (a,))
        assert torch.autograd.gradcheck(divergence, (a, b))

    def test_log_probabilities_are_logits(self):
        a, b = torch.randn(2, 5, 3, dtype=torch.float64)
        for function in (discrete_information, divergence):
            expected = function(a, b)
            torch.testing.assert_close(function(a.log_softmax(1), b.log_softmax(1) + 7), expected, atol=1e-12, rtol=0)


class TestEdges:
    def test_an_empty_class_and_certain_rows(self):
        logits = certain([0, 1, 1, 0], 3).requires_grad_()  # nobody takes the third
        for function in (lambda x: discrete_information(x, x), lambda x: entropy_balance(x, mu=1.0)):
            value = function(logits)
            assert abs(float(value.detach())) == pytest.approx(math.log(2))
            (slope,) = torch.autograd.grad(value, logits)
            assert bool(torch.isfinite(slope).all())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_logits_of_1e4(self, dtype):
        logits = (1e4 * torch.eye(4, dtype=dtype)).requires_grad_()
        value = discrete_information(logits, logits) - entropy_balance(logits, mu=1.0)
        assert float(value.detach()) == pytest.approx(2 * math.log(4), rel=1e-6)
        value.backward()
        assert bool(torch.isfinite(logits.grad).all())

    def test_half_precision_is_computed_in_float32(self):
        logits = torch.randn(50, 5)
        for dtype in (torch.float16, torch.bfloat16):
            given = logits.to(dtype)
            assert float(discrete_information(given, given)) == float(
                discrete_information(given.float(), given.float())
            )

    def test_a_class_that_both_exclude_adds_nothing(self):
        logits = torch.tensor([[1.0, 0.0, -INF]], dtype=torch.float64, requires_grad=True)
        other = torch.tensor([[0.0, 0.0, -INF]], dtype=torch.float64, requires_grad=True)
        value = divergence(logits, other)
        assert float(value.detach()) == pytest.approx(float(divergence(logits[:, :2], other[:, :2]).detach()))
        for slope in torch.autograd.grad(value, (logits, other)):
            assert bool(torch.isfinite(slope).all())

    def test_divergence_from_a_law_that_excludes_what_is_there(self):
        assert divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -INF]])).tolist() == [INF]
        assert divergence(torch.tensor([[0.0, -200.0]]), torch.tensor([[0.0, -INF]])).tolist() == [INF]  # e^-200 is 0

    def test_at_most_the_log_of_the_classes(self):
        classes = list(range(5))
        assert float(discrete_information(certain(classes, 5), certain(classes, 5))) == pytest.approx(math.log(5))

    def test_refusals(self):
        with refused("discrete_information", "(4, 3)", "(4, 2)"):
            discrete_information(torch.zeros(4, 3), torch.zeros(4, 2))
        with refused("divergence", "(4, 3)", "(3, 3)"):
            divergence(torch.zeros(4, 3), torch.zeros(3, 3))
        with refused("marginal_entropy", "at least one row"):
            marginal_entropy(torch.zeros(0, 3))
        with refused("conditional_entropy", "int64"):
            conditional_entropy(torch.zeros(2, 3, dtype=torch.int64))
        for broken in (math.nan, INF):
            with refused("entropy_balance", "row 1"):
                entropy_balance(torch.tensor([[0.0, 0.0], [broken, 0.0]]))
        with refused("row 0", "excludes every class"):
            conditional_entropy(torch.tensor([[-INF, -INF]]))


def information(joint):
    """Of a table of probabilities."""
    rows, columns = [sum(row) for row in joint], [sum(column) for column in zip(*joint, strict=True)]
    cells = itertools.product(range(len(rows)), range(len(columns)))
    return math.fsum(xlogy(joint[i][j], joint[i][j] / (rows[i] * columns[j])) for i, j in cells if joint[i][j])


class TestClaims:
    """A population of counted pairs is written out, so that its joint law is exact."""

    @pytest.mark.parametrize("seed", range(5))
    def test_data_processing_of_the_population(self, seed):
        generator = torch.Generator().manual_seed(seed)
        counts = torch.randint(0, 4, (4, 4), generator=generator)
        counts[0, 0] += 1
        head = 4 * torch.randn(4, 3, dtype=torch.float64, generator=generator)
        for table, symmetric in ((counts, False), (counts + counts.T, True)):
            x, y = _pairs(table)
            between_views = information((table / table.sum()).tolist())
            assert float(discrete_information(head[x], head[y], symmetric=symmetric)) <= between_views + 1e-12

    def test_symmetrised_views_that_are_not_exchangeable_may_read_more_than_there_is(self):
        first, second = certain([0] * 4, 2), certain([1] * 4, 2)
        assert float(discrete_information(first, second, symmetric=False)) == 0.0
        assert float(discrete_information(first, second)) == pytest.approx(math.log(2))

    @pytest.mark.parametrize(
        ("joint", "direction"),
        [([[0.25, 0.25], [0.25, 0.25]], 1), ([[0.5, 0.0], [0.0, 0.5]], -1)],
        ids=["independent", "always equal"],
    )
    def test_the_plug_in_estimate_is_biased_to_either_side(self, joint, direction):
        n = 6
        expected = mean_over_samples(
            joint, n, lambda x, y: float(discrete_information(certain(x, 2), certain(y, 2), symmetric=False))
        )
        bias = expected - information(joint)
        cells = sum(p > 0 for row in joint for p in row)
        assert bias * direction > 0
        assert bias == pytest.approx((cells - 2 - 2 + 1) / (2 * n), abs=0.04)  # Miller (1955), to first order

    @pytest.mark.parametrize("seed", range(3))
    def test_the_information_of_a_batchs_classes_is_a_lower_bound(self, seed):
        generator = torch.Generator().manual_seed(seed)
        head = 3 * torch.randn(3, 4, dtype=torch.float64, generator=generator)
        whole = -float(entropy_balance(head, mu=1.0))  # three equally likely inputs
        for n in (1, 2, 4):
            batches = itertools.product(range(3), repeat=n)
            values = [-float(entropy_balance(head[list(batch)], mu=1.0)) for batch in batches]
            assert math.fsum(values) / len(values) <= whole + 1e-12
            assert max(values) <= math.log(n) + 1e-12


def _pairs(table):
    """Row numbers of every counted pair."""
    cells = table.nonzero()
    repeated = cells.repeat_interleave(table[cells[:, 0], cells[:, 1]], 0)
    return repeated[:, 0], repeated[:, 1]


def mean_over_samples(joint, n, estimate):
    """The expectation over n independent pairs: by their counts, which are multinomial."""
    cells = [(x, y, p) for x, row in enumerate(joint) for y, p in enumerate(row) if p]
    total = 0.0
    for counts in itertools.product(range(n + 1), repeat=len(cells)):
        if sum(counts) == n:
            ways = math.factorial(n) / math.prod(map(math.factorial, counts))
            chance = ways * math.prod(p**c for (_, _, p), c in zip(cells, counts, strict=True))
            x, y = ([cell[i] for cell, c in zip(cells, counts, strict=True) for _ in range(c)] for i in (0, 1))
            total += chance * estimate(x, y)
    return total
