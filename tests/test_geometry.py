"""Alignment and uniformity: against loops, closed forms, and the edges of the number range."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive import geometry
from contrastive.errors import InputError
from contrastive.geometry import alignment, uniformity


def unit(row):
    length = math.sqrt(sum(v * v for v in row))
    return [v / length for v in row] if length else row


def squared_distance(a, b):
    return sum((p - q) ** 2 for p, q in zip(unit(a), unit(b), strict=True))


def slow_alignment(x, y, alpha):
    return sum(math.sqrt(squared_distance(a, b)) ** alpha for a, b in zip(x, y, strict=True)) / len(x)


def slow_uniformity(x, t):
    terms = [math.exp(-t * squared_distance(a, b)) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    return math.log(sum(terms) / len(terms))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_alignment_equals_the_loop(alpha):
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    assert alignment(x, y, alpha=alpha) == pytest.approx(slow_alignment(x.tolist(), y.tolist(), alpha), abs=1e-12)
    assert alignment(x.float(), y.float(), alpha=alpha) == pytest.approx(alignment(x, y, alpha=alpha), abs=1e-6)


@pytest.mark.parametrize("t", [0.1, 2.0, 10.0])
@pytest.mark.parametrize("side", [1, 3, 1024])
def test_uniformity_equals_the_loop(t, side, monkeypatch):
    monkeypatch.setattr(geometry, "SIDE", side)
    x = torch.randn(10, 4, dtype=torch.float64)
    assert uniformity(x, t=t) == pytest.approx(slow_uniformity(x.tolist(), t), abs=1e-12)


def test_uniformity_in_log_space():
    # exp(-2000) is 0 in any float: the log of the mean potential is still known.
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite, t=500.0) == pytest.approx(-2000.0)


def test_closed_forms():
    axes = torch.eye(6)
    assert uniformity(axes) == pytest.approx(-4.0, abs=1e-6)
    assert uniformity(torch.ones(50, 8)) == pytest.approx(0.0, abs=1e-5)
    assert alignment(axes, -axes) == pytest.approx(4.0)
    assert alignment(axes, 7 * axes) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_collapsed_rows_are_not_beyond_the_bound(seed):
    row = torch.randn(1, 37, generator=torch.Generator().manual_seed(seed))
    assert -1e-5 < uniformity(row.repeat(20, 1)) <= 0.0  # |x|^2 + |y|^2 - 2 x.y rounds to either side of 0


def test_uniform_directions_reach_the_limit_of_the_sphere():
    # In many dimensions two random directions are nearly orthogonal: log E exp(-2 (2 - 2c)) = -4 + 8/d + ...
    x = torch.randn(3000, 200)
    assert uniformity(x) == pytest.approx(-4 + 8 / 200, abs=5e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_bounds_and_rotations(rows, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    assert 0 <= alignment(x, y) <= 4 + 1e-12
    assert -8 - 1e-12 <= uniformity(x) <= 1e-12
    assert alignment(x @ q, y @ q) == pytest.approx(alignment(x, y), abs=1e-10)
    assert uniformity(x @ q) == pytest.approx(uniformity(x), abs=1e-10)
    assert uniformity(x.flip(0)) == pytest.approx(uniformity(x), abs=1e-10)


def test_zero_vectors_extreme_lengths_and_half_precision():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert alignment(x, x) == 0.0
    assert alignment(torch.zeros(1, 2), torch.tensor([[0.0, 5.0]])) == 1.0
    assert uniformity(x) == pytest.approx(-2.0)
    huge, tiny = torch.tensor([[3e38, 3e38]]), torch.tensor([[1e-38, 1e-38]])
    assert alignment(huge, tiny) == pytest.approx(0.0, abs=1e-12)
    assert alignment(torch.eye(3).half(), torch.eye(3).bfloat16()) == 0.0
    assert uniformity(np.eye(3, dtype=np.float16)) == pytest.approx(-4.0, abs=1e-6)


def test_nearly_aligned_pairs_keep_their_digits():
    x = torch.nn.functional.normalize(torch.randn(100, 64), dim=1)
    step = 1e-5 * torch.randn(100, 64)
    expected = slow_alignment(x.double().tolist(), (x + step).double().tolist(), 2.0)
    assert alignment(x, x + step) == pytest.approx(expected, rel=0.02)  # 2 - 2 cos gives 0 or noise


def test_autocast_changes_nothing():
    x = torch.randn(50, 16)
    expected = uniformity(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert uniformity(x) == expected


def test_returns_floats_and_leaves_input_alone():
    x = torch.randn(5, 3, requires_grad=True)
    before = x.detach().clone()
    assert type(alignment(x, x)) is float
    assert type(uniformity(x)) is float
    assert torch.equal(x.detach(), before)
    wide = torch.randn(3, 5)
    assert uniformity(wide.T) == pytest.approx(uniformity(wide.T.contiguous()), abs=1e-7)


def test_what_does_not_fit_is_refused():
    x = torch.randn(4, 3)
    with pytest.raises(InputError, match=r"alignment: x has shape \(4, 3\) and y \(3, 3\), expected as many rows"):
        alignment(x, x[:3])
    with pytest.raises(InputError, match="expected the same width"):
        alignment(x, x[:, :2])
    with pytest.raises(InputError, match=r"alignment: alpha is 0\.0, expected a positive number"):
        alignment(x, x, alpha=0.0)
    with pytest.raises(InputError, match="uniformity: t is nan, expected a positive number"):
        uniformity(x, t=float("nan"))
    with pytest.raises(InputError, match="expected at least 2 rows"):
        uniformity(x[:1])
    x[2, 1] = torch.nan
    with pytest.raises(InputError, match="uniformity: x holds NaN or infinity in 1 row, the first is row 2"):
        uniformity(x)
