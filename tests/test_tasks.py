"""Exact tasks: values that others print, log-ratios that average to what is claimed, bends that come back."""

import math

import numpy as np
import pytest
import torch
from references import refused
from scipy import stats

from contrastive.tasks import (
    additive,
    all_tasks,
    asinh,
    bent,
    bimodal,
    correlated,
    cubic,
    dense,
    gaussian,
    half_cube,
    normal_cdf,
    sparse,
    spiral,
    student,
    swiss_roll,
    wiggly,
)

TASKS = all_tasks()
# Czyz et al. (2023), as their package computes them; the schedule by its own formula.
PRINTED = {
    "1v1-normal-0.75": 0.4133,
    "1v1-normal-cdf": 0.4133,
    "1v1-bimodal": 0.4133,
    "1v1-wiggly": 0.4133,
    "1v1-half-cube": 0.4133,
    "1v1-swiss-roll": 0.4133,
    "1v1-additive-0.1": 1.7094,
    "1v1-additive-0.75": 0.3333,
    "student-1-1": 0.2242,
    "student-1-1-asinh": 0.2242,
    "student-2-1": 0.4319,
    "student-2-2": 0.1931,
    "student-3-2": 0.2909,
    "student-3-3": 0.1787,
    "student-5-2": 0.4482,
    "student-5-3": 0.2985,
    "dense-2": 0.2939,
    "dense-3": 0.4133,
    "dense-5": 0.5928,
    "dense-25": 1.2922,
    "dense-50": 1.6243,
    **{name: 1.0217 for name in TASKS if name.startswith("sparse")},
    **{f"{law}-{i}": float(i) for law in ("gaussian", "cubic") for i in (2, 4, 6, 8, 10)},
}


@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_the_information_is_the_printed_one(self, name):
        assert TASKS[name].information == pytest.approx(PRINTED[name], abs=6e-5)

    def test_the_log_ratio_of_pairs_averages_to_it(self, name):
        task, n = TASKS[name], 2000
        x, y = task.draw(n)
        rows = [task.log_ratio(x[i : i + 100], y[i : i + 100]).double() for i in range(0, n, 100)]
        own = torch.cat([row.diagonal() for row in rows])
        error = float(own.std()) / n**0.5
        assert abs(float(own.mean()) - task.information) < 5 * error + 1e-5
        # Against strangers the ratio has mean 1, where its spread allows to see it: E r^2 is at least e^I.
        if task.information < 1.3:
            off = torch.cat([row.fliplr().diagonal()[:50] for row in rows]).exp()
            assert abs(float(off.mean()) - 1) < 6 * float(off.std()) / len(off) ** 0.5 + 0.02

    def test_draws_are_pairs_in_float32(self, name):
        x, y = TASKS[name].draw(7)
        assert len(x) == len(y) == 7
        assert x.dtype == y.dtype == torch.float32
        assert bool(torch.isfinite(x).all() and torch.isfinite(y).all())
        assert TASKS[name].log_ratio(x[:3], y).shape == (3, 7)

    def test_the_entropy_is_that_of_y(self, name):
        task = TASKS[name]
        if task.entropy is None or task.draw(1)[1].shape[1] > 1:
            return
        # By a histogram; in several dimensions see below.
        _, y = task.draw(40_000)
        inside = y[y.abs() < 30].double()
        counts = torch.histc(inside, bins=1200, min=-30, max=30)
        shares = counts[counts > 0] / len(y)
        found = -float((shares * (shares / 0.05).log()).sum())
        tail = 1 - len(inside) / len(y)  # Cauchy: 2 % lie beyond, with large -log p
        assert abs(found - task.entropy) < 0.05 + 12 * tail


@pytest.mark.parametrize("bend", [normal_cdf, cubic, half_cube, asinh, wiggly, bimodal, spiral, swiss_roll])
def test_bends_come_back(bend):
    x = torch.randn(300, 1 if bend is swiss_roll else 3)
    back = bend.inverse(bend.forward(x))
    assert back.shape == x.shape
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-4)
    assert float((bend.forward(x)[:, :1] - x[:, :1]).abs().max()) > 0.1


def test_the_log_ratio_moves_with_the_bend():
    task = gaussian(0.5, 2)
    x, y = task.draw(20)
    changed = bent(task, spiral, half_cube)
    torch.testing.assert_close(
        changed.log_ratio(spiral.forward(x), half_cube.forward(y)), task.log_ratio(x, y), rtol=1e-3, atol=1e-3
    )
    assert changed.information == task.information
    assert changed.entropy is None
    assert changed.name.endswith("; x: spiral; y: half-cube")
    assert bent(task, None, cubic).name.endswith("; y: cube")


