"""Miners that draw, against the probabilities of every draw; weights that undo a proposal."""

import dataclasses
import itertools
import math
import pickle

import pytest
import torch
from miner_table import few_rows_at_a_time, mine
from references import INF, close, gradient, refused
from test_bounds import CHANNELS, largest

from contrastive import Cosine, KPairLoss, infonce_bound, kpair_loss
from miners import chain, detached, distance_weighted, hcl, importance, random_subset


def draws(rates, k):
    """Every set of k that draws without replacement may keep, with its probability: rates [rows, N].

    Where no rate is left the rest are drawn uniformly.
    """
    rows, count = rates.shape
    for ordered in itertools.permutations(range(count), k):
        probability, left = rates.new_ones(rows), torch.ones(count, dtype=torch.bool)
        for j in ordered:
            total = (rates * left).sum(1)
            some = total > 0
            share = rates[:, j] / torch.where(some, total, 1.0)
            probability = probability * torch.where(some, share, 1 / float(left.sum()))
            left = left & (torch.arange(count) != j)
        yield list(ordered), probability


def included(rates, k):
    """The probability with which each is kept."""
    found = torch.zeros_like(rates)
    for kept, probability in draws(rates, k):
        found[:, kept] += probability[:, None]
    return found


class TestDraws:
    SCORES = torch.tensor([[1.0, 0.9, 0.5, -INF, 0.3, 0.1, -0.4, -0.6]])
    NEGATIVES = torch.tensor([1, 2, 4, 5, 6, 7])

    @pytest.mark.parametrize("k", [1, 2, 5])
    @pytest.mark.parametrize("kind", ["uniform", "distance"])
    @pytest.mark.parametrize("alone", [False, True])
    def test_frequencies(self, kind, k, alone):
        # k = 5 has the four within the limit, and one of the two beyond it.
        miner = random_subset(k) if kind == "uniform" else distance_weighted(1.0, 5, k=k)
        if kind == "uniform":
            rates = torch.ones(1, 6, dtype=torch.float64)
        else:
            soft = distance_weighted(1.0, 5)(self.SCORES.double(), torch.tensor([0]))
            rates = soft[:, self.NEGATIVES].exp()
            assert (rates == 0).sum() == 2
        expected = included(rates, k)[0]
        times = 1500 if alone else 20000
        if alone:
            found = torch.cat([miner(self.SCORES, torch.tensor([0])) for _ in range(times)])
        else:
            found = miner(self.SCORES.expand(times, -1), torch.zeros(times, dtype=torch.int64))
        kept = found[:, self.NEGATIVES] == 0.0
        assert (kept.sum(1) == k).all()
        frequency = kept.double().mean(0)
        assert ((frequency - expected).abs() <= 4.5 * (expected * (1 - expected) / times).sqrt() + 1e-12).all()

    def test_are_made_anew_and_follow_the_seed(self):
        scores, targets = torch.zeros(4, 50), torch.zeros(4, dtype=torch.int64)
        for miner in (random_subset(5), distance_weighted(1.0, 8, k=5)):
            found = mine(miner, scores, targets)
            assert not torch.equal(miner(scores, targets), found)
            assert not torch.equal(found[0], found[1])
            assert torch.equal(mine(miner, scores, targets), found)

    def test_noise_of_0_draws_nothing_for_sure(self, monkeypatch):
        """Once in 16 million: it made an infinite key, at the positive or beyond the limit one that is no number."""
        monkeypatch.setattr(
            torch.Tensor, "uniform_", lambda noise: noise.fill_(0.5).index_fill_(1, torch.tensor(0), 0.0)
        )
        scores = torch.tensor([[-1.0, 0.2, 0.1, 0.3, 1.0]])
        for target in (0, 4):
            kept = distance_weighted(1.0, 5, k=2)(scores, torch.tensor([target])) > -INF
            assert kept[0, target]
            assert int(kept.sum()) == 3
        assert not kept[0, 0]  # beyond the limit, where others are not

    def test_equal_weights_are_drawn_alike_by_the_same_noise(self):
        scores, targets = torch.zeros(40, 30), torch.zeros(40, dtype=torch.int64)
        expected = mine(random_subset(4), scores, targets)
        assert torch.equal(mine(distance_weighted(1.0, 8, k=4), scores, targets), expected)

    @pytest.mark.parametrize("k", [1, 2])
    @pytest.mark.parametrize("kind", ["uniform", "distance"])
    @pytest.mark.parametrize("channel", CHANNELS)
    def test_are_a_bound_for_an_adversary_too(self, channel, kind, k):
        channel = CHANNELS[channel]
        miner = random_subset(k) if kind == "uniform" else distance_weighted(0.3, 4, k=k)
        soft = hcl(0.0) if kind == "uniform" else distance_weighted(0.3, 4)

        def value(critic):
            """log(1 + k) - E L over the channel and all draws."""
            scores = channel.scores(critic)
            rates = soft(scores, channel.targets())[:, 1:].exp()
            loss = 0.0
            for kept, probability in draws(rates, k):
                row = scores[:, [0, *(1 + j for j in kept)]]
                loss = loss + probability * kpair_loss(row, channel.targets())
            return claimed.constant - channel.mean(loss)

        claimed = infonce_bound(channel.scores(torch.zeros(4, 4)), channel.targets(), miner=miner)
        assert claimed.status == "bound"
        assert claimed.constant == pytest.approx(math.log(1 + k))
        best = largest(value, steps=40)
        assert best <= channel.information + 1e-12
        if channel.information > 0.5 and kind == "uniform":
            assert best > 0.3 * channel.information  # the adversary climbs

    def test_from_what_is_weighted_are_none(self):
        channel = CHANNELS["independent"]
        assert chain(hcl(10.0), random_subset(1)).facts.mass is None

        def value(critic):
            scores, targets = channel.scores(critic), channel.targets()
            log_weights = hcl(10.0)(scores, targets)
            losses = [kpair_loss(scores[:, [0, j]], targets, log_weights=log_weights[:, [0, j]]) for j in (1, 2, 3)]
            return math.log(2) - channel.mean(torch.stack(losses).mean(0))

        assert largest(value) > channel.information + 0.05

    def test_their_value_is_log_1_plus_k_less_the_loss(self):
        scores = torch.randn(200, 9, dtype=torch.float64)
        targets = torch.zeros(200, dtype=torch.int64)
        torch.manual_seed(5)
        bound = infonce_bound(scores, targets, miner=random_subset(3))
        loss = kpair_loss(scores, targets, log_weights=mine(random_subset(3), scores, targets))
        assert bound.value == pytest.approx(math.log(4) - float(loss.mean()), abs=1e-12)

    @pytest.mark.parametrize("k", [0, -1, 1.5, True, math.nan])
    def test_options(self, k):
        with refused("random_subset", repr(k)):
            random_subset(k)


