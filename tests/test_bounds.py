"""Bounds: formulas, what they claim of a miner, and the claims themselves by exact enumeration."""

import functools
import math

import pytest
import references
import torch
from references import INF, Channel, refused, scores_with_gaps
from torch import nn

from contrastive import Bound, decoupled_loss, infonce_bound, kpair_loss, nwj_bound
from contrastive.scores import MiningFacts
from miners import debiased, detached, hardest, hcl, importance, random_subset, semihard, topk


def mean(values):
    return math.fsum(values) / len(values)


class TestInfonce:
    def test_is_log_k_less_the_loss(self):
        scores, targets = scores_with_gaps(6, 9, absent=0.0)
        bound = infonce_bound(scores, targets)
        assert bound.value == pytest.approx(math.log(9) - mean(references.kpair(scores, targets)), abs=1e-14)
        assert bound.cap == bound.constant == pytest.approx(math.log(9), abs=1e-15)
        assert bound.status == "bound"

    def test_an_absent_candidate_does_not_count(self):
        scores, targets = scores_with_gaps(6, 9, absent=0.4)
        counts = (scores > -INF).sum(1).tolist()
        assert len(set(counts)) > 1
        constant = mean([math.log(count) for count in counts])
        bound = infonce_bound(scores, targets)
        assert bound.constant == bound.cap == pytest.approx(constant, abs=1e-14)
        assert bound.value == pytest.approx(constant - mean(references.kpair(scores, targets)), abs=1e-14)

    def test_padding_rows_are_no_samples(self):
        scores, targets = scores_with_gaps(6, 9)
        padded = torch.cat([scores[:2], torch.full((3, 9), -INF, dtype=torch.float64), scores[2:]])
        moved = torch.cat([targets[:2], torch.tensor([0, 8, 4]), targets[2:]])
        for miner in (None, topk(3), hcl(1.0)):
            bound, expected = infonce_bound(padded, moved, miner=miner), infonce_bound(scores, targets, miner=miner)
            assert bound == expected
        assert nwj_bound(padded, moved) == nwj_bound(scores, targets)

    @pytest.mark.parametrize("size", [1, 2, 64])
    def test_the_cap_is_reached_and_never_passed(self, size):
        bound = infonce_bound(1e4 * torch.eye(size))
        assert bound.value == bound.cap == pytest.approx(math.log(size), abs=1e-15)
        assert infonce_bound(torch.zeros(size, size)).value == pytest.approx(0.0, abs=1e-6)
        assert infonce_bound(-1e4 * torch.eye(size)).value <= 0.0

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        scores = (3 * torch.randn(6, 6)).to(dtype)
        assert infonce_bound(scores).value == pytest.approx(infonce_bound(scores.double()).value, abs=1e-6)

    @pytest.mark.parametrize(
        ("miner", "mass"),
        [
            (topk(1), 1),
            (topk(3), 3),
            (topk(100), 8),
            (hardest(), 1),
            (detached(topk(3)), 3),
            (hcl(0.0), 8),
            (hcl(1.0), 8),
            (detached(hcl(2.0)), 8),
            (debiased(0.0), 8),
        ],
        ids=repr,
    )
    def test_a_monotone_miner_of_constant_mass(self, miner, mass):
        scores, targets = scores_with_gaps(6, 9, absent=0.0)
        bound = infonce_bound(scores, targets, miner=miner)
        loss = references.kpair(scores, targets, miner(scores, targets))
        assert bound.status == "bound"
        assert bound.constant == bound.cap == pytest.approx(math.log(1 + mass), abs=1e-15)
        assert bound.value == pytest.approx(math.log(1 + mass) - mean(loss), abs=1e-13)
        assert repr(miner) in bound.reason

    def test_a_row_with_fewer_negatives_has_less_mass(self):
        scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, -INF, -INF], [0.0, -INF, -INF, -INF]])
        targets = torch.zeros(3, dtype=torch.int64)
        for miner, masses in ((topk(2), (2, 1, 0)), (hcl(1.0), (3, 1, 0)), (None, (3, 1, 0))):
            expected = mean([math.log(1 + mass) for mass in masses])
            assert infonce_bound(scores, targets, miner=miner).constant == pytest.approx(expected, abs=1e-15)

    def test_what_guarantees_nothing_is_not_a_bound(self):
        def plain(scores, targets, *, anchors=None):
            return torch.zeros_like(scores)

        class Module(nn.Module):
            def forward(self, scores, targets, *, anchors=None):
                return torch.zeros_like(scores)

        class Partial:
            facts = MiningFacts(mass=2)

            def __call__(self, scores, targets, *, anchors=None):
                return torch.zeros_like(scores)

        class Unweighed(Partial):
            facts = MiningFacts(monotone=True)

        scores = torch.randn(4, 6)
        for miner in (
            semihard(1.0),
            semihard(1.0, fallback=hardest()),
            hcl(1.0, 0.1),
            debiased(0.1),
            detached(hcl(1.0, 0.1)),
            plain,
            functools.partial(plain),
            Module(),
            Partial(),
            Unweighed(),
        ):
            bound = infonce_bound(scores, miner=miner)
            assert bound.status == "not a bound"
            assert math.isnan(bound.value)
            assert math.isnan(bound.constant)
            assert math.isnan(bound.cap)
            assert bound.reason

    @pytest.mark.parametrize("miner", [None, topk(3), hcl(1.0), importance(0.5)], ids=repr)
    def test_candidates_that_are_not_independent(self, miner):
        bound = infonce_bound(torch.randn(4, 6), miner=miner, independent=False)
        assert bound.status == "not a bound"
        assert math.isnan(bound.value)
        assert math.isnan(bound.constant)
        assert math.isnan(bound.cap)
        assert "not independent" in bound.reason
        assert "theorem D" in bound.reason

    @pytest.mark.parametrize("miner", [semihard(1.0), debiased(0.1), hcl(1.0, 0.1), topk(2), hcl(2.0)], ids=repr)
    def test_the_share_of_rows_that_pass(self, miner):
        scores, targets = scores_with_gaps(60, 9, scale=2.0)
        weights = miner(scores, targets).exp()
        passes = []
        for row, t, weight in zip(scores.tolist(), targets.tolist(), weights.tolist(), strict=True):
            kept = [j for j in range(9) if j != t and row[j] > -INF]
            mass = miner.facts.mass if isinstance(miner.facts.mass, int) else len(kept)
            plain = math.fsum(math.exp(row[j]) for j in kept) * min(mass, len(kept)) / max(1, len(kept))
            passes.append(math.fsum(weight[j] * math.exp(row[j]) for j in kept) >= plain * (1 - 1e-9))
        bound = infonce_bound(scores, targets, miner=miner)
        assert bound.passing == pytest.approx(mean(passes), abs=1e-12)
        assert (bound.passing == 1.0) == (bound.status == "bound")

    def test_passing_says_nothing_of_draws_and_proposals(self):
        scores, targets = scores_with_gaps(6, 9)
        for miner in (random_subset(2), importance(0.5)):
            assert math.isnan(infonce_bound(scores, targets, miner=miner).passing)
        empty = torch.tensor([[1.0, -INF], [0.0, 0.0]])
        assert infonce_bound(empty, miner=topk(1)).passing == 1.0

    def test_a_known_proposal(self):
        scores, targets = scores_with_gaps(6, 9, absent=0.0)
        log_q = torch.randn(9, dtype=torch.float64)
        bound = infonce_bound(scores, targets, miner=importance(log_q))
        loss = references.kpair(scores, targets, (-log_q).expand(6, 9))
        assert bound.status == "bound"
        assert "theorem C" in bound.reason
        assert bound.constant == pytest.approx(math.log(9), abs=1e-15)
        assert bound.value == pytest.approx(math.log(9) - mean(loss), abs=1e-13)
        assert bound.cap == pytest.approx(math.log(9) + float(log_q[targets].mean()), abs=1e-13)
        alone = infonce_bound(scores, targets, miner=importance(log_q, positive=False))
        assert alone.status == "not a bound"
        assert "the negatives alone" in alone.reason

    def test_the_reason_names_the_theorem(self):
        scores = torch.randn(6, 6)
        for miner, words in (
            (None, "theorem A"),
            (topk(3), "log(1 + 3) - L is a lower bound (theorem B"),
            (hcl(1.0), "log K - L is a lower bound (theorem B"),
            (random_subset(3), "draws 3 negatives"),
            (semihard(1.0), "drops the hardest negatives (theorem D)"),
        ):
            assert words in infonce_bound(scores, miner=miner).reason

    @pytest.mark.parametrize("function", [infonce_bound, nwj_bound])
    def test_input_is_checked(self, function):
        name = function.__name__
        broken = torch.zeros(3, 3)
        for value in (math.nan, INF):
            for column in range(3):
                scores = broken.clone()
                scores[1, column] = value
                with refused(name, "row 1", "NaN or +inf score"):
                    function(scores)
        broken[2, 2] = -INF
        with refused(name, "row 2", "absent"):
            function(broken)
        for shape in ((0, 0), (0, 3), (2, 2)):
            with refused(name, "no candidate", str(shape)):
                function(torch.full(shape, -INF))

    def test_what_is_no_miner(self):
        with refused("infonce_bound", "returned NoneType"):
            infonce_bound(torch.zeros(2, 2), miner=lambda scores, targets, *, anchors=None: None)
        with pytest.raises(TypeError, match="unexpected keyword argument 'anchors'"):
            infonce_bound(torch.zeros(2, 2), miner=hcl)  # not hcl(1.0): said in docs/miners.md

    def test_no_graph_is_kept(self):
        scores = torch.randn(4, 4, requires_grad=True)
        for bound in (infonce_bound(scores), infonce_bound(scores, miner=hcl(1.0)), nwj_bound(scores)):
            assert isinstance(bound, Bound)
            assert type(bound.value) is type(bound.constant) is type(bound.cap) is float