def test_gaussians_three_ways():
    """The schedule's formula, the determinants' and the densities'."""
    rho = 0.6
    sigma = torch.eye(4, dtype=torch.float64)
    sigma[0, 2] = sigma[2, 0] = sigma[1, 3] = sigma[3, 1] = rho
    information = -math.log(1 - rho**2)
    one, other = gaussian(information, 2), correlated(sigma, 2)
    assert other.information == pytest.approx(information, abs=1e-12)
    x, y = (z.double() for z in one.draw(9))
    torch.testing.assert_close(one.log_ratio(x, y), other.log_ratio(x, y), rtol=1e-9, atol=1e-9)
    law = torch.distributions.MultivariateNormal
    joint, marginal = law(torch.zeros(4).double(), sigma), law(torch.zeros(2).double(), torch.eye(2).double())
    expected = joint.log_prob(torch.cat([x, y], 1)) - marginal.log_prob(x) - marginal.log_prob(y)
    torch.testing.assert_close(one.log_ratio(x, y).diagonal(), expected, rtol=1e-9, atol=1e-9)
    assert other.entropy == pytest.approx(float(marginal.entropy()), abs=1e-12)
    assert one.entropy == pytest.approx(other.entropy, abs=1e-12)


@pytest.mark.parametrize(
    ("information", "rho"), [(2, 0.425757), (4, 0.574178), (6, 0.671706), (8, 0.742072), (10, 0.795060)]
)
def test_the_schedule_of_correlations(information, rho):
    """Of 20 pairs, as Poole et al. go through it."""
    task = gaussian(float(information))
    one = torch.zeros(1, 20, dtype=torch.float64)
    one[0, 0] = 1.0
    extra = float(task.log_ratio(one, one)) - information  # rho / (1 + rho) of a single pair at (1, 1)
    assert extra / (1 - extra) == pytest.approx(rho, abs=1e-6)
    x, y = task.draw(4000)
    drawn = (x * y).mean(0)  # of standard normals, each with an error of sqrt((1 + rho^2) / 4000)
    assert float((drawn - rho).abs().max()) < 5 * math.sqrt((1 + rho**2) / 4000)


def test_entropies_in_several_dimensions():
    for dim, freedom in ((2, 1), (2, 2), (3, 3), (5, 2)):
        expected = float(stats.multivariate_t(np.zeros(dim), np.eye(dim), freedom).entropy())
        assert student(dim, freedom).entropy == pytest.approx(expected, abs=1e-6)
    assert gaussian(6.0).entropy == pytest.approx(float(stats.multivariate_normal(cov=np.eye(20)).entropy()))
    covariance = np.full((5, 5), 0.5) + 0.5 * np.eye(5)
    assert dense(5).entropy == pytest.approx(float(stats.multivariate_normal(cov=covariance).entropy()))


def test_the_tail_of_the_normal_cdf():
    """Beyond 5.4 deviations a float32 rounds to 1, whose own inverse is infinite."""
    x = torch.tensor([[-9.0], [5.0], [6.0], [9.0]])
    back = normal_cdf.inverse(normal_cdf.forward(x))
    torch.testing.assert_close(back, torch.tensor([[-9.0], [5.0], [5.3], [5.3]]), atol=0.05, rtol=0)
    wide = x[:3].double()
    torch.testing.assert_close(normal_cdf.inverse(normal_cdf.forward(wide)), wide, atol=1e-6, rtol=0)
    ends = normal_cdf.forward(x)
    assert bool(torch.isfinite(bent(gaussian(1.0, 1), normal_cdf, normal_cdf).log_ratio(ends, ends)).all())


def test_entropies_of_student():
    found = torch.distributions.StudentT(torch.tensor(3.0, dtype=torch.float64)).entropy()
    assert student(1, 3).entropy == pytest.approx(float(found), abs=1e-9)
    assert student(1, 1).entropy == pytest.approx(math.log(4 * math.pi), abs=1e-9)


def test_input():
    for call, words in (
        (lambda: gaussian(-1.0), ("gaussian", "information -1.0")),
        (lambda: gaussian(1.0, 0), ("gaussian", "dim 0")),
        (lambda: gaussian(20.0, 1), ("gaussian", "20.0 nats in 1 coordinates")),
        (lambda: student(1, 0), ("student", "freedom 0")),
        (lambda: student(0, 1), ("student", "dim 0")),
        (lambda: correlated(torch.eye(3), 3), ("correlated", "dim_x 3")),
        (lambda: correlated(torch.ones(2, 3), 1), ("correlated", "(2, 3)")),
        (lambda: correlated(torch.ones(2, 2), 1), ("correlated", "positive definite")),
        (lambda: correlated(torch.tensor([[1.0, 0.9], [0.0, 1.0]]), 1), ("correlated", "symmetric")),
        (lambda: dense(2, 1.0), ("correlated", "positive definite")),
        (lambda: sparse(2, pairs=3), ("sparse", "pairs is 3")),
        (lambda: additive(0.0), ("additive", "noise is 0.0")),
    ):
        with refused(*words):
            call()
