"""Proposals from a pool: exact probabilities, draws that follow them, and a bound that survives a bad proposal."""

import itertools
import math

import pytest
import torch
from references import INF, refused

from contrastive import Concat, Separable, kpair_loss, list_scores, pool_infonce
from miners import PoolProposal
from miners import pool as pool_module

POOL = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
ANCHORS = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
OPTIONS = [
    {},
    {"top": 1},
    {"top": 2, "uniform": 0.5},
    {"top": 5, "temperature": 0.3},
    {"uniform": 1.0},
    {"metric": "cosine", "temperature": 0.1},
    {"metric": "euclidean", "top": 3},
    {"metric": "euclidean"},
]


def looped(anchor, pool, *, top=None, uniform=0.1, temperature=1.0, metric="inner_product"):
    """The proposal as its formula says, place by place."""
    score = {
        "inner_product": lambda x, y: float(x @ y),
        "cosine": lambda x, y: float(x @ y / x.norm() / y.norm()),
        "euclidean": lambda x, y: -float((x - y).square().sum()),
    }[metric]
    g = [score(anchor.double(), y.double()) / temperature for y in pool]
    chosen = sorted(range(len(pool)), key=lambda j: -g[j])[: top or len(pool)]
    total = math.fsum(math.exp(g[j]) for j in chosen)
    return [(1 - uniform) * (math.exp(g[j]) / total if j in chosen else 0) + uniform / len(pool) for j in range(len(g))]


def everywhere(anchors, pool):
    return torch.arange(len(pool)).expand(len(anchors), -1)


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
class TestProbabilities:
    def test_are_those_of_the_formula(self, options):
        found = PoolProposal(POOL, **options).log_probabilities(ANCHORS, everywhere(ANCHORS, POOL)).exp()
        expected = torch.tensor([looped(x, POOL, **options) for x in ANCHORS])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.sum(1), torch.ones(2))

    def test_draws_follow_them(self, options):
        torch.manual_seed(0)
        proposal, draws = PoolProposal(POOL, **options), 40_000
        for x in ANCHORS:
            draw = proposal.draw(x[None], torch.tensor([2]), draws + 1)
            assert draw.columns[0, 0] == 2
            expected = torch.tensor(looped(x, POOL, **options), dtype=torch.float64)
            counts = draw.columns[0, 1:].bincount(minlength=5).double()
            assert ((counts - draws * expected).abs() < 5 * (draws * expected).sqrt() + 1e-9).all()
            torch.testing.assert_close(
                draw.log_weights[0].double(), -(5 * expected).log()[draw.columns[0]], rtol=1e-5, atol=1e-5
            )
            assert draw.prior == 5

    def test_shared_draws_follow_their_mean(self, options):
        torch.manual_seed(0)
        proposal, draws = PoolProposal(POOL, **options), 40_000
        draw = proposal.draw_shared(ANCHORS, torch.tensor([4, 1]), draws + 1)
        expected = torch.tensor([looped(x, POOL, **options) for x in ANCHORS], dtype=torch.float64).mean(0)
        assert draw.columns[:, 0].tolist() == [4, 1]
        assert torch.equal(draw.columns[0, 1:], draw.columns[1, 1:])
        counts = draw.columns[0, 1:].bincount(minlength=5).double()
        assert ((counts - draws * expected).abs() < 5 * (draws * expected).sqrt() + 1e-9).all()
        weights = -(4 * expected).log()[draw.columns]
        weights[0, 1:][draw.columns[0, 1:] == 1] = -INF  # where the other's positive stands, this one's cannot
        weights[1, 1:][draw.columns[1, 1:] == 4] = -INF
        torch.testing.assert_close(draw.log_weights.double(), weights, rtol=1e-5, atol=1e-5)
        assert draw.prior == 4


