"""Miners made of miners: without gradient, one after another, over the steps, counted."""

import copy
import math
import pickle
import re
from functools import partial

import pytest
import torch
from miner_table import TABLE, few_rows_at_a_time
from references import INF, refused

import miners
from contrastive import Cosine, KPairLoss, infonce_bound
from contrastive.scores import MiningFacts
from miners import (
    Miner,
    annealed,
    chain,
    counted,
    detached,
    distance_weighted,
    hardest,
    hcl,
    importance,
    margin,
    multi_similarity,
    random_subset,
    ring,
    semihard,
    topk,
)


class TestDetached:
    def test_takes_any_callable_and_promises_nothing_for_it(self):
        def squares(scores, targets, *, anchors=None):
            return scores.square().scatter(1, targets[:, None], 0.0)

        scores = torch.randn(3, 4, requires_grad=True)
        found = detached(squares)(scores, torch.arange(3))
        assert not found.requires_grad
        assert torch.equal(found, squares(scores.detach(), torch.arange(3)))
        assert detached(squares).facts == MiningFacts()

    def test_hands_on_the_anchors(self):
        seen = []

        def spy(scores, targets, *, anchors=None):
            seen.append(anchors)
            return torch.zeros_like(scores)

        anchors = torch.tensor([4, 2])
        detached(spy)(torch.zeros(2, 3), torch.tensor([0, 0]), anchors=anchors)
        assert seen[0] is anchors

    def test_hands_on_the_step(self):
        miner = detached(annealed(topk, start=5, end=1, steps=4))
        assert repr(miner.at(3)) == "detached(topk(k=2))"
        assert repr(miner.at(3).at(4)) == "detached(topk(k=2))"


class TestChain:
    def test_what_one_drops_is_absent_for_the_next(self):
        scores = torch.tensor([[0.0, 4.0, 3.0, 2.0, 1.0]])
        targets = torch.tensor([0])
        found = chain(ring(0.25, 1.0), topk(2))(scores, targets)
        assert found.tolist() == [[0.0, -INF, 0.0, 0.0, -INF]]
        assert chain(topk(2), ring(0.25, 1.0))(scores, targets).tolist() == [[0.0, -INF, 0.0, -INF, -INF]]

    def test_log_weights_add_those_of_the_target_too(self):
        scores, targets = torch.zeros(1, 3), torch.tensor([1])
        miner = chain(importance(-1.0), margin(0.5), importance(0.25))
        assert miner(scores, targets).tolist() == [[1.25, 0.75, 1.25]]

    def test_a_target_without_weight_stays_for_the_next(self):
        def decoupled(scores, targets, *, anchors=None):
            return torch.zeros_like(scores).scatter(1, targets[:, None], -INF)

        scores = torch.tensor([[1.0, 0.9, 0.0]])
        found = chain(decoupled, semihard(0.5))(scores, torch.tensor([0]))
        assert found.tolist() == [[-INF, 0.0, -INF]]

    def test_hands_on_the_anchors_and_the_step(self):
        seen = []

        def spy(scores, targets, *, anchors=None):
            seen.append(anchors)
            return torch.zeros_like(scores)

        anchors = torch.tensor([4, 2])
        miner = chain(spy, annealed(topk, start=9, end=1, steps=8), spy)
        miner.at(6)(torch.zeros(2, 3), torch.tensor([0, 0]), anchors=anchors)
        assert seen == [anchors, anchors]
        assert "topk(k=3)" in repr(miner.at(6))
        assert chain(topk(1)).at(5).schedule is None

    @pytest.mark.parametrize(
        ("parts", "facts"),
        [
            ([topk(3)], MiningFacts(mass=3, monotone=True, hardest=True)),
            ([importance(0.0)], MiningFacts(proposal=True)),
            ([semihard(1.0)], semihard(1.0).facts),
            ([hcl(1.0), hcl(2.0)], MiningFacts(mass="all", monotone=True)),
            ([hcl(1.0), margin(1.0), distance_weighted(0.1, 8)], MiningFacts(mass="all", monotone=True)),
            ([hcl(1.0), topk(4)], MiningFacts(mass=4, monotone=True)),
            ([topk(4), hcl(1.0)], MiningFacts(mass=4, monotone=True)),
            ([topk(4), hcl(1.0), topk(6), topk(5)], MiningFacts(mass=4, monotone=True)),
            ([chain(hcl(1.0), topk(4)), hardest()], MiningFacts(mass=1, monotone=True)),
            ([random_subset(9), topk(4)], MiningFacts(mass=4, monotone=True, drawn=True)),
            ([topk(4), random_subset(9)], MiningFacts(mass=4, monotone=True, drawn=True)),
            ([distance_weighted(0.1, 8, k=9), hcl(1.0)], MiningFacts(mass=9, monotone=True, drawn=True)),
            ([random_subset(9), random_subset(2), margin(1.0)], MiningFacts(mass=2, monotone=True, drawn=True)),
            ([detached(chain(topk(9), random_subset(3))), hcl(1.0)], MiningFacts(mass=3, monotone=True, drawn=True)),
        ],
        ids=str,
    )
    def test_facts(self, parts, facts):
        assert chain(*parts).facts == facts

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ([topk(4), semihard(1.0)], ["semihard(margin=1.0)", "which drops the hardest"]),
            ([ring(0.1, 1.0), semihard(1.0)], ["ring(lower=0.1, upper=1.0)", "which drops the hardest"]),
            ([topk(4), lambda s, t, anchors=None: torch.zeros_like(s)], ["<lambda>", "guarantees no constant mass"]),
            ([importance(0.0), topk(4)], ["importance", "undoes a proposal only by itself"]),
            ([topk(4), importance(0.0)], ["importance", "undoes a proposal only by itself"]),
            ([hcl(1.0), random_subset(2)], ["random_subset(k=2), which draws", "hcl(beta=1.0, tau_plus=0.0)"]),
            ([chain(hcl(1.0), topk(4)), random_subset(2)], ["random_subset(k=2), which draws", "hcl"]),
            ([detached(chain(hcl(1.0), topk(4))), random_subset(2)], ["random_subset(k=2), which draws", "hcl"]),
            ([chain(topk(4), semihard(1.0)), hcl(1.0)], ["semihard(margin=1.0)"]),
        ],
        ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)),  # the same in every process that shares the tests
    )
    def test_facts_that_are_none_say_which_part_breaks_them(self, parts, words):
        facts = chain(*parts).facts
        assert facts == MiningFacts(why=facts.why)
        for word in words:
            assert word in facts.why

    def test_of_nothing(self):
        with refused("chain", "no miners"):
            chain()


