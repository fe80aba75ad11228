"""Critics trained on samples: what comes out is near what is true, says what it is, and repeats itself."""

import math
import re
import statistics

import numpy as np
import pytest
import torch
from references import refused
from torch import nn

import contrastive
from contrastive import Bilinear, Concat, InnerProduct, Separable, estimate_mi, ksg
from contrastive.arguments import GaussianConditional, ScoresAndLogRatio
from contrastive.catalogue import (
    CLUB,
    DONSKER_VARADHAN,
    ESTIMATORS,
    INFONCE,
    KSG,
    LEAVE_ONE_OUT_UPPER,
    NWJ,
    SMILE,
    VARIATIONAL_UPPER,
    barber_agakov_with,
)
from contrastive.estimators import infonce, nwj
from contrastive.tasks import bent, cubic, gaussian, sparse, student


@pytest.fixture(scope="module")
def pairs():
    """One nat in two coordinates, 6,000 pairs."""
    torch.manual_seed(0)
    return gaussian(1.0, 2).draw(6000)


def quick(x, y, estimator=INFONCE, critic=None, **options):
    options = {"steps": 200, "pairs": 64, "lr": 2e-3} | options
    return estimate_mi(x, y, estimator, critic, **options)


#: What each should read of one nat after 200 steps; exponentials learn slowly, upper ones read more.
BANDS = {
    "leave one out (minibatch upper bound)": (0.85, 1.25),
    "CLUB": (1.6, 4.5),
    "variational upper bound": (0.85, 1.15),
    "Donsker-Varadhan": (0.6, 1.15),
    "MINE": (0.4, 1.15),
    "SMILE": (0.6, 1.15),
    "InfoNCE": (0.75, 1.1),
    "InfoNCE, both directions": (0.75, 1.1),
    "tractable NCE": (0.75, 1.1),
}


