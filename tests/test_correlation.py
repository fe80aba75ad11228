"""Canonical correlations: beside a loop, scikit-learn, the elementary form of the paper, and the edges of rank."""

import math

import numpy as np
import pytest
import torch
from references import refused

from contrastive.correlation import canonical_correlations, linear_cca, total_correlation


def related(n=300, dx=4, dy=3, *, shared=2, noise=0.7, units=0):
    """Two sets of columns with some common causes; the units of the first may differ by 10^(2 units)."""
    causes = torch.randn(n, shared, dtype=torch.float64)
    x = causes @ torch.randn(shared, dx, dtype=torch.float64) + noise * torch.randn(n, dx, dtype=torch.float64)
    y = causes @ torch.randn(shared, dy, dtype=torch.float64) + noise * torch.randn(n, dy, dtype=torch.float64)
    return x * torch.logspace(-units, units, dx, dtype=torch.float64), y + 100


def looped(x, y, ridge):
    """Andrew et al. (2013): covariances sample by sample, symmetric roots by eigenvalues, then singular values."""
    x, y = x.tolist(), y.tolist()

    def means(rows):
        return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]

    def covariance(a, b):
        ma, mb = means(a), means(b)
        return np.array(
            [
                [
                    math.fsum((p[i] - ma[i]) * (q[j] - mb[j]) for p, q in zip(a, b, strict=True)) / (len(a) - 1)
                    for j in range(len(mb))
                ]
                for i in range(len(ma))
            ]
        )

    def inverse_root(matrix):
        values, vectors = np.linalg.eigh(matrix + ridge * np.eye(len(matrix)))
        return vectors @ np.diag(values**-0.5) @ vectors.T

    return np.linalg.svd(inverse_root(covariance(x, x)) @ covariance(x, y) @ inverse_root(covariance(y, y)))[1].tolist()


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
@pytest.mark.parametrize(("dx", "dy"), [(4, 3), (2, 5), (1, 1)])
def test_equal_to_the_loop(dx, dy, ridge):
    x, y = related(60, dx, dy)
    assert canonical_correlations(x, y, ridge=ridge).tolist() == pytest.approx(looped(x, y, ridge), abs=1e-9)


def test_equal_to_scikit_learn():
    from sklearn.cross_decomposition import CCA

    x, y = related(400, 5, 3, units=3)
    peer = CCA(3, max_iter=20_000, tol=1e-12).fit(x.numpy(), y.numpy())
    a, b = peer.transform(x.numpy(), y.numpy())
    theirs = [float(np.corrcoef(a[:, i], b[:, i])[0, 1]) for i in range(3)]
    fitted = linear_cca(x, y)
    assert fitted.correlations(x, y).tolist() == pytest.approx(theirs, abs=1e-6)
    assert canonical_correlations(x, y).tolist() == pytest.approx(theirs, abs=1e-6)
    # The variates themselves, up to sign and scale.
    for ours, other in zip(fitted.transform(x, y), (a, b), strict=True):
        for i in range(3):
            assert abs(np.corrcoef(ours[:, i].numpy(), other[:, i])[0, 1]) == pytest.approx(1.0, abs=1e-6)


def test_variates_are_uncorrelated_and_of_deviation_one():
    x, y = related(units=3)
    a, b = linear_cca(x, y).transform(x, y)
    identity = torch.eye(3, dtype=torch.float64)
    for z in (a, b):
        torch.testing.assert_close(torch.cov(z.T), identity, atol=1e-9, rtol=0)
    cross = a.T @ b / (len(a) - 1)
    torch.testing.assert_close(cross, torch.diag(canonical_correlations(x, y)), atol=1e-9, rtol=0)


def test_on_other_rows_a_correlation_may_turn_round():
    x, y = related(200, 2, 2, shared=1)
    fitted = linear_cca(x, y, k=1)
    assert float(fitted.correlations(x, -y)) == pytest.approx(-float(fitted.correlations(x, y)))
    assert fitted.correlations(x, torch.zeros_like(y)).tolist() == [0.0]


def test_a_linear_change_of_columns_changes_nothing():
    x, y = related()
    expected = canonical_correlations(x, y)
    turned = canonical_correlations(x @ torch.randn(4, 4).double() + 5, y * torch.tensor([1e-4, 1.0, 1e4]).double())
    torch.testing.assert_close(turned, expected, atol=1e-8, rtol=0)


def test_gaussian_information():
    # One pair of columns at correlation 0.8, one independent: their law's correlations, within five standard errors.
    n = 20_000
    x = torch.randn(n, 2, dtype=torch.float64)
    y = torch.stack([0.8 * x[:, 0] + 0.6 * torch.randn(n, dtype=torch.float64), torch.randn(n, dtype=torch.float64)], 1)
    rho = canonical_correlations(x, y)
    assert float(-0.5 * torch.log1p(-rho.square()).sum()) == pytest.approx(-0.5 * math.log(1 - 0.64), abs=0.04)