class TestAnnealed:
    def test_moves_linearly_and_stays(self):
        miner = annealed(hcl, start=2.0, end=1.0, steps=4)
        betas = [miner.at(step).rule.keywords["beta"] for step in range(7)]
        assert betas == [2.0, 1.75, 1.5, 1.25, 1.0, 1.0, 1.0]
        assert repr(miner.at(1)) == "hcl(beta=1.75, tau_plus=0.0)"
        assert miner.at(1).at(3) is not miner.at(3)
        assert repr(miner.at(1).at(3)) == repr(miner.at(1))

    def test_between_ints_counts_in_ints(self):
        miner = annealed(topk, start=10, end=3, steps=5)
        assert [repr(miner.at(step)) for step in range(6)] == [f"topk(k={k})" for k in (10, 9, 7, 6, 4, 3)]

    def test_ends_where_it_is_told_to(self):
        assert 0.2 + (0.9 - 0.2) != 0.9
        assert annealed(hcl, start=0.2, end=0.9, steps=3).at(3).rule.keywords["beta"] == 0.9

    def test_of_another(self):
        make = partial(annealed_tilt_among, beta=2.0)
        miner = annealed(make, start=4, end=2, steps=2)
        assert repr(miner.at(1)) == "chain(topk(k=3), hcl(beta=1.0, tau_plus=0.0))"
        assert miner.facts == MiningFacts(mass=4, monotone=True)

    def test_survives_pickle_and_deepcopy_with_its_schedule(self):
        miner = chain(
            annealed(topk, start=9, end=3, steps=6), annealed(partial(hcl, tau_plus=0.1), start=1.0, end=0.0, steps=9)
        )
        for other in (pickle.loads(pickle.dumps(miner)), copy.deepcopy(miner), copy.copy(miner)):
            for step in (0, 4, 99):
                assert repr(other.at(step)) == repr(miner.at(step))

    def test_other_miners_are_the_same_at_every_step(self):
        for miner, _ in TABLE:
            if isinstance(miner, Miner) and "annealed" not in repr(miner):
                assert miner.at(0) is miner.at(10**9) is miner

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"start": math.nan}, ["start is nan"]),
            ({"end": INF}, ["end is inf"]),
            ({"steps": 0}, ["steps is 0"]),
            ({"steps": 2.5}, ["steps is 2.5"]),
        ],
        ids=str,
    )
    def test_options(self, options, words):
        with refused("annealed", *words):
            annealed(hcl, **({"start": 1.0, "end": 0.0, "steps": 5} | options))

    def test_both_ends_are_tried_at_once(self):
        with refused("hcl", "beta is -1.0"):
            annealed(hcl, start=1.0, end=-1.0, steps=5)
        with refused("topk", "k is 0"):
            annealed(topk, start=0, end=5, steps=5)

    def test_a_step_before_the_first(self):
        for miner in (topk(1), annealed(hcl, start=1.0, end=0.0, steps=5)):
            with refused(repr(miner), "step is -1"):
                miner.at(-1)