class TestTheBound:
    """Theorem C by enumeration: every place of the positive, every draw; the critic has nothing to do with q."""

    @pytest.mark.parametrize("options", OPTIONS, ids=repr)
    def test_the_ratio_has_mean_one(self, options):
        scores = 3 * torch.randn(5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        proposal = PoolProposal(POOL, **options)
        logs = proposal.log_probabilities(ANCHORS[:1], everywhere(ANCHORS[:1], POOL))[0].double()
        total = 0.0
        for place, *drawn in itertools.product(range(5), repeat=3):
            columns = torch.tensor([place, *drawn])
            probability = math.exp(float(logs[columns[1:]].sum())) / 5
            loss = kpair_loss(
                scores[columns][None], torch.tensor([0]), log_weights=(-math.log(5) - logs)[columns][None]
            )
            total += probability * 3 * math.exp(-float(loss))
        assert total == pytest.approx(1.0, abs=2e-5)

    def test_the_ratio_of_shared_draws_has_mean_at_most_one(self):
        scores = 3 * torch.randn(5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        proposal = PoolProposal(POOL, top=2, uniform=0.5)
        q = proposal.log_probabilities(ANCHORS, everywhere(ANCHORS, POOL)).exp().double().mean(0)
        torch.manual_seed(0)
        for other in range(5):
            total, covered = 0.0, 0.0
            for place in set(range(5)) - {other}:
                found = proposal.draw_shared(ANCHORS, torch.tensor([place, other]), 4001)
                weight = dict(zip(found.columns[0].tolist(), found.log_weights[0].double().tolist(), strict=True))
                assert set(weight) == set(range(5))
                for drawn in itertools.product(range(5), repeat=2):
                    columns = torch.tensor([place, *drawn])
                    probability = float(q[columns[1:]].prod()) / 4
                    log_weights = torch.tensor([[weight[j] for j in columns.tolist()]], dtype=torch.float64)
                    loss = kpair_loss(scores[columns][None], torch.tensor([0]), log_weights=log_weights)
                    total += probability * 3 * math.exp(-float(loss))
                    covered += probability
            assert covered == pytest.approx(1.0, abs=1e-5)
            # 1, but for the draws that only hit the other's place.
            assert total == pytest.approx(1 - float(q[other]) ** 3, abs=2e-5)

    @pytest.mark.parametrize(("shared", "k"), [(False, 32), (True, 512)])
    def test_passes_log_k_and_keeps_below_the_information(self, shared, k):
        torch.manual_seed(0)
        dim, information, pool = 20, 6.0, 4096
        rho = math.sqrt(1 - math.exp(-2 * information / dim))
        values = []
        for _ in range(20):
            x = torch.randn(64, dim)
            y = torch.randn(pool, dim)
            y[:64] = rho * x + math.sqrt(1 - rho**2) * y[:64]

            def log_ratio(x, y):
                distance = torch.cdist(y, rho * x).square().T / (2 * (1 - rho**2))
                return information - distance + y.square().sum(1) / 2

            # The proposal knows the direction of the best candidates, and little else.
            proposal = PoolProposal(y + torch.randn_like(y) / 4, metric="euclidean", temperature=1.2, uniform=0.2)
            draw = (proposal.draw_shared if shared else proposal.draw)(rho * x, torch.arange(64), k)
            scores = list_scores(log_ratio, x, y, draw.columns)
            values.append(pool_infonce(scores, draw.log_weights, prior=draw.prior).value)
        mean = torch.tensor(values).mean()
        assert math.log(32) + 1 < mean < information if not shared else 4.5 < mean < information

    def test_is_the_kernel(self):
        scores, log_weights = torch.randn(6, 9), torch.randn(6, 9)
        bound = pool_infonce(scores, log_weights, prior=100)
        losses = kpair_loss(scores, torch.zeros(6, dtype=torch.int64), log_weights=log_weights)
        assert bound.value == pytest.approx(math.log(9) - float(losses.mean()), abs=1e-6)
        assert bound.cap == pytest.approx(math.log(100))
        assert bound.constant == pytest.approx(math.log(9))
        assert bound.status == "bound"

    def test_padding_is_no_sample(self):
        scores, log_weights = torch.randn(4, 9), torch.randn(4, 9)
        padded = torch.cat([scores, torch.full((2, 9), -INF)]), torch.cat([log_weights, torch.full((2, 9), -INF)])
        expected = pool_infonce(scores, log_weights, prior=100).value
        assert pool_infonce(*padded, prior=100).value == pytest.approx(expected, abs=1e-12)


class TestInput:
    def test_of_the_pool(self):
        for pool in (torch.zeros(0, 3), torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64), torch.full((2, 2), INF)):
            with refused("PoolProposal: the pool"):
                PoolProposal(pool)
        for options, words in (
            ({"top": 6}, "top is 6, expected 1 to 5"),
            ({"top": 0}, "top is 0"),
            ({"top": 1.5}, "top is 1.5"),
            ({"uniform": 0.0}, "q must reach all"),
            ({"uniform": 1.5}, "uniform is 1.5"),
            ({"uniform": math.nan}, "uniform is nan"),
            ({"temperature": 0.0}, "temperature is 0.0"),
            ({"metric": "l2"}, "metric is 'l2', expected one of cosine, inner_product, euclidean"),
        ):
            with refused(words):
                PoolProposal(POOL, **options)

    def test_of_probabilities(self):
        proposal = PoolProposal(POOL, top=2)
        for columns in ([[0, 5], [0, 1]], [[-1, 0], [0, 1]]):  # no share of the uniform for what is not there
            with refused("expected [0, 4]"):
                proposal.log_probabilities(ANCHORS, torch.tensor(columns))
        with refused("expected [n, 3] and [n, k]"):
            proposal.log_probabilities(ANCHORS[:, :2], torch.tensor([[0], [1]]))
        with refused("expected [n, 3] and [n, k]"):
            proposal.log_probabilities(ANCHORS, torch.tensor([[0]]))
        for columns in ([[0.0], [1.0]], [[False], [True]]):
            with refused("columns have dtype", "an integer dtype"):
                proposal.log_probabilities(ANCHORS, torch.tensor(columns))

    def test_of_a_draw(self):
        proposal = PoolProposal(POOL)
        two = torch.tensor([0, 1])
        for draw in (proposal.draw, proposal.draw_shared):
            with refused("expected [n, 3]"):
                draw(ANCHORS[:, :2], two, 3)
            with refused("expected [n, 3]"):
                draw(ANCHORS, two[:1], 3)
            with refused("k is 1"):
                draw(ANCHORS, two, 1)
            with refused("k is 2.5"):
                draw(ANCHORS, two, 2.5)
            with refused("targets lie in [0, 5]"):
                draw(ANCHORS, torch.tensor([0, 5]), 3)
            with refused("NaN"):
                draw(ANCHORS * math.nan, two, 3)
            for targets in (two.double(), two.bool()):
                with refused("targets have dtype", "an integer dtype"):
                    draw(ANCHORS, targets, 3)
        with refused("the same positive"):
            proposal.draw_shared(ANCHORS, torch.tensor([1, 1]), 3)

    def test_more_places_than_torch_draws_from(self, monkeypatch):
        # A pool of one row, as often as it takes: nothing may be formed of it.
        places = 2**24 + 1
        with pytest.raises(RuntimeError, match="2\\^24"):
            torch.multinomial(torch.ones(1).expand(places), 1)
        proposal = PoolProposal(torch.zeros(1, 1).expand(places, 1))
        monkeypatch.setattr(proposal, "_proposed", None)
        anchors, targets = torch.zeros(1, 1), torch.tensor([0])
        for draw, instead in ((proposal.draw, "give a smaller top"), (proposal.draw_shared, "use draw with a top")):
            with refused("PoolProposal: 16,777,217 places", "at most 16,777,216", instead):
                draw(anchors, targets, 3)

    def test_the_most_places_are_taken(self, monkeypatch):
        two = torch.tensor([0, 1])
        for most, refusing in ((5, []), (4, ["shared", "all"]), (2, ["shared", "all"]), (1, ["shared", "all", "top"])):
            monkeypatch.setattr(pool_module, "_MOST", most)
            for name, options, draw in (
                ("all", {}, PoolProposal.draw),
                ("top", {"top": 2}, PoolProposal.draw),
                ("shared", {"top": 2}, PoolProposal.draw_shared),
            ):
                if name in refusing:
                    with refused("places to draw from"):
                        draw(PoolProposal(POOL, **options), ANCHORS, two, 3)
                else:
                    assert draw(PoolProposal(POOL, **options), ANCHORS, two, 3).columns.shape == (2, 3)

    def test_of_the_bound(self):
        scores = torch.zeros(2, 3)
        with refused("pool_infonce", "log_weights"):
            pool_infonce(scores, torch.zeros(2, 2), prior=3)
        with refused("pool_infonce", "prior 0"):
            pool_infonce(scores, torch.zeros(2, 3), prior=0)
        for place, value in ((0, -INF), (1, INF), (2, math.nan)):
            weights = torch.zeros(2, 3)
            weights[1, place] = value
            with refused("pool_infonce"):
                pool_infonce(scores, weights, prior=3)

    def test_half_precision_and_one_anchor(self):
        for dtype in (torch.float16, torch.bfloat16):
            draw = PoolProposal(POOL.to(dtype), top=2).draw(ANCHORS.to(dtype), torch.tensor([0, 1]), 4)
            assert draw.log_weights.dtype == torch.float32
            assert torch.isfinite(draw.log_weights).all()
        assert PoolProposal(POOL).draw(ANCHORS[:1], torch.tensor([3]), 2).columns.shape == (1, 2)


class TestTraining:
    """A cheap critic proposes, an expensive one is trained on K pairs an anchor."""

    def test_gradient_is_that_of_the_whole_softmax_on_average(self):
        torch.manual_seed(0)
        cheap, critic = Separable(4, hidden=8, out=4), Concat(4, hidden=8)
        x, pool = torch.randn(3, 4), torch.randn(12, 4)
        towers = cheap.factors(x, pool)
        proposal = PoolProposal(towers.candidates, uniform=0.3)
        targets = torch.tensor([0, 5, 7])
        kpair_loss(critic(x, pool), targets).mean().backward()
        exact = torch.cat([p.grad.flatten() for p in critic.parameters()])
        critic.zero_grad()
        for _ in range(20):
            draw = proposal.draw(towers.anchors, targets, 400)
            scores = list_scores(critic, x, pool, draw.columns)
            losses = kpair_loss(scores, torch.zeros(3, dtype=torch.int64), log_weights=draw.log_weights)
            (losses.mean() / 20).backward()
        found = torch.cat([p.grad.flatten() for p in critic.parameters()])
        assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.99
        assert (found - exact).norm() < 0.1 * exact.norm()