class TestNwj:
    def test_equals_its_formula(self):
        scores, targets = scores_with_gaps(6, 9)
        bound = nwj_bound(scores, targets)
        assert bound.value == pytest.approx(references.nwj(scores, targets), abs=1e-13)
        assert (bound.status, bound.cap) == ("bound", INF)
        dependent = nwj_bound(scores, targets, independent=False)
        assert (dependent.value, dependent.status, dependent.direction) == (bound.value, "not a bound", "neither")
        assert "not independent" in dependent.reason

    def test_large_scores(self):
        scores = torch.full((4, 4), -1e4).fill_diagonal_(1e4)
        assert nwj_bound(scores).value == 1e4
        assert nwj_bound(-scores).value == -INF  # e^10000: the estimate itself, no number holds it

    def test_without_negatives(self):
        with refused("nwj_bound", "(1, 1)", "no negative"):
            nwj_bound(torch.zeros(1, 1))

    @pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
    def test_gaussians(self, rho):
        # The optimal critic, 1 + log p(y|x) / p(y), of two Gaussians of correlation rho; I = -log(1 - rho^2) / 2.
        information = -0.5 * math.log(1 - rho**2)
        x = torch.randn(1500, dtype=torch.float64)
        y = rho * x + math.sqrt(1 - rho**2) * torch.randn(1500, dtype=torch.float64)
        log_ratio = information - ((y - rho * x[:, None]).square() / (1 - rho**2) - y.square()) / 2
        assert nwj_bound(1 + log_ratio).value == pytest.approx(information, abs=0.05)
        assert infonce_bound(log_ratio).value == pytest.approx(information, abs=0.05)
        # Another critic bounds it from further below; here by the variance of the detour.
        assert nwj_bound(1 + log_ratio + 1.0).value < information - 0.5
        assert nwj_bound(0.5 * log_ratio).value < information + 0.01