class TestEveryEstimator:
    @pytest.mark.parametrize("estimator", [*ESTIMATORS, VARIATIONAL_UPPER], ids=lambda e: e.name)
    def test_reads_one_nat(self, pairs, estimator):
        found = quick(*pairs, estimator)
        low, high = BANDS.get(estimator.name, (0.3, 1.1))
        assert low < found.value < high
        assert found.status == "ok"
        assert found.diverged is None
        assert found.interval[0] < found.value < found.interval[1]
        assert found.bound.cap == estimator.cap(64)
        assert found.bound.direction == ("neither" if estimator.exact else estimator.direction)
        assert (found.pairs, found.batches) == (64, 1200 // 64)
        assert found.bound.reason.startswith(estimator.name)
        kind = "not a bound" if found.bound.direction == "neither" else f"{found.bound.direction} bound"
        assert kind in str(found)
        assert f"{found.value:.3f} nats" in str(found)

    def test_barber_agakov_counts_in_the_units_of_y(self):
        torch.manual_seed(0)
        task = gaussian(1.0, 2)
        x, y = task.draw(6000)
        # Ten times y has an entropy of 2 log 10 more; the columns are standardised within.
        found = quick(x, 10 * y, barber_agakov_with(task.entropy + 2 * math.log(10)))
        assert 0.85 < found.value < 1.1
        assert found.bound.direction == "lower"
        plain = quick(x, y, barber_agakov_with(task.entropy), standardise=False)
        assert plain.value == pytest.approx(found.value, abs=0.1)

    def test_the_reference_is_judged_in_batches_as_well(self, pairs):
        found = quick(*pairs, KSG, pairs=400, standardise=False)
        assert 0.85 < found.value < 1.1
        assert (found.steps, found.batches, found.bound.direction) == (0, 3, "neither")
        judged = torch.split(seeded_order(6000), [3600, 1200, 1200])[2]
        values = [ksg(*(z[part].double() for z in pairs)) for part in judged.split(400)]
        assert found.value == pytest.approx(statistics.fmean(values), abs=1e-9)
        with refused("Pairs", "critic is InnerProduct", "expected None"):
            quick(*pairs, KSG, InnerProduct())


def seeded_order(count):
    """The order in which `estimate_mi` splits pairs by the seed 0."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return torch.randperm(count)


class TestWhatIsReported:
    def test_the_value_is_the_mean_of_held_out_batches(self, pairs):
        """Batch by batch, from the module that is returned: split, order and interval are those that are documented."""
        x, y = pairs
        found = quick(x, y, steps=50, held_out=0.25)
        judged = torch.split(seeded_order(6000), [3300, 1200, 1500])[2]
        values = []
        for i in range(1500 // 64):
            part = judged[64 * i : 64 * (i + 1)]
            with torch.no_grad():
                values.append(float(infonce(found.module(x[part], y[part])[0].double())))
        assert found.batches == len(values) == 23
        assert found.value == pytest.approx(statistics.fmean(values), abs=1e-6)
        half = 2.0739 * statistics.stdev(values) / 23**0.5  # the t-quantile of 22 degrees of freedom
        assert found.interval[1] - found.value == pytest.approx(half, rel=1e-3)

    def test_what_was_learnt_by_heart_shows_in_training_only(self):
        torch.manual_seed(0)
        x, y = torch.randn(600, 10), torch.randn(600, 10)  # independent
        found = quick(x, y, steps=300, pairs=32, validation=0.0)
        assert found.training > 1.0
        assert found.value < 0.1
        # And the step that is chosen on validation pairs is an early one.
        chosen = quick(x, y, steps=300, pairs=32, every=10)
        assert chosen.chosen < 150
        assert -0.2 < chosen.value < 0.1

    def test_the_best_validated_step_is_judged(self, pairs):
        found = quick(*pairs, steps=200, every=20)
        steps, values = zip(*found.curve, strict=True)
        assert steps == tuple(range(20, 201, 20))
        assert found.chosen == steps[values.index(max(values))]
        assert found.steps == 200
        assert quick(*pairs, steps=30, validation=0.0).chosen == 30
        assert quick(*pairs, steps=30, validation=0.0).curve == ()

    def test_patience(self):
        torch.manual_seed(0)
        x, y = torch.randn(600, 10), torch.randn(600, 10)
        found = quick(x, y, steps=2000, pairs=32, every=10, patience=3)
        assert found.steps == found.chosen + 30

    def test_log_k_is_the_ceiling(self):
        x = torch.randn(2000, 3)
        found = quick(x, x, pairs=16, steps=200)
        assert math.log(16) - 0.3 < found.value <= found.bound.cap == pytest.approx(math.log(16))
        assert "at most 2.77" in str(found)

    def test_seeds(self, pairs):
        state = torch.get_rng_state()
        first, again, other = (quick(*pairs, steps=40, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), state)
        assert first.value == again.value
        assert first.value != other.value


class TestDivergence:
    class Explodes(nn.Module):
        """Scores that leave the floats at the third batch."""

        def __init__(self, value):
            super().__init__()
            self.value, self.calls = value, 0
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x, y):
            self.calls += 1
            return self.weight * x @ y.T + (self.value if self.calls >= 3 else 0.0)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_scores_that_leave_the_floats(self, pairs, value):
        found = quick(*pairs, NWJ, self.Explodes(value))
        assert (found.status, found.diverged, found.steps) == ("diverged", 3, 3)
        assert math.isnan(found.value)
        assert math.isnan(found.interval[0])
        assert str(found).startswith("diverged at step 3: no estimate (NWJ")

    def test_an_objective_that_leaves_them(self, pairs):
        found = quick(*pairs, NWJ, self.Explodes(1e4))  # finite scores, e^10000
        assert (found.status, found.diverged) == ("diverged", 3)

    def test_a_held_out_value_that_leaves_them(self, pairs):
        critic = InnerProduct()  # nothing to train
        x, y = pairs
        found = quick(1000 * x, -1000 * y, NWJ, critic, standardise=False)
        assert found.status == "diverged"
        assert math.isnan(found.value)

    def test_one_held_out_batch_that_is_no_number(self, pairs):
        """Among good ones: a minimum would pass it over."""
        x, y = (z[:400].clone() for z in pairs)
        rows = torch.split(torch.randperm(400, generator=torch.Generator().manual_seed(0)), [240, 80, 80])[2]
        x[rows[70]] = y[rows[70]] = 1e30  # its square is no float32
        found = quick(x, y, NWJ, InnerProduct(), pairs=16, standardise=False)
        assert found.status == "diverged"
        assert math.isnan(found.value)
        assert math.isnan(found.interval[1])

    def test_no_validation_that_is_a_number(self, pairs):
        x, y = (z[:400].clone() for z in pairs)
        rows = torch.split(torch.randperm(400, generator=torch.Generator().manual_seed(0)), [240, 80, 80])[1]
        x[rows[0]] = y[rows[0]] = 1e30
        found = quick(x, y, INFONCE, Bilinear(2), pairs=16, standardise=False, steps=20, every=5)
        assert (found.status, found.diverged) == ("diverged", 5)
        assert math.isnan(found.value)

    def test_a_learning_rate_of_a_thousand(self, pairs):
        found = quick(*pairs, NWJ, lr=1e3)
        assert found.status == "diverged"
        assert 1 <= found.diverged <= found.steps


class TestCritics:
    @pytest.mark.parametrize(
        ("critic", "lr"),
        [
            (lambda: Bilinear(2), 3e-2),
            (lambda: Separable(2, hidden=32, out=8), 2e-3),
            (lambda: Concat(2, hidden=32, layers=2), 2e-3),
            (lambda: Separable(2, hidden=32, out=8, layers=0), 2e-2),
        ],
    )
    def test_any(self, pairs, critic, lr):
        assert 0.5 < quick(*pairs, INFONCE, critic(), lr=lr).value < 1.1

    def test_is_trained_in_place(self, pairs):
        critic = Bilinear(2)
        before = critic.weight.detach().clone()
        quick(*pairs, INFONCE, critic, steps=20)
        assert not torch.equal(before, critic.weight)

    def test_without_parameters(self, pairs):
        found = quick(*pairs, INFONCE, InnerProduct())
        assert (found.steps, found.chosen) == (0, 0)
        assert found.value < 1.1

    def test_a_conditional_of_ones_own(self, pairs):
        model = GaussianConditional(2, 2, hidden=16)
        found = quick(*pairs, LEAVE_ONE_OUT_UPPER, model, steps=400)
        assert 0.85 < found.value < 1.3
        assert found.bound.direction == "neither"

    def test_widths_may_differ(self):
        torch.manual_seed(0)
        x, _ = gaussian(1.0, 2).draw(2000)
        y = torch.cat([x, torch.randn(2000, 3)], 1)
        assert quick(x, y, steps=100).value > 1.0

    def test_the_log_ratio_is_of_own_pairs(self):
        module = ScoresAndLogRatio(None, 3, 2, hidden=8)
        x, y = torch.randn(5, 3), torch.randn(5, 2)
        scores, own = module(x, y)
        assert scores.shape == (5, 5)
        torch.testing.assert_close(own, module.log_ratio(x, y).diagonal())

    def test_the_conditional_is_a_density(self):
        model = GaussianConditional(2, 1, hidden=8)
        x = torch.randn(3, 2)
        grid = torch.linspace(-60, 60, 20_001)[:, None]
        mass = model(x, grid).double().exp().sum(1) * 120 / 20_000
        torch.testing.assert_close(mass, torch.ones(3, dtype=torch.float64), rtol=1e-3, atol=0)
        torch.testing.assert_close(model.own(x, grid[:3]), model(x, grid[:3]).diagonal())


class TestData:
    def test_numpy_one_dimension_and_integers(self):
        generator = np.random.default_rng(0)
        x = generator.normal(size=3000)
        y = (x + generator.normal(size=3000) > 0).astype(np.int64)  # 0.35 of log 2 nats or so
        found = quick(x, y)
        assert 0.1 < found.value < 0.5

    def test_images_are_flattened(self):
        x = torch.rand(600, 1, 2, 3)
        assert quick(x, x, pairs=16, steps=30).module(x[:4], x[:4])[0].shape == (4, 4)

    def test_scales_and_constant_columns_do_not_matter(self, pairs):
        x, y = pairs
        plain = quick(x, y, steps=100)
        moved = quick(1e6 * x.double() - 3e7, torch.cat([y, torch.full((6000, 1), 0.1)], 1), steps=100)
        assert moved.value == pytest.approx(plain.value, abs=0.15)

    def test_large_integers_and_doubles_keep_their_digits(self):
        """Times in seconds since 1970: float32 has 128 between two numbers there."""
        seconds = 1_700_000_000 + torch.arange(600)
        assert ksg(seconds, torch.arange(600)) > 3.0
        found = quick(1.7e9 + 1000 * torch.randn(600, 1).double(), torch.randn(600, 1), pairs=16, steps=1)
        (scale,) = found.module.get_buffer("x_scale")
        assert 900 < float(scale) < 1100

    def test_a_critic_in_doubles(self, pairs):
        found = quick(*pairs, INFONCE, Bilinear(2).double(), lr=5e-2)
        assert found.module(*(z[:3] for z in pairs))[0].dtype == torch.float64
        assert found.value > 0.2

    def test_bends(self):
        torch.manual_seed(0)
        x, y = bent(gaussian(2.0, 20), None, cubic).draw(10_000)
        assert 0.3 < quick(x, y).value < 2.0

    def test_input(self, pairs):
        x, y = pairs
        broken = x.clone()
        broken[7, 1] = math.nan
        for call, words in (
            (lambda: estimate_mi(x, y[:-1]), ("estimate_mi", "x has 6000 rows and y 5999")),
            (lambda: estimate_mi(broken, y), ("estimate_mi", "row 7 of x", "not finite")),
            (lambda: estimate_mi(x[:0], y[:0]), ("estimate_mi", "(0, 2)")),
            (lambda: estimate_mi(torch.tensor(1.0), y), ("estimate_mi", "expected rows of numbers")),
            (lambda: estimate_mi(x[:200], y[:200]), ("estimate_mi", "200 pairs leave", "at least 128")),
            (lambda: estimate_mi(x[:700], y[:700]), ("estimate_mi", "700 pairs leave 140 held-out", "at least 256")),
            (lambda: estimate_mi(x, y, held_out=0.0), ("estimate_mi", "0 held-out")),
            (lambda: estimate_mi(x, y, held_out=0.99), ("estimate_mi", "training")),
            (lambda: estimate_mi(x, y, validation=0.01), ("estimate_mi", "60 validation ones")),
            (lambda: estimate_mi(x, y, validation=1.5), ("estimate_mi", "validation is 1.5")),
            (lambda: estimate_mi(x, y, pairs=1), ("estimate_mi", "pairs is 1")),
            (lambda: estimate_mi(x, y, steps=0), ("estimate_mi", "steps is 0")),
            (lambda: estimate_mi(x, y, every=0), ("estimate_mi", "every is 0")),
            (lambda: estimate_mi(x, y, patience=0), ("estimate_mi", "patience is 0")),
            (lambda: estimate_mi(x, y, lr=math.inf), ("estimate_mi", "lr is inf")),
            (lambda: estimate_mi(x, y, nwj), ("estimate_mi", "estimator is <function nwj", "contrastive.catalogue")),
            (lambda: estimate_mi(x, y, Bilinear(2)), ("estimate_mi", "estimator is Bilinear", "contrastive.catalogue")),
            (lambda: estimate_mi(x, y, NWJ, Bilinear), ("estimate_mi", "critic is <class", "(x, y) -> scores")),
            (lambda: estimate_mi(x, y, NWJ, "bilinear"), ("estimate_mi", "critic is 'bilinear'")),
            (lambda: ksg(x, y[:-1]), ("ksg", "x has 6000 rows")),
            (lambda: ksg(x[:5], y[:5], neighbours=5), ("ksg", "neighbours is 5", "1 to 4")),
        ):
            with refused(*words):
                call()


def looped_ksg(x, y, k):
    """The first algorithm of Kraskov et al., point by point."""

    def psi(n):
        return -0.5772156649015329 + math.fsum(1 / i for i in range(1, n))

    n = len(x)
    far = [[[math.dist(z[i], z[j]) for j in range(n)] for i in range(n)] for z in (x, y)]
    total = 0.0
    for i in range(n):
        radius = sorted(max(far[0][i][j], far[1][i][j]) for j in range(n) if j != i)[k - 1]
        near = [sum(far[side][i][j] < radius for j in range(n) if j != i) for side in (0, 1)]
        total += psi(near[0] + 1) + psi(near[1] + 1)
    return psi(k) + psi(n) - total / n


class TestKsg:
    @pytest.mark.parametrize("k", [1, 3, 10])
    def test_is_the_formula(self, k):
        x, y = torch.randn(60, 2).double(), torch.randn(60, 1).double()
        y = y + x[:, :1]
        for first in (x, x[:, :1]):  # blocks of distances, and a tree
            expected = looped_ksg(first.tolist(), y.tolist(), k)
            assert ksg(first, y, neighbours=k, standardise=False) == pytest.approx(expected, abs=1e-9)

    def test_low_dimensions(self):
        torch.manual_seed(0)
        for task, expected, tolerance in (
            (gaussian(-math.log(1 - 0.75**2) / 2, 1), 0.4133, 0.06),
            (sparse(2), 1.010, 0.07),
            (student(1, 1), 0.133, 0.08),  # of 0.224: heavy tails
            (gaussian(6.0), 1.53, 0.12),  # of 6: 20 dimensions
        ):
            assert ksg(*task.draw(3000)) == pytest.approx(expected, abs=tolerance)

    def test_ties_and_scales(self):
        x = torch.randint(3, (400,))
        found = ksg(x, x)
        assert math.isfinite(found)
        assert found > 0.8  # log 3 = 1.10
        y = x + torch.randn(400)
        assert ksg(1e6 * x, y) == pytest.approx(ksg(x, y), abs=1e-6)
        assert ksg(x, y) == ksg(x, y)

    def test_independent(self):
        assert abs(ksg(torch.randn(1000), torch.randn(1000))) < 0.1


def test_names():
    for name in ("estimate_mi", "Estimate", "ksg", "nwj", "infonce", "smile", "Mine", "club"):
        assert name in contrastive.__all__
        assert hasattr(contrastive, name)
    assert re.fullmatch(r"[\w ,.()'-]+", CLUB.name)
    assert SMILE.objective is not None
    assert DONSKER_VARADHAN.objective is None