class TestImportance:
    LOG_Q = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1]]).log()
    LOG_P = torch.tensor([0.5, 0.3, 0.2]).log()

    def test_is_the_ratio_at_the_positive_too(self):
        scores, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        ratio = self.LOG_P - self.LOG_Q
        close(importance(self.LOG_Q, log_p=self.LOG_P)(scores, targets), ratio, 1e-7)
        alone = importance(self.LOG_Q, log_p=self.LOG_P, positive=False)(scores, targets)
        close(alone, ratio.scatter(1, targets[:, None], 0.0), 1e-7)
        close(importance(self.LOG_Q[1])(scores, targets), -self.LOG_Q[1].expand(4, 3), 1e-7)
        close(importance(0.0, log_p=self.LOG_Q)(scores.double(), targets), self.LOG_Q, 1e-12)

    def test_of_some_anchors(self):
        scores, targets, anchors = torch.randn(2, 3), torch.tensor([1, 2]), torch.tensor([3, 1])
        found = importance(self.LOG_Q, log_p=self.LOG_P)(scores, targets, anchors=anchors)
        close(found, self.LOG_P - self.LOG_Q[anchors], 1e-7)

    def test_is_a_bound_by_theorem_c(self):
        scores, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        miner = importance(self.LOG_Q, log_p=self.LOG_P)
        bound = infonce_bound(scores, targets, miner=miner)
        loss = kpair_loss(scores, targets, log_weights=self.LOG_P - self.LOG_Q)
        assert bound.status == "bound"
        assert bound.value == pytest.approx(math.log(3) - float(loss.mean()), abs=1e-6)
        assert infonce_bound(scores, targets, miner=detached(miner)) == dataclasses.replace(
            bound, reason=bound.reason.replace(repr(miner), repr(detached(miner)))
        )

    def test_survives_pickle(self):
        miner = pickle.loads(pickle.dumps(importance(self.LOG_Q, log_p=self.LOG_P)))
        assert repr(miner) == "importance(log_q=[4, 3], log_p=[3])"
        close(miner(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])), self.LOG_P - self.LOG_Q, 1e-7)

    def test_a_trained_proposal_gets_its_gradient(self):
        log_q = self.LOG_Q.clone().requires_grad_()
        loss = kpair_loss(
            torch.zeros(4, 3),
            torch.tensor([0, 1, 2, 0]),
            log_weights=importance(log_q)(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])),
        )
        assert gradient(loss, log_q)[0].all()

    @pytest.mark.parametrize(
        ("q", "is_at"),
        [([0.5, 0.0, 0.5], "-inf at [1]"), ([[0.5, 0.4], [-0.1, 0.6]], "nan at [1, 0]"), ([INF, 0.1], "inf at [0]")],
    )
    def test_a_q_that_is_not_positive(self, q, is_at):
        log_q = torch.tensor(q).log()
        with refused(f"importance: log_q is {is_at}, expected the logarithm of a positive number"):
            importance(log_q)
        with refused(f"importance: log_p is {is_at}, expected"):
            importance(0.0, log_p=log_q)

    @pytest.mark.parametrize("value", [math.nan, INF, -INF])
    def test_a_number_that_is_none(self, value):
        with refused(f"importance: log_q is {value}, expected"):
            importance(value)

    def test_shapes(self):
        scores, targets = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
        for log_q in (torch.zeros(2, 4, 3), torch.zeros(3, dtype=torch.int64)):
            with refused("importance", "log_q", "[candidates] or [anchors, candidates]"):
                importance(log_q)
        for log_q, words in (
            (torch.zeros(4), ["log_q is of 4 candidates", "3 of the scores"]),
            (torch.zeros(1), ["log_q is of 1 candidates", "3 of the scores"]),
            (torch.zeros(4, 1), ["log_q is of 1 candidates", "3 of the scores"]),
            (torch.zeros(1, 3), ["log_q is of 1 anchors", "4 of the scores"]),
            (torch.zeros(5, 3), ["log_q is of 5 anchors", "4 of the scores"]),
        ):
            with refused("importance", *words):
                importance(log_q)(scores, targets)
            with refused("importance", *(word.replace("log_q", "log_p") for word in words)):
                importance(0.0, log_p=log_q)(scores, targets)
        with refused("importance", "log_q is of 4 anchors", "rows 2 to 5"):
            importance(self.LOG_Q)(scores, targets, anchors=torch.tensor([2, 3, 4, 5]))

    def test_in_strips_with_a_queue(self, monkeypatch):
        few_rows_at_a_time(monkeypatch)
        x, y, q = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (7, 7, 5))
        miner = importance(torch.randn(7, 12, dtype=torch.float64), log_p=torch.randn(12, dtype=torch.float64))
        losses = [
            KPairLoss(Cosine(0.5), miner=miner, symmetric=False, tiled=tiled)(x, y, negatives=q)
            for tiled in (True, False)
        ]
        close(losses[0], losses[1], 1e-13)
        for found, expected in zip(*(gradient(loss, x, y, q) for loss in losses), strict=True):
            close(found, expected, 1e-13)