# Channels p(x, y) over four symbols: independent, noisy, clean, and one with a rare symbol.
def channels():
    generator = torch.Generator().manual_seed(7)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    eye = torch.eye(4, dtype=torch.float64)
    joints = {
        "independent": uniform(4, 1) * uniform(1, 4),
        "noisy": 0.2 * uniform(4, 4) + eye,
        "clean": 0.02 * uniform(4, 4) + eye,
        "rare": 0.2 * uniform(4, 4) + torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.01], dtype=torch.float64)),
    }
    return {name: Channel(joint / joint.sum(), negatives=3) for name, joint in joints.items()}


CHANNELS = channels()


def estimate(channel, critic, *, constant, miner=None, loss=kpair_loss):
    """The expectation of constant - L over the channel, differentiable in the critic's table."""
    scores, targets = channel.scores(critic), channel.targets()
    log_weights = None if miner is None else miner(scores, targets)
    return constant - channel.mean(loss(scores, targets, log_weights=log_weights))


def largest(value, *, starts=2, steps=60):
    """The largest expectation that a tabular critic reaches: random ones, then gradient ascent from them."""
    best = -INF
    for start in range(starts):
        generator = torch.Generator().manual_seed(start)
        critic = (1 + 2 * start) * torch.randn(4, 4, generator=generator, dtype=torch.float64)
        critic.requires_grad_()
        ascent = torch.optim.Adam([critic], lr=0.1, maximize=True)
        for _ in range(steps):
            ascent.zero_grad()
            current = value(critic)
            best = max(best, float(current.detach()))
            current.backward()
            ascent.step()
    return best