def test_as_information_it_is_no_bound_for_other_laws():
    # A coin and its copy share log 2 and read infinity; x and its square share everything and read 0.
    coin = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(10, 1)
    assert float(canonical_correlations(coin, coin)) == pytest.approx(1.0)
    x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64).repeat(10, 1)
    assert float(canonical_correlations(x, x.square())) == pytest.approx(0.0, abs=1e-12)


class TestTotal:
    @pytest.mark.parametrize("k", [None, 1, 2])
    def test_gradient_by_differences(self, k):
        x, y = (z.clone().requires_grad_() for z in related(12, 3, 2, shared=2))
        assert torch.autograd.gradcheck(lambda a, b: total_correlation(a, b, k=k), (x, y))
        assert torch.autograd.gradcheck(lambda a, b: total_correlation(a, b, ridge=0.0, k=k), (x, y))

    def test_is_the_sum_of_the_largest(self):
        x, y = related()
        found = canonical_correlations(x, y, ridge=1e-3)
        assert float(total_correlation(x, y)) == pytest.approx(float(found.sum()))
        assert float(total_correlation(x, y, k=2)) == pytest.approx(float(found[:2].sum()))

    def test_equal_singular_values_have_a_gradient(self):
        # All are 1, or all are 0: eigenvectors of T'T divide by their differences, the root of 0 has no slope.
        x = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)
        for y in (x.detach(), torch.zeros(40, 3, dtype=torch.float64)):
            (slope,) = torch.autograd.grad(total_correlation(x, y), x)
            assert bool(torch.isfinite(slope).all())

    def test_training_raises_it_on_rows_that_it_was_not_trained_on(self):
        # y is a function of x that no line sees.
        x = torch.randn(1000, 1)
        y = x.square() + 0.1 * torch.randn(1000, 1)
        nets = [torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)) for _ in range(2)]
        optimiser = torch.optim.Adam([p for net in nets for p in net.parameters()], 1e-2)
        for _ in range(150):
            optimiser.zero_grad()
            (-total_correlation(nets[0](x[:500]), nets[1](y[:500]))).backward()
            optimiser.step()
        with torch.no_grad():
            train, test = ([nets[0](x[part]), nets[1](y[part])] for part in (slice(500), slice(500, None)))
        assert float(linear_cca(x[:500], y[:500]).correlations(x[500:], y[500:])) < 0.3
        assert float(linear_cca(*train).correlations(*test)) > 0.9

    def test_float32_is_computed_in_float64(self):
        x, y = related()
        found = total_correlation(x.float(), y.float())
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(float(total_correlation(x, y)), abs=1e-4)


class TestRank:
    def test_fewer_rows_than_columns_are_refused_without_a_ridge(self):
        x, y = torch.randn(5, 8), torch.randn(5, 2)
        with refused("canonical_correlations", "5 rows of 8 columns", "ridge"):
            canonical_correlations(x, y)
        assert bool(torch.isfinite(canonical_correlations(x, y, ridge=1e-3)).all())

    def test_with_a_ridge_they_are_near_one_whatever_they_hold(self):
        # What the docstring warns of: independent columns.
        assert float(total_correlation(torch.randn(10, 20), torch.randn(10, 20), k=5)) > 4.9

    def test_constant_and_dependent_columns(self):
        x, y = related()
        constant = torch.cat([x, torch.ones(300, 1)], 1)
        with refused("linear_cca", "column 4 of x is constant"):
            linear_cca(constant, y)
        nearly = y[:, :1] + 1e-7 * torch.randn(300, 1)  # as rounded as a copy in float32
        for further in (y[:, :1] - 2 * y[:, 1:2], nearly):
            dependent = torch.cat([y, further], 1)
            with refused("total_correlation", "columns of y depend on each other"):
                total_correlation(x, dependent, ridge=0.0)
        expected = canonical_correlations(x, y, ridge=1e-3)
        found = canonical_correlations(x, torch.cat([y, torch.ones(300, 1)], 1), ridge=1e-3)
        torch.testing.assert_close(found[:3], expected, atol=1e-9, rtol=0)

    def test_what_does_not_fit(self):
        x = torch.randn(10, 2)
        with refused("canonical_correlations", "x has 10 rows and y 9"):
            canonical_correlations(x, x[:9])
        with refused("canonical_correlations", "at least 2"):
            canonical_correlations(x[:1], x[:1], ridge=1.0)
        with refused("y has shape (10,)", "[n, d]"):
            canonical_correlations(x, x[:, 0])
        with refused("y holds a NaN"):
            canonical_correlations(x, x.masked_fill(x > 0, math.nan))
        with refused("ridge is -1"):
            total_correlation(x, x, ridge=-1.0)
        for k in (0, 3):
            with refused("total_correlation", f"k is {k}", "1 to 2"):
                total_correlation(x, x, k=k)
