"""I_NCE = log K - L, values and gradients, for any critic and any shape; and the check of it must be able to fail."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import refused
from torch import nn

from contrastive import (
    Bilinear,
    Concat,
    Cosine,
    InnerProduct,
    NegativeSquaredDistance,
    Separable,
    decoupled_loss,
    kpair_loss,
    pairwise_loss,
    supcon_loss,
)
from contrastive.testing import assert_identity, check_identity
from miners import detached, hcl, topk

# No examples on disk, the same ones in every run.
exhaustively = settings(max_examples=60, deadline=None, database=None, derandomize=True)


class Table(nn.Module):
    """A critic that scores as it is told: all there is to say about it is its scores."""

    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, x, y):
        return self.scores


CRITICS = {
    "inner product": lambda d: InnerProduct(temperature=0.3),
    "cosine": lambda d: Cosine(temperature=0.05),
    "learnable cosine": lambda d: Cosine(temperature=0.5, learnable=True),
    "distance": lambda d: NegativeSquaredDistance(temperature=2.0),
    "bilinear": Bilinear,
    "separable": lambda d: Separable(d, hidden=6, out=3),
    "concat": lambda d: Concat(d, hidden=6, layers=2),
}


def batch(k, d, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (scale * torch.randn(k, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y


def wrong(f):
    return lambda scores: f(kpair_loss(scores), scores)


class TestTheIdentityHolds:
    @exhaustively
    @given(
        name=st.sampled_from(sorted(CRITICS)),
        k=st.integers(1, 17),
        d=st.integers(1, 6),
        scale=st.sampled_from([1e-4, 0.1, 1.0, 2.0]),
        seed=st.integers(0, 2**31),
        collapsed=st.booleans(),
    )
    def test_for_every_critic_and_shape(self, name, k, d, scale, seed, collapsed):
        x, y = batch(k, d, seed, scale)
        if collapsed:  # all anchors and all candidates alike: ties throughout
            x, y = x[:1].expand(k, d), y[:1].expand(k, d)
        check = check_identity(CRITICS[name](d), x, y)
        assert check.value_error <= 1e-12
        assert max(check.gradient_errors.values()) <= 1e-12
        assert check.holds

    @exhaustively
    @given(
        k=st.integers(1, 9),
        seed=st.integers(0, 2**31),
        offset=st.sampled_from([0.0, 1e4, -1e4, 1e6]),
        width=st.sampled_from([1e4, 100.0, 1.0, 0.01]),
        spikes=st.lists(st.floats(-1e4, 1e4), max_size=9),
    )
    def test_for_extreme_logits(self, k, seed, offset, width, spikes):
        generator = torch.Generator().manual_seed(seed)
        scores = offset + width * torch.randn(k, k, generator=generator, dtype=torch.float64).clamp(-1, 1)
        scores[:, 0][: len(spikes)] = torch.tensor(spikes[:k], dtype=torch.float64)
        x, y = batch(k, 2, 0)
        check = check_identity(Table(scores), x, y)
        # Relative to the value where that is beyond 1: next to 1e4 the floats themselves are 2e-12 apart.
        assert check.value_error <= 1e-12 * max(1.0, abs(check.infonce))
        assert max(check.gradient_errors.values()) <= 1e-12

    @pytest.mark.parametrize("extreme", [1e4, -1e4])
    def test_for_one_value_throughout(self, extreme):
        x, y = batch(5, 2, 0)
        check = check_identity(Table(torch.full((5, 5), extreme, dtype=torch.float64)), x, y)
        assert check.infonce == pytest.approx(0.0, abs=1e-12)
        assert check.holds

    @pytest.mark.parametrize(
        "objective",
        [
            supcon_loss,
            lambda scores: supcon_loss(scores, keep_positives=False),
            lambda scores: kpair_loss(scores, log_weights=torch.zeros_like(scores)),
            lambda scores: kpair_loss(scores, log_weights=topk(len(scores))(scores, torch.arange(len(scores)))),
            lambda scores: kpair_loss(scores).mean(),
            lambda scores: nn.functional.cross_entropy(scores, torch.arange(len(scores))),
        ],
    )
    def test_for_every_spelling_of_the_objective(self, objective):
        x, y = batch(8, 4, 1)
        assert_identity(Bilinear(4), x, y, objective=objective)

    def test_float32_inputs_are_widened_and_left_alone(self):
        x, y = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3)
        critic = Bilinear(3)
        before = critic.weight.detach().clone()
        check = check_identity(critic, x, y)
        assert check.holds
        assert critic.weight.dtype == x.dtype == torch.float32
        assert torch.equal(critic.weight, before)
        assert critic.weight.grad is None
        assert x.grad is None
        assert set(check.gradient_errors) == {"x", "y", "critic.weight"}

    def test_a_frozen_critic_and_a_plain_function(self):
        x, y = batch(6, 3, 2)
        frozen = Bilinear(3).requires_grad_(False)
        assert set(check_identity(frozen, x, y).gradient_errors) == {"x", "y"}
        assert_identity(lambda a, b: a @ b.T, x, y)

    def test_a_critic_that_ignores_its_input(self):
        x, y = batch(6, 3, 2)
        assert_identity(lambda a, b: torch.zeros(len(a), len(b), dtype=torch.float64), x, y)

    def test_the_values_are_what_they_are_called(self):
        x, y = batch(7, 3, 3)
        scores = x @ y.T
        check = check_identity(InnerProduct(), x, y)
        infonce = (scores.diag().exp() / scores.exp().mean(1)).log().mean()
        assert check.infonce == pytest.approx(float(infonce), abs=1e-13)
        assert check.objective == pytest.approx(math.log(7) - float(kpair_loss(scores).mean()), abs=1e-13)


class TestTheCheckCanFail:
    @pytest.mark.parametrize(
        "objective",
        [
            decoupled_loss,
            pairwise_loss,
            wrong(lambda loss, scores: loss + 1e-9),
            wrong(lambda loss, scores: loss * (1 + 1e-9)),
            wrong(lambda loss, scores: loss * math.nan),
            lambda scores: kpair_loss(scores.T),
            lambda scores: kpair_loss(scores, log_weights=hcl(1.0)(scores, torch.arange(len(scores)))),
            lambda scores: kpair_loss(scores, log_weights=topk(2)(scores, torch.arange(len(scores)))),
        ],
    )
    def test_another_value(self, objective):
        x, y = batch(6, 3, 4)
        check = check_identity(Bilinear(3), x, y, objective=objective)
        assert not check.holds
        assert not check.value_error <= 1e-12
        with pytest.raises(AssertionError, match=r"I_NCE = .* but log K - L = .*value by"):
            assert_identity(Bilinear(3), x, y, objective=objective)

    @pytest.mark.parametrize(
        "objective",
        [
            wrong(lambda loss, scores: loss + 0 * scores.sum(1) + (scores - scores.detach()).sum(1)),
            wrong(lambda loss, scores: 0.9 * loss + 0.1 * loss.detach()),
            wrong(lambda loss, scores: loss.detach()),
            lambda scores: kpair_loss(scores.detach()),
            # At the diagonal alone a stopped gradient is easily missed.
            lambda scores: kpair_loss(scores.diagonal_scatter(scores.detach().diag())),
        ],
    )
    def test_the_same_value_with_another_gradient(self, objective):
        x, y = batch(6, 3, 5)
        check = check_identity(Bilinear(3), x, y, objective=objective)
        assert check.value_error <= 1e-12
        assert max(check.gradient_errors.values()) > 1e-3
        assert not check.holds
        with pytest.raises(AssertionError, match=r"differ in x by .*y by .*critic\.weight by"):
            assert_identity(Bilinear(3), x, y, objective=objective)

    def test_stopped_weights_are_caught_by_the_gradient(self):
        def mined(miner, scores):
            return kpair_loss(scores, log_weights=miner(scores, torch.arange(len(scores))))

        def objective(scores):
            return kpair_loss(scores) + mined(hcl(1.0), scores) - mined(detached(hcl(1.0)), scores)

        x, y = batch(6, 3, 6)
        check = check_identity(Bilinear(3), x, y, objective=objective)
        assert check.value_error <= 1e-12
        assert min(check.gradient_errors.values()) > 1e-3

    def test_the_tolerance_is_the_callers(self):
        x, y = batch(6, 3, 7)
        shifted = wrong(lambda loss, scores: loss + 1e-6)
        assert not check_identity(InnerProduct(), x, y, objective=shifted).holds
        assert check_identity(InnerProduct(), x, y, objective=shifted, atol=1e-5).holds
        assert_identity(InnerProduct(), x, y, objective=shifted, atol=1e-5)


class TestBadInput:
    @pytest.mark.parametrize("check", [check_identity, assert_identity])
    def test_batches_that_do_not_fit(self, check):
        x, y = batch(5, 3, 8)
        for wrong in (x[0, 0], x[0], x[None]):
            with refused("check_identity", str(tuple(wrong.shape)), "[N, dx]"):
                check(lambda a, b: a @ b.T, wrong, y)
        with refused("check_identity", "5 anchors", "4 positives"):
            check(InnerProduct(), x, y[:4])
        for dtype in (torch.int64, torch.bool, torch.complex64):
            for pair in ((x.to(dtype), y), (x, y.to(dtype))):
                with refused("check_identity", str(dtype), "floating-point"):
                    check(InnerProduct(), *pair)
        with refused("check_identity", "no pairs"):
            check(InnerProduct(), x[:0], y[:0])

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_broken_score_names_its_row(self, value):
        x, y = batch(5, 3, 8)
        with refused("row 2 holds a NaN or +inf score"):
            check_identity(lambda a, b: (a @ b.T).index_fill(0, torch.tensor(2), value), x, y)

    def test_what_an_objective_returns(self):
        x, y = batch(5, 3, 8)
        # Of a mean over these some would pass: of a matrix of ones' rows, or of the first losses of equal ones.
        for objective, shape in ((lambda s: s, "(5, 5)"), (lambda s: kpair_loss(s)[:3], "(3,)")):
            with refused("check_identity", "objective", shape, "[5] or a scalar"):
                check_identity(InnerProduct(), x, y, objective=objective)

    @pytest.mark.parametrize("critic", [lambda a, b: (a @ b.T)[:, :3], lambda a, b: (a @ b.T).float()])
    def test_scores_that_are_no_square_of_float64(self, critic):
        x, y = batch(5, 3, 8)
        with pytest.raises(ValueError, match=r"check_identity: .* expected \[5, 5\] and torch.float64"):
            check_identity(critic, x, y)