@pytest.fixture(params=CHANNELS)
def channel(request):
    return CHANNELS[request.param]


class TestByEnumeration:
    @pytest.mark.parametrize("miner", [None, topk(1), topk(2), topk(3), hcl(1.0), hcl(4.0)], ids=repr)
    def test_what_is_called_a_bound_is_one_for_an_adversary_too(self, channel, miner):
        claimed = infonce_bound(channel.scores(torch.zeros(4, 4)), channel.targets(), miner=miner)
        assert claimed.status == "bound"
        best = largest(lambda critic: estimate(channel, critic, constant=claimed.constant, miner=miner))
        assert best <= channel.information + 1e-12

    def test_random_critics(self, channel):
        for miner in (None, topk(1), topk(2), hcl(1.0)):
            constant = infonce_bound(channel.scores(torch.zeros(4, 4)), channel.targets(), miner=miner).constant
            for scale in (0.1, 1.0, 10.0, 100.0):
                for _ in range(10):
                    critic = scale * torch.randn(4, 4, dtype=torch.float64)
                    found = estimate(channel, critic, constant=constant, miner=miner)
                    assert float(found) <= channel.information + 1e-12

    def test_the_uniform_bound_comes_close(self):
        # An adversary that could not climb would prove nothing.
        for name in ("noisy", "clean"):
            channel = CHANNELS[name]
            best = largest(lambda critic, c=channel: estimate(c, critic, constant=math.log(4)))
            assert best > 0.6 * channel.information

    @pytest.mark.parametrize(("name", "k"), [("independent", 1), ("independent", 2), ("noisy", 1)])
    def test_top_k_with_the_constant_of_all_negatives_is_none(self, name, k):
        channel = CHANNELS[name]
        best = largest(lambda critic: estimate(channel, critic, constant=math.log(4), miner=topk(k)))
        assert best > channel.information + 0.05

    @pytest.mark.parametrize(
        ("miner", "loss"),
        [
            (semihard(INF), kpair_loss),
            (debiased(0.5, min_score=-20.0), kpair_loss),
            (hcl(1.0, 0.9, min_score=-20.0), kpair_loss),
            (None, decoupled_loss),
        ],
        ids=["semihard", "debiased", "hcl, tau_plus", "decoupled"],
    )
    def test_what_is_called_none_is_none(self, miner, loss):
        channel = CHANNELS["noisy"]
        best = largest(
            lambda critic: estimate(channel, critic, constant=math.log(4), miner=miner, loss=loss), steps=100
        )
        assert best > channel.information + 0.05

    def test_the_enumeration_is_complete(self, channel):
        assert float(channel.probability.sum()) == pytest.approx(1.0, abs=1e-12)
        assert channel.information >= -1e-12