def annealed_tilt_among(k, *, beta):
    return chain(topk(k), annealed(hcl, start=beta, end=0.0, steps=2))


class TestCounted:
    def starving(self):
        """Two of four anchors keep no negative; the fifth row is padding and no anchor."""
        scores = torch.tensor([[5.0, 1.0, 0.0], [1.0, 5.0, 2.0], [2.0, 0.0, -INF], [0.0, 1.0, 3.0], [-INF] * 3])
        return scores, torch.tensor([0, 0, 0, 0, 0])

    def test_counts_the_anchors_left_with_their_positive_alone(self):
        miner = counted(multi_similarity(0.5))
        assert math.isnan(miner.empty_rows())
        scores, targets = self.starving()
        miner(scores, targets)
        assert miner.empty_rows() == 0.5
        assert miner.figures() == {"empty_rows": 0.5}
        miner(scores[:1], targets[:1])
        assert miner.empty_rows() == 0.6  # so far
        miner.begin(1)
        assert math.isnan(miner.empty_rows())

    def test_absent_candidates_count_as_much_as_dropped_ones(self):
        miner = counted(topk(2))
        miner(torch.tensor([[1.0, -INF], [1.0, 0.0]]), torch.tensor([0, 0]))
        assert miner.empty_rows() == 0.5

    def test_follows_the_schedule_of_its_miner(self):
        miner = counted(annealed(topk, start=5, end=1, steps=4))
        scores, targets = torch.randn(3, 9), torch.arange(3)
        for step, k in ((0, 5), (2, 3), (4, 1), (99, 1)):
            miner.begin(step)
            assert torch.equal(miner(scores, targets), topk(k)(scores, targets))
            assert miner.facts == topk(k).facts

    def test_any_callable_and_what_it_guarantees(self):
        miner = counted(lambda scores, targets, *, anchors=None: torch.zeros_like(scores))
        assert miner.facts == MiningFacts()
        scores = torch.randn(4, 4)
        assert infonce_bound(scores, miner=counted(topk(2))) == infonce_bound(scores, miner=topk(2))

    def test_is_no_part_of_another_miner(self):
        """A chain of weights within it would pass for negatives of weight 1, and the schedule would stand still."""
        for call, words in (
            (lambda: chain(counted(topk(2)), random_subset(1)), ("chain: counted(topk(k=2)) is no part", "outermost")),
            (lambda: chain(counted(topk(2))), ("chain", "count outermost")),
            (lambda: detached(counted(topk(2))), ("detached", "count outermost")),
        ):
            with refused(*words):
                call()
        assert counted(chain(topk(2), random_subset(1))).facts.mass == 1

    @pytest.mark.parametrize("tiled", [False, True])
    def test_the_share_is_that_of_all_anchors_streamed_or_stored(self, tiled, monkeypatch):
        few_rows_at_a_time(monkeypatch)
        x, y = (torch.randn(16, 4, requires_grad=True) for _ in range(2))
        miner = counted(semihard(0.2))
        KPairLoss(Cosine(0.5), miner=miner, tiled=tiled)(x, y).backward()
        scores = Cosine(0.5)(x, y)
        empty = [miners.empty_rows(s, log_weights=semihard(0.2)(s, torch.arange(16))) for s in (scores, scores.T)]
        expected = torch.cat(empty).double().mean()
        assert 0 < expected < 1
        assert miner.empty_rows() == float(expected)
