"""Estimators of information: formulas by loops, claims by enumeration of every batch, closed forms of Gaussians.

A discrete channel is small enough to write out every batch that can be drawn, so that an expectation is a sum and an
inequality one up to rounding. Gaussians are sampled with a fixed seed; the tolerance is five standard errors.
"""

import itertools
import math
import re
from pathlib import Path

import pytest
import references
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import INF, refused, scores_with_gaps
from test_theory import collected

from benchmarks.estimators import gaussians, mist, oracle
from contrastive import bounds, estimators, infonce_bound, kpair_loss, ksg, nwj_bound
from contrastive.catalogue import (
    CLUB,
    DONSKER_VARADHAN,
    ESTIMATORS,
    INFONCE,
    INTERPOLATED,
    KSG,
    LEAVE_ONE_OUT_UPPER,
    NWJ,
    SMILE,
    TRACTABLE_NCE,
    VARIATIONAL_UPPER,
    barber_agakov_with,
    interpolated_at,
    mine_with,
    smile_clipped,
)
from contrastive.estimators import (
    Mine,
    barber_agakov,
    club,
    donsker_varadhan,
    flo,
    infonce,
    interpolated,
    jensen_shannon,
    leave_one_out_upper,
    nwj,
    nwj_of_log_ratio,
    smile,
    symmetric_infonce,
    tractable_nce,
    tuba,
    variational_upper,
)
from contrastive.tasks import correlated, gaussian

exp, log = math.exp, math.log
PAGE = Path(__file__).parents[1] / "docs" / "estimators.md"


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def parts(scores, targets):
    """The positives' scores and the negatives', by loops."""
    own, others = [], []
    for row, t in zip(scores.tolist(), targets.tolist(), strict=True):
        if all(s == -INF for s in row):
            continue
        own.append(row[t])
        others += [s for j, s in enumerate(row) if j != t and s > -INF]
    return own, others


def cells(joint, marginal):
    """A formula of the positives and the negatives as a function of the matrix."""

    def looped(scores, targets):
        own, others = parts(scores, targets)
        return joint(own) + marginal(others)

    return looped


def clipped(tau):
    return cells(mean, lambda others: -log(mean(exp(max(-tau, min(tau, s))) for s in others)))


#: Estimators of the two kinds of cells, beside their formulas.
OF_CELLS = {
    "donsker_varadhan": (donsker_varadhan, cells(mean, lambda others: -log(mean(map(exp, others))))),
    "nwj": (nwj, cells(mean, lambda others: -mean(exp(s - 1) for s in others))),
    "nwj_of_log_ratio": (nwj_of_log_ratio, cells(lambda own: 1 + mean(own), lambda others: -mean(map(exp, others)))),
    "jensen_shannon": (
        jensen_shannon,
        cells(lambda own: -mean(log(1 + exp(-s)) for s in own), lambda others: -mean(log(1 + exp(s)) for s in others)),
    ),
    "smile, 1": (lambda s, t=None: smile(s, t, clip=1.0), clipped(1.0)),
    "smile, 5": (smile, clipped(5.0)),
    "infonce": (
        infonce,
        lambda scores, targets: mean(
            log(sum(s > -INF for s in row)) - loss
            for row, loss in zip(scores.tolist(), references.kpair(scores, targets), strict=True)
            if max(row) > -INF
        ),
    ),
}


def looped_interpolated(s, alpha, log_q):
    k = len(s)

    def a(h, j):
        others = mean(exp(s[i][j]) for i in range(k) if i != h)
        return alpha * others + (1 - alpha) * exp(log_q[j])

    pairs = [(i, h) for i in range(k) for h in range(k) if i != h]
    return 1 + mean(s[i][i] - log(a(h, i)) for i, h in pairs) - mean(exp(s[i][h]) / a(h, h) for i, h in pairs)


def looped_flo(s, u):
    k = range(len(s))
    return mean(1 + u[i] - exp(u[i] - s[i][i]) * mean(exp(s[i][j]) for j in k if j != i) for i in k)


def looped_leave_one_out(p):
    k = range(len(p))
    return mean(p[i][i] - log(mean(exp(p[j][i]) for j in k if j != i)) for i in k)


class TestFormulas:
    @pytest.mark.parametrize("name", OF_CELLS)
    @pytest.mark.parametrize("absent", [0.0, 0.3])
    def test_of_cells(self, name, absent):
        function, looped = OF_CELLS[name]
        scores, targets = scores_with_gaps(6, 9, absent=absent, scale=3.0)
        assert float(function(scores, targets)) == pytest.approx(looped(scores, targets), abs=1e-12)
        square = scores_with_gaps(6, 6, absent=0.0, scale=3.0)[0]
        assert float(function(square)) == pytest.approx(looped(square, torch.arange(6)), abs=1e-12)

    @pytest.mark.parametrize("name", OF_CELLS)
    def test_padding_is_no_sample(self, name):
        function, looped = OF_CELLS[name]
        scores, targets = scores_with_gaps(5, 7)
        padded = torch.cat([scores, torch.full((2, 7), -INF, dtype=torch.float64)]).requires_grad_()
        value = function(padded, torch.cat([targets, torch.tensor([0, 3])]))
        assert float(value.detach()) == pytest.approx(looped(scores, targets), abs=1e-12)
        value.backward()
        assert bool(torch.isfinite(padded.grad).all())
        assert not padded.grad[5:].any()

    @pytest.mark.parametrize("name", OF_CELLS)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, name, dtype):
        function = OF_CELLS[name][0]
        scores = (2 * torch.randn(6, 6)).to(dtype)
        found = function(scores)
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(float(function(scores.double())), rel=1e-5, abs=1e-5)

    def test_large_scores(self):
        sharp = torch.full((4, 4), -1e4).fill_diagonal_(1e4)
        for value, expected in (
            (donsker_varadhan(sharp), 2e4),
            (nwj(sharp), 1e4),
            (nwj_of_log_ratio(sharp), 1e4),
            (nwj(-sharp), -INF),  # e^10000: no number holds it
            (smile(sharp), 1e4 + 5),
            (smile(-sharp), -1e4 - 5),
            (jensen_shannon(sharp), 0.0),
            (jensen_shannon(-sharp), -2e4),
            (infonce(sharp), log(4)),
            (symmetric_infonce(sharp), log(4)),
            (tractable_nce(sharp), log(4)),
            (leave_one_out_upper(sharp), 2e4),
            (club(sharp), 2e4),
            (interpolated(sharp, alpha=1.0, log_baseline=torch.zeros(4)), log(3)),
            (flo(sharp, log_ratio=torch.zeros(4)), 1.0),
        ):
            assert float(value) == pytest.approx(expected, rel=1e-4)

    def test_directions_of_infonce(self):
        scores = torch.randn(5, 5, dtype=torch.float64)
        by_columns = mean(log(5) - x for x in references.kpair(scores.T, torch.arange(5)))
        assert float(infonce(scores.T)) == pytest.approx(by_columns, abs=1e-13)
        assert float(symmetric_infonce(scores)) == pytest.approx(
            (by_columns + mean(log(5) - x for x in references.kpair(scores, torch.arange(5)))) / 2, abs=1e-13
        )
        assert float(tractable_nce(scores)) == pytest.approx(by_columns, abs=1e-13)

    def test_tuba(self):
        scores, targets = scores_with_gaps(5, 8, absent=0.2)
        baseline = torch.randn(8, dtype=torch.float64)
        found = tuba(scores, targets, log_baseline=baseline)
        own, others = parts(scores - baseline, targets)
        assert float(found) == pytest.approx(1 + mean(own) - mean(map(exp, others)), abs=1e-12)
        # A constant baseline of e is NWJ's; one of the batch alone is the loose end of the interpolation.
        assert float(tuba(scores, targets, log_baseline=torch.ones(8))) == pytest.approx(
            float(nwj(scores, targets)), abs=1e-12
        )

    @pytest.mark.parametrize("alpha", [0.0, 0.01, 0.5, 0.99, 1.0])
    @pytest.mark.parametrize("pairs", [2, 5])
    def test_interpolated(self, alpha, pairs):
        scores, baseline = 3 * torch.randn(pairs, pairs, dtype=torch.float64), torch.randn(pairs, dtype=torch.float64)
        found = interpolated(scores, alpha=alpha, log_baseline=baseline)
        assert float(found) == pytest.approx(looped_interpolated(scores.tolist(), alpha, baseline.tolist()), abs=1e-10)

    def test_the_ends_of_the_interpolation(self):
        scores, baseline = torch.randn(5, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
        assert float(interpolated(scores, alpha=0.0, log_baseline=baseline)) == pytest.approx(
            float(tuba(scores, log_baseline=baseline)), abs=1e-12
        )
        without = [[i for i in range(5) if i != h] for h in range(5)]
        over_anchors = mean(float(infonce(scores[kept][:, kept].T)) for kept in without)
        assert float(interpolated(scores, alpha=1.0, log_baseline=baseline)) == pytest.approx(over_anchors, abs=1e-12)

    def test_leaving_one_out_keeps_digits(self):
        # The largest of a column is 1e9 times the rest: subtracted from their sum, nothing of the rest would be left.
        scores = torch.zeros(4, 4, dtype=torch.float64)
        scores[0] = 25.0
        looped = looped_interpolated(scores.tolist(), 0.5, [0.0] * 4)
        found = interpolated(scores, alpha=0.5, log_baseline=torch.zeros(4, dtype=torch.float64))
        assert float(found) == pytest.approx(looped, rel=1e-12)

    def test_of_conditionals(self):
        p = 3 * torch.randn(5, 5, dtype=torch.float64)
        assert float(leave_one_out_upper(p)) == pytest.approx(looped_leave_one_out(p.tolist()), abs=1e-12)
        off = mean(float(p[i, j]) for i in range(5) for j in range(5) if i != j)
        assert float(club(p)) == pytest.approx(mean(p.diagonal().tolist()) - off, abs=1e-12)
        m = torch.randn(5, dtype=torch.float64)
        assert float(variational_upper(p.diagonal(), m)) == pytest.approx(mean((p.diagonal() - m).tolist()), abs=1e-12)
        assert float(barber_agakov(m, entropy=2.5)) == pytest.approx(2.5 + mean(m.tolist()), abs=1e-12)

    def test_a_probability_of_0_is_one(self):
        """A noiseless channel of two symbols, three pairs: nothing is absent."""
        p = torch.tensor([[0.0, -INF, 0.0], [-INF, 0.0, -INF], [0.0, -INF, 0.0]], dtype=torch.float64)
        expected = mean([log(3 / 2), log(3), log(3 / 2)])
        p.requires_grad_()
        found = tractable_nce(p)
        assert float(found.detach()) == pytest.approx(expected, abs=1e-12)
        found.backward()
        assert bool(torch.isfinite(p.grad).all())
        assert TRACTABLE_NCE.bound(torch.full((8, 8), -INF).fill_diagonal_(0.0)).value == pytest.approx(log(8))

    def test_flo(self):
        scores, u = torch.randn(5, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
        assert float(flo(scores, log_ratio=u)) == pytest.approx(looped_flo(scores.tolist(), u.tolist()), abs=1e-12)

    @pytest.mark.parametrize(
        "function",
        [
            *(pair[0] for pair in OF_CELLS.values()),
            symmetric_infonce,
            tractable_nce,
            leave_one_out_upper,
            club,
            lambda s: tuba(s, log_baseline=s[0]),
            lambda s: interpolated(s, alpha=0.3, log_baseline=s[0]),
            lambda s: interpolated(s, alpha=1.0, log_baseline=s[0]),
            lambda s: flo(s, log_ratio=s[0]),
        ],
    )
    def test_gradients(self, function):
        scores = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(function, (scores,))

    @given(st.integers(2, 6), st.floats(-1e3, 1e3), st.floats(0.1, 10))
    @settings(max_examples=30, deadline=None)
    def test_what_a_constant_changes(self, pairs, constant, scale):
        scores = scale * torch.randn(pairs, pairs, dtype=torch.float64)
        zeros = torch.zeros(pairs, dtype=torch.float64)
        for function in (donsker_varadhan, infonce, symmetric_infonce, tractable_nce, leave_one_out_upper, club):
            assert float(function(scores + constant)) == pytest.approx(float(function(scores)), rel=1e-9, abs=1e-9)
        by_row, by_column = scores + constant * torch.randn(pairs, 1), scores + constant * torch.randn(1, pairs)
        assert float(infonce(by_row)) == pytest.approx(float(infonce(scores)), abs=1e-8)
        assert float(infonce(by_column.T)) == pytest.approx(float(infonce(scores.T)), abs=1e-8)
        found = flo(by_row, log_ratio=zeros)
        assert float(found) == pytest.approx(float(flo(scores, log_ratio=zeros)), rel=1e-8, abs=1e-8)


class TestMine:
    def test_the_gradient_is_the_formula(self):
        objective, average = Mine(decay=0.8), None
        for _ in range(4):
            scores = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
            objective(scores).backward()
            now = mean(exp(s) for s in parts(scores.detach(), torch.arange(4))[1])
            average = now if average is None else 0.8 * average + 0.2 * now
            expected = torch.full((4, 4), 0.0, dtype=torch.float64)
            for i in range(4):
                for j in range(4):
                    expected[i, j] = 1 / 4 if i == j else -exp(float(scores.detach()[i, j])) / 12 / average
            torch.testing.assert_close(scores.grad, expected, rtol=1e-6, atol=1e-9)
        assert float(objective.log_average) == pytest.approx(log(average), abs=1e-6)

    def test_without_memory_it_is_the_gradient_of_the_estimate(self):
        scores = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(Mine(decay=0.0)(scores), scores)
        (expected,) = torch.autograd.grad(donsker_varadhan(scores), scores)
        torch.testing.assert_close(found, expected)

    def test_the_first_gradient_is_of_full_size(self):
        # An average that starts from 0 would multiply it by ten.
        scores = torch.randn(5, 5, requires_grad=True)
        (found,) = torch.autograd.grad(Mine(decay=0.9)(scores), scores)
        assert float(found.sum()) == pytest.approx(0.0, abs=1e-6)

    def test_scores_of_a_hundred_nats(self):
        objective = Mine()
        for level in (100.0, 110.0, 90.0):
            scores = (torch.randn(5, 5) + level).requires_grad_()
            (found,) = torch.autograd.grad(objective(scores), scores)
            assert bool(torch.isfinite(found).all())
        assert 90 < float(objective.log_average) < 115

    def test_a_batch_that_is_refused_moves_nothing(self):
        objective = Mine()
        objective(torch.zeros(3, 3))
        broken = torch.zeros(3, 3)
        broken[0, 1] = INF
        with refused("Mine", "row 0"):
            objective(broken)
        assert float(objective.log_average) == 0.0

    def test_where_values_are_not_looked_at_a_broken_batch_moves_nothing_either(self, monkeypatch):
        """As on an accelerator."""
        monkeypatch.setattr("contrastive.estimators.eager_on_cpu", lambda x: False)
        objective = Mine()
        for broken in (INF, math.nan):
            scores = torch.zeros(3, 3)
            scores[0, 1] = broken
            objective(scores)
            assert bool(torch.isnan(objective.log_average))  # no batch yet
        objective(torch.zeros(3, 3))
        objective(scores)
        assert float(objective.log_average) == 0.0

    def test_evaluation_moves_nothing_and_state_is_saved(self):
        objective = Mine()
        objective(torch.randn(4, 4))
        before = float(objective.log_average)
        objective.eval()(torch.randn(4, 4) + 5)
        assert float(objective.log_average) == before
        other = Mine()
        other.load_state_dict(objective.state_dict())
        assert float(other.log_average) == before
        assert "decay=0.9" in repr(objective)


class Batches:
    """Every batch of K pairs that a channel p(x, y) can draw, with its probability."""

    def __init__(self, joint, pairs):
        self.joint = joint = joint / joint.sum()
        symbols = list(itertools.product(range(joint.shape[0]), range(joint.shape[1])))
        drawn = torch.tensor(list(itertools.product(symbols, repeat=pairs)))
        self.x, self.y = drawn[..., 0], drawn[..., 1]
        self.probability = joint[self.x, self.y].prod(1)
        self.px, self.py = joint.sum(1), joint.sum(0)
        self.log_ratio = (joint / (self.px[:, None] * self.py)).log()
        self.information = float((joint * self.log_ratio).sum())
        self.entropy = -float((self.py * self.py.log()).sum())

    def expect(self, estimate):
        """The expectation of ``estimate(x, y)`` over all batches."""
        values = torch.stack([estimate(x, y) for x, y in zip(self.x, self.y, strict=True)])
        return (self.probability * values).sum()

    def of_scores(self, function, table):
        """The expectation of an estimator of a tabular critic."""
        return self.expect(lambda x, y: function(table[x][:, y]))


def channel(pairs, kind="noisy"):
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    return Batches(
        {"noisy": noise + 2 * eye, "clean": 0.05 * noise + eye, "independent": torch.ones_like(eye)}[kind], pairs
    )


CHANNELS = {kind: channel(2, kind) for kind in ("noisy", "clean", "independent")}
TRIPLES = channel(3)


def tables(count=2, size=3):
    """Critics that know nothing: random tables, small and large."""
    generator = torch.Generator().manual_seed(11)
    return [
        scale * torch.randn(size, size, generator=generator, dtype=torch.float64)
        for scale in (0.3, 1.0, 3.0)
        for _ in range(count)
    ]


def vectors():
    return [table[0] for table in tables(1)]


LOWER = {
    "infonce": infonce,
    "infonce, other direction": lambda s: infonce(s.T),
    "symmetric_infonce": symmetric_infonce,
    "nwj": nwj,
    "nwj_of_log_ratio": nwj_of_log_ratio,
    "tractable_nce": tractable_nce,
}


class TestClaimsByEnumeration:
    def test_every_batch_is_there(self):
        for batches in (*CHANNELS.values(), TRIPLES):
            assert float(batches.probability.sum()) == pytest.approx(1.0, abs=1e-12)

    @pytest.mark.parametrize("name", LOWER)
    @pytest.mark.parametrize("kind", CHANNELS)
    def test_lower_bounds_hold_for_critics_that_know_nothing(self, name, kind):
        batches = CHANNELS[kind]
        for table in (*tables(), batches.log_ratio.clamp_min(-30), batches.log_ratio.clamp_min(-30) + 1):
            assert float(batches.of_scores(LOWER[name], table)) <= batches.information + 1e-12

    @pytest.mark.parametrize("name", ["infonce", "nwj"])
    def test_and_for_critics_that_were_trained_to_break_them(self, name):
        batches = CHANNELS["noisy"]
        table = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([table], 0.4, maximize=True)
        for _ in range(15):
            optimizer.zero_grad()
            found = batches.of_scores(LOWER[name], table)
            assert float(found.detach()) <= batches.information + 1e-12
            found.backward()
            optimizer.step()
        assert float(found.detach()) > 0.4 * batches.information  # one that could not climb would prove nothing

    def test_nwj_is_unbiased(self):
        for batches in (*CHANNELS.values(), TRIPLES):
            independent = batches.px[:, None] * batches.py
            for table in tables(1):
                exact = float((batches.joint * table).sum() - (independent * (table - 1).exp()).sum())
                assert float(batches.of_scores(nwj, table)) == pytest.approx(exact, abs=1e-10)
            assert float(batches.of_scores(nwj, 1 + batches.log_ratio)) == pytest.approx(batches.information, abs=1e-12)

    @pytest.mark.parametrize("kind", CHANNELS)
    def test_with_a_learnt_part(self, kind):
        batches = CHANNELS[kind]
        for table, vector in zip(tables(1), vectors(), strict=True):
            for name, estimate in {
                "tuba": lambda x, y, t=table, v=vector: tuba(t[x][:, y], log_baseline=v[y]),
                "flo": lambda x, y, t=table: flo(t[x][:, y], log_ratio=t.T[x, y]),
                **{
                    f"interpolated {alpha}": lambda x, y, t=table, v=vector, a=alpha: interpolated(
                        t[x][:, y], alpha=a, log_baseline=v[y]
                    )
                    for alpha in (0.0, 0.01, 0.5, 1.0)
                },
            }.items():
                assert float(batches.expect(estimate)) <= batches.information + 1e-12, name

    def test_three_pairs(self):
        for function in (infonce, lambda s: interpolated(s, alpha=0.5, log_baseline=s.new_zeros(3))):
            assert float(TRIPLES.of_scores(function, tables(1)[1])) <= TRIPLES.information + 1e-12
        found = TRIPLES.of_scores(infonce, TRIPLES.log_ratio)
        assert float(CHANNELS["noisy"].of_scores(infonce, TRIPLES.log_ratio)) < float(found) < TRIPLES.information

    def test_where_they_are_tight(self):
        batches = CHANNELS["noisy"]
        ratio, conditional, log_y = batches.log_ratio, batches.log_ratio + batches.py.log(), batches.py.log()
        tight = (
            batches.of_scores(nwj_of_log_ratio, ratio),
            batches.expect(lambda x, y: tuba(conditional[x][:, y], log_baseline=log_y[y])),
            batches.expect(lambda x, y: flo(ratio[x][:, y], log_ratio=ratio[x, y])),
            batches.expect(lambda x, y: barber_agakov(conditional[x, y], entropy=batches.entropy)),
            batches.expect(lambda x, y: variational_upper(conditional[x, y], log_y[y])),
        )
        for found in tight:
            assert float(found) == pytest.approx(batches.information, abs=1e-12)

    def test_barber_agakov_and_its_entropy(self):
        batches = CHANNELS["noisy"]
        for table in tables(1):
            model = table.log_softmax(1)  # q(y|x)
            found = float(batches.expect(lambda x, y, m=model: barber_agakov(m[x, y], entropy=batches.entropy)))
            assert found <= batches.information + 1e-12
        # The entropy of x goes with q(x|y): a skewed x would turn the bound into none.
        skewed = Batches(torch.tensor([[0.05, 0.05], [0.45, 0.45]], dtype=torch.float64), 2)
        uniform = skewed.py.log()
        wrong = -float((skewed.px * skewed.px.log()).sum())
        exact = float(skewed.expect(lambda x, y: barber_agakov(uniform[y], entropy=wrong)))
        assert exact < -0.3
        assert float(skewed.expect(lambda x, y: barber_agakov(skewed.px.log()[x], entropy=skewed.entropy))) > 0.3

    @pytest.mark.parametrize("kind", CHANNELS)
    def test_upper_bounds_of_the_exact_conditional(self, kind):
        for batches in (CHANNELS[kind], *([TRIPLES] if kind == "noisy" else [])):
            conditional = batches.log_ratio + batches.py.log()
            lower = float(batches.of_scores(tractable_nce, conditional))
            upper = float(batches.of_scores(leave_one_out_upper, conditional))
            assert lower - 1e-12 <= batches.information <= upper + 1e-12
            independent = batches.px[:, None] * batches.py
            apart = float((independent * (independent / batches.joint).log()).sum())
            found = float(batches.of_scores(club, conditional))
            assert found == pytest.approx(batches.information + apart, abs=1e-12)
            for model in (table[0].log_softmax(0) for table in tables(1)):
                above = batches.expect(lambda x, y, c=conditional, m=model: variational_upper(c[x, y], m[y]))
                assert float(above) >= batches.information - 1e-12

    def test_a_learnt_conditional_bounds_from_neither_side(self):
        batches = CHANNELS["noisy"]
        found = [float(batches.of_scores(leave_one_out_upper, t.log_softmax(1))) for t in tables()]
        assert min(found) < batches.information < max(found)

    def test_when_club_of_a_learnt_conditional_is_above(self):
        batches, sides = CHANNELS["noisy"], set()
        independent = batches.px[:, None] * batches.py
        for table in tables():
            model = table.log_softmax(1)
            joint = batches.px[:, None] * model.exp()  # q(x, y)
            far = float((independent * (independent / joint).log()).sum())
            near = float((batches.joint * (batches.joint / joint).log()).sum())
            found = float(batches.of_scores(club, model))
            assert found == pytest.approx(batches.information + far - near, abs=1e-10)
            sides.add(found > batches.information)
        assert sides == {True, False}

    def test_donsker_varadhan_and_smile_are_no_bounds(self):
        batches = CHANNELS["noisy"]
        assert float(batches.of_scores(donsker_varadhan, 3 * batches.log_ratio)) > batches.information + 0.05
        assert float(batches.of_scores(donsker_varadhan, batches.log_ratio)) > batches.information
        assert float(batches.of_scores(lambda s: smile(s, clip=0.1), 9 * batches.log_ratio)) > batches.information + 1

    def test_the_larger_direction_is_none_either(self):
        batches = CHANNELS["independent"]
        table = tables()[-1]
        larger = batches.of_scores(lambda s: torch.maximum(infonce(s), infonce(s.T)), table)
        each = [float(batches.of_scores(f, table)) for f in (infonce, lambda s: infonce(s.T))]
        assert float(larger) > max(each)

    def test_jensen_shannon_is_largest_at_the_log_ratio(self):
        batches = CHANNELS["noisy"]
        table = batches.log_ratio.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(batches.of_scores(jensen_shannon, table), table)
        torch.testing.assert_close(gradient, torch.zeros(3, 3, dtype=torch.float64), rtol=0, atol=1e-12)
        best = float(batches.of_scores(jensen_shannon, batches.log_ratio))
        for other in tables(1):
            assert float(batches.of_scores(jensen_shannon, batches.log_ratio + 0.1 * other)) < best

    def test_caps(self):
        # Whatever the critic, and however it was trained: InfoNCE below log K, the interpolation below its own cap.
        sharp = 50 * torch.eye(5)
        assert float(infonce(sharp)) == pytest.approx(INFONCE.cap(5))
        for alpha in (0.01, 0.5, 1.0):
            cap = interpolated_at(alpha).cap(5)
            best = max(
                float(interpolated(k * torch.eye(5), alpha=alpha, log_baseline=torch.full((5,), b)))
                for k in (5.0, 50.0)
                for b in (-50.0, 0.0, 5.0)
            )
            assert best <= cap
            assert best > cap - 1.6


class Sampled:
    """Estimates of the exact critic on fresh batches of d = 20 correlated pairs."""

    def __init__(self, information, pairs=64, batches=200):
        torch.manual_seed(5)
        self.task = gaussian(float(information))
        self.batches = []
        for _ in range(batches):
            x, y = (z.double() for z in self.task.draw(pairs))
            log_y = -(y.square() + log(2 * math.pi)).sum(1) / 2
            self.batches.append((self.task.log_ratio(x, y), log_y))

    def mean(self, estimate):
        """The mean over batches, and its standard error."""
        values = torch.stack([estimate(ratio, log_y) for ratio, log_y in self.batches])
        return float(values.mean()), float(values.std() / len(values) ** 0.5), float(values.std())


@pytest.fixture(scope="module")
def two_nats():
    return Sampled(2)


@pytest.fixture(scope="module")
def six_nats():
    return Sampled(6)


class TestGaussians:
    """Closed forms, d = 20: rho^2 = 1 - exp(-I / 10); five standard errors of 200 batches of 64."""

    def test_unbiased_ones(self, two_nats):
        for name, estimate in {
            "nwj": lambda r, y: nwj(1 + r),
            "nwj_of_log_ratio": lambda r, y: nwj_of_log_ratio(r),
            "tuba": lambda r, y: tuba(r + y, log_baseline=y),
            "flo": lambda r, y: flo(r, log_ratio=r.diagonal()),
            "variational": lambda r, y: variational_upper((r + y).diagonal(), y),
            "barber_agakov": lambda r, y: barber_agakov((r + y).diagonal(), entropy=gaussian(2.0).entropy),
        }.items():
            found, error, _ = two_nats.mean(estimate)
            assert abs(found - 2.0) < 5 * error < 0.25, name

    def test_club_and_the_negatives_mean(self, two_nats):
        rho = 1 - exp(-0.2)
        found, error, _ = two_nats.mean(lambda r, y: club(r + y))
        assert abs(found - 20 * rho / (1 - rho)) < 5 * error < 0.2  # 4.428
        assert 20 * rho / (1 - rho) == pytest.approx(4.428, abs=1e-3)

    def test_the_second_moment_of_the_ratio(self):
        torch.manual_seed(0)
        task = gaussian(0.5)
        x, y = task.draw(2_000_00)
        r = task.log_ratio(x[:400], y[:400]).double()
        off = r[~torch.eye(400, dtype=torch.bool)]
        assert float((2 * off).exp().mean()) == pytest.approx(exp(2 * 0.5), rel=0.15)

    def test_measured_before(self, two_nats, six_nats):
        """Values of 400 batches with another generator, to their own error and ours."""
        for sampled, name, expected, estimate in (
            (two_nats, "InfoNCE", 1.821, lambda r, y: infonce(r)),
            (two_nats, "DV", 2.02, lambda r, y: donsker_varadhan(r)),
            (two_nats, "SMILE 1", 2.38, lambda r, y: smile(r, clip=1.0)),
            (two_nats, "SMILE 5", 2.04, lambda r, y: smile(r, clip=5.0)),
            (two_nats, "alpha .01", 2.01, lambda r, y: interpolated(r + y, alpha=0.01, log_baseline=y)),
            (two_nats, "alpha .5", 1.93, lambda r, y: interpolated(r + y, alpha=0.5, log_baseline=y)),
            (two_nats, "L1O", 2.17, lambda r, y: leave_one_out_upper(r + y)),
            (six_nats, "InfoNCE", 3.74, lambda r, y: infonce(r)),
            (six_nats, "DV", 6.18, lambda r, y: donsker_varadhan(r)),
            (six_nats, "SMILE 5", 6.69, lambda r, y: smile(r, clip=5.0)),
            (six_nats, "alpha .5", 4.57, lambda r, y: interpolated(r + y, alpha=0.5, log_baseline=y)),
            (six_nats, "L1O", 7.84, lambda r, y: leave_one_out_upper(r + y)),
            (six_nats, "CLUB", 16.4, lambda r, y: club(r + y)),
        ):
            found, error, _ = sampled.mean(estimate)
            assert abs(found - expected) < 5 * error * 1.3 + 0.01, name

    def test_the_two_conditionals_enclose(self, six_nats):
        lower, _, _ = six_nats.mean(lambda r, y: tractable_nce(r + y))
        upper, _, _ = six_nats.mean(lambda r, y: leave_one_out_upper(r + y))
        assert lower < log(64) < 6.0 < upper

    def test_infonce_has_less_spread_than_nwj(self, six_nats):
        assert six_nats.mean(lambda r, y: infonce(r))[2] < 0.5 * six_nats.mean(lambda r, y: nwj(1 + r))[2]


class TestWhatOthersGotWrong:
    def test_eq_3_is_not_largest_at_the_conditional(self, two_nats):
        """Tschannen et al., below eq. 4: it normalises over y, so p(y|x) alone reads less than nothing."""
        wrong, error, _ = two_nats.mean(lambda r, y: infonce(r + y))
        right, right_error, _ = two_nats.mean(lambda r, y: infonce(r))
        assert abs(wrong + 0.77) < 5 * error
        assert abs(right - 1.82) < 5 * right_error
        # Appendix D's eq. 8 normalises over x, where the conditional will do.
        assert two_nats.mean(lambda r, y: infonce((r + y).T))[0] == pytest.approx(
            two_nats.mean(lambda r, y: infonce(r.T))[0], abs=1e-9
        )

    def test_jensen_shannon_evaluated_by_the_other_nwj_loses_1_over_e(self, two_nats):
        wrong, error, _ = two_nats.mean(lambda r, y: nwj(r))
        assert abs(wrong - (2 - 1 / math.e)) < 5 * error
        batches = CHANNELS["noisy"]
        lost = batches.information - float(batches.of_scores(nwj, batches.log_ratio))
        assert lost == pytest.approx(1 / math.e, abs=1e-12)

    def test_leaving_one_out_over_the_wrong_axis_bounds_nothing(self):
        """torch-mist sums over y for a fixed x: of a skewed y that x says nothing about it reads less than nothing."""
        y = torch.tensor([0.9, 0.1], dtype=torch.float64)
        batches = Batches(y.expand(2, 2), 3)
        conditional = y.log().expand(2, 2)
        right = float(batches.of_scores(leave_one_out_upper, conditional))
        wrong = float(batches.of_scores(lambda p: leave_one_out_upper(p.T), conditional))
        assert batches.information == pytest.approx(0.0, abs=1e-12)
        assert right == pytest.approx(0.0, abs=1e-12)
        assert wrong < -0.05
        # Of two pairs it is CLUB.
        p = torch.randn(2, 2, dtype=torch.float64)
        assert float(leave_one_out_upper(p.T)) == pytest.approx(float(club(p)), abs=1e-12)

    def test_the_blog_table_tractable_nce_is_two_estimators(self):
        """With the own pair in the denominator it is a lower bound, without it an upper one."""
        batches = CHANNELS["clean"]
        conditional = batches.log_ratio + batches.py.log()
        within = float(batches.of_scores(tractable_nce, conditional))
        without = float(batches.of_scores(leave_one_out_upper, conditional))
        assert within < log(2) < batches.information < without

    def test_the_blog_table_denominator(self):
        """With f(x_i, y_i) in every term of the denominator the estimate would be log K less log K, for any critic."""
        scores = torch.randn(5, 5, dtype=torch.float64)
        as_printed = mean(float(scores[i, i]) - log(mean(exp(float(scores[i, i])) for _ in range(5))) for i in range(5))
        assert as_printed == pytest.approx(0.0, abs=1e-12)
        assert abs(float(infonce(scores))) > 0.1

    def test_the_mean_of_flos_log_ratio_is_no_bound(self):
        batches = CHANNELS["independent"]
        flattering = torch.full((3, 3), 4.0, dtype=torch.float64)
        assert float(batches.expect(lambda x, y: flattering[x, y].mean())) == pytest.approx(4.0)
        assert float(batches.expect(lambda x, y: flo(flattering[x][:, y], log_ratio=flattering[x, y]))) <= 1e-12

    def test_clipping_leaves_the_positives_alone(self):
        assert float(smile(torch.full((3, 3), -9.0).fill_diagonal_(9.0), clip=1.0)) == pytest.approx(10.0)

    def test_a_diagonal_that_is_left_out(self):
        """NWJ with the positives among its negatives (CLUB's repository) is another number."""
        scores = torch.eye(4, dtype=torch.float64)
        assert float(nwj(scores)) == pytest.approx(1 - exp(-1), abs=1e-12)


class TestAppendixE:
    """Z once a batch, the same in every pair: negatives are not independent, and both bounds pass the information."""

    INFORMATION = -log(0.96) / 2

    def batches(self, dependent, pairs=128, count=1000):
        torch.manual_seed(1)

        def normal(covariance, *shape):
            root = torch.linalg.cholesky(torch.tensor(covariance, dtype=torch.float64))
            return torch.randn(*shape, 2, dtype=torch.float64) @ root.T

        if not dependent:
            return normal([[2.0, 0.4], [0.4, 2.0]], count, pairs)
        return normal([[1.0, -0.5], [-0.5, 1.0]], count, 1) + normal([[1.0, 0.9], [0.9, 1.0]], count, pairs)

    def mean(self, drawn, function, critic):
        values = torch.stack([function(critic(xy[:, :1], xy[:, 1:])) for xy in drawn])
        return float(values.mean()), float(values.std() / len(values) ** 0.5)

    def test_the_information(self):
        task = correlated(torch.tensor([[2.0, 0.4], [0.4, 2.0]], dtype=torch.float64), 1)
        assert task.information == pytest.approx(self.INFORMATION, abs=1e-12)
        assert pytest.approx(0.0204110, abs=5e-8) == self.INFORMATION

    def test_nwj_tends_to_a_divergence_of_0_10814(self):
        joint, apart = (torch.tensor(s, dtype=torch.float64) for s in ([[2, 0.4], [0.4, 2]], [[2, -0.5], [-0.5, 2]]))
        inverse = torch.linalg.inv(apart)
        limit = float((inverse @ joint).trace() - 2 + torch.logdet(apart) - torch.logdet(joint)) / 2
        assert limit == pytest.approx(0.10814, abs=5e-6)
        q = inverse - torch.linalg.inv(joint)

        def critic(x, y):  # 1 + the log-ratio of the joint law and what the negatives follow
            shape = float(torch.logdet(apart) - torch.logdet(joint)) / 2
            return 1 + shape + (q[0, 0] * x.square() + q[1, 1] * y.square().T) / 2 + q[0, 1] * x @ y.T

        found, error = self.mean(self.batches(dependent=True), nwj, critic)
        assert abs(found - limit) < 5 * error < 0.05
        assert found > self.INFORMATION + 5 * error

    def test_infonce_tends_to_0_2025_with_a_bilinear_critic(self):
        # 0.9 w - w^2 at w: largest at 0.45.
        found, error = self.mean(self.batches(dependent=True), infonce, lambda x, y: 0.45 * x @ y.T)
        assert 0.19 - 5 * error < found < 0.2025 + 5 * error
        assert found > self.INFORMATION + 5 * error

    def test_independent_pairs_stay_below(self):
        task = correlated(torch.tensor([[2.0, 0.4], [0.4, 2.0]]), 1)
        drawn = self.batches(dependent=False)
        for function, shift in ((infonce, 0.0), (nwj, 1.0)):
            found, error = self.mean(drawn, function, lambda x, y, c=shift: c + task.log_ratio(x, y))
            assert abs(found - self.INFORMATION) < 5 * error < 0.005


class TestInput:
    @pytest.mark.parametrize("name", [name for name in OF_CELLS if "," not in name and name != "infonce"])
    def test_of_cells(self, name):
        function = OF_CELLS[name][0]
        for value in (math.nan, INF):
            broken = torch.zeros(3, 3)
            broken[1, 2] = value
            with refused(name, "row 1", "NaN or +inf"):
                function(broken)
        with refused(name, "hold no negative"):
            function(torch.zeros(1, 1))
        with refused(name, "(2, 2)", "hold no negative"):
            function(torch.full((2, 2), -INF))
        with refused(name, "absent"):
            function(torch.zeros(3, 3).fill_diagonal_(-INF))
        with refused(name, "[anchors, candidates]"):
            function(torch.zeros(3))

    def test_of_infonce(self):
        with refused("infonce", "hold no candidate"):
            infonce(torch.full((2, 2), -INF))
        with refused("tractable_nce", "pair 1", "-inf"):
            tractable_nce(torch.tensor([[0.0, 0.0], [0.0, -INF]]))
        with refused("tractable_nce", "(0, 0)"):
            tractable_nce(torch.zeros(0, 0))
        for function in (symmetric_infonce, tractable_nce):
            with refused(function.__name__, "(2, 3)"):
                function(torch.zeros(2, 3))

    @pytest.mark.parametrize("function", [leave_one_out_upper, club])
    def test_of_square_ones(self, function):
        name = function.__name__
        with refused(name, "(2, 3)"):
            function(torch.zeros(2, 3))
        with refused(name, "hold no negative"):
            function(torch.zeros(1, 1))
        for value in (math.nan, INF, -INF):
            broken = torch.zeros(3, 3)
            broken[2, 0] = value
            with refused(name, "row 2", "not finite"):
                function(broken)

    def test_of_options(self):
        scores, three = torch.zeros(3, 3), torch.zeros(3)
        for call, words in (
            (lambda: smile(scores, clip=0.0), ("smile", "clip is 0.0")),
            (lambda: Mine(decay=1.0), ("Mine", "decay is 1.0")),
            (lambda: interpolated(scores, alpha=1.5, log_baseline=three), ("interpolated", "alpha is 1.5")),
            (lambda: interpolated(scores, alpha=0.5, log_baseline=three[:1]), ("interpolated", "log_baseline", "(1,)")),
            (lambda: tuba(scores, log_baseline=three[:1]), ("tuba", "log_baseline", "(1,)", "each candidate")),
            (lambda: flo(scores, log_ratio=three[:1]), ("flo", "log_ratio", "(1,)", "each anchor")),
            (lambda: barber_agakov(three, entropy=INF), ("barber_agakov", "entropy is inf")),
            (lambda: barber_agakov(scores, entropy=1.0), ("barber_agakov", "(3, 3)")),
            (lambda: barber_agakov(three[:0], entropy=1.0), ("barber_agakov", "at least one")),
            (lambda: interpolated(scores, alpha=0.5, log_baseline=three * math.nan), ("log_baseline", "not finite")),
            (lambda: tuba(scores, log_baseline=three - INF), ("tuba", "log_baseline", "not finite")),
            (lambda: flo(scores, log_ratio=three + INF), ("flo", "log_ratio", "not finite")),
            (lambda: barber_agakov(three * math.nan, entropy=1.0), ("barber_agakov", "log_conditional", "NaN")),
            (lambda: variational_upper(three, three + INF), ("variational_upper", "log_marginal", "+inf")),
            (lambda: nwj(scores, torch.zeros(3, 3, dtype=torch.bool)), ("nwj", "no row has a positive")),
            (lambda: CLUB.bound(scores), ("CLUB", "learnt=False: an upper bound")),
            (lambda: variational_upper(three, three[:2]), ("variational_upper", "(2,)", "(3,)")),
        ):
            with refused(*words):
                call()


EVERY = (*ESTIMATORS, barber_agakov_with(1.0), VARIATIONAL_UPPER, KSG)


class TestCatalogue:
    def test_names_are_where_they_are_looked_for(self):
        for name in estimators.__all__:
            assert getattr(bounds, name) is getattr(estimators, name)
            assert name in bounds.__all__
        assert len({estimator.name for estimator in EVERY}) == len(EVERY)
        # Every function has an entry that reports it, but those that are only maximised.
        reported = {word for e in EVERY for word in (e.value.__name__, *e.value.__code__.co_names)}
        assert set(estimators.__all__) - reported == {"Mine", "jensen_shannon"}

    def test_the_old_bounds_are_the_new_estimates(self):
        scores, targets = scores_with_gaps(6, 9)
        assert nwj_bound(scores, targets).value == pytest.approx(float(nwj(scores, targets)), abs=1e-14)
        found = infonce_bound(scores, targets)
        assert found.value == pytest.approx(float(infonce(scores, targets)), abs=1e-14)
        square = torch.randn(6, 6, dtype=torch.float64)
        claimed, expected = INFONCE.bound(square), infonce_bound(square)
        assert claimed.value == pytest.approx(expected.value, abs=1e-14)
        assert claimed.cap == claimed.constant == pytest.approx(expected.cap, abs=1e-15)
        assert claimed.status == expected.status
        assert float(infonce(square)) == pytest.approx(log(6) - float(kpair_loss(square).mean()), abs=1e-14)

    @pytest.mark.parametrize("name", estimators.__all__)
    def test_docstrings_say_direction_cap_variance_and_reference(self, name):
        told = getattr(estimators, name).__doc__
        for fact in (
            r"\.\. math::",
            r"\bbounds?\b",
            r"\bcap\b|at most|never above",
            "variance",
            r"\(.+, \d{4}\)\n",
            "https://",
        ):
            assert re.search(fact, told), fact

    @pytest.mark.parametrize("estimator", EVERY, ids=lambda e: e.name)
    def test_every_entry_claims_what_it_may(self, estimator):
        found = estimator.claim(1.0, 8, learnt=True)
        assert (found.status == "bound") == (found.direction != "neither")
        assert found.direction == ("neither" if estimator.exact else estimator.direction)
        assert estimator.name in found.reason
        assert found.cap > 0
        assert estimator.reference[1].startswith("https://")
        for fact in (estimator.formula, estimator.optimum, estimator.variance, estimator.why):
            assert fact

    def test_claims(self):
        p = torch.randn(6, 6)
        for estimator, direction in ((LEAVE_ONE_OUT_UPPER, "upper"), (CLUB, "upper"), (TRACTABLE_NCE, "lower")):
            assert estimator.bound(p, learnt=False).direction == direction
        found = VARIATIONAL_UPPER.bound(p[0], p[1], learnt=False)
        assert (found.direction, found.status, found.cap) == ("upper", "bound", INF)
        assert found.value == pytest.approx(float((p[0] - p[1]).double().mean()), abs=1e-6)
        assert VARIATIONAL_UPPER.bound(p[0], p[1], learnt=True).status == "not a bound"
        x, y = torch.randn(40, 2), torch.randn(40)
        found = KSG.bound(x, y)
        assert (found.direction, found.status) == ("neither", "not a bound")
        assert found.value == ksg(x.double(), y.double())
        for estimator in (LEAVE_ONE_OUT_UPPER, CLUB):
            found = estimator.bound(p, learnt=True)
            assert (found.direction, found.status) == ("neither", "not a bound")
            assert "learnt" in found.reason
        for estimator in (DONSKER_VARADHAN, mine_with(0.5), SMILE):
            assert estimator.bound(p).status == "not a bound"
        assert NWJ.bound(p).cap == INF
        assert INFONCE.bound(p).cap == TRACTABLE_NCE.bound(p).cap == pytest.approx(log(6))
        assert interpolated_at(0.0).cap(6) == INF
        found = INFONCE.bound(100 * torch.eye(4, 9))  # K is of the candidates
        assert found.value == pytest.approx(log(9))
        assert found.cap == found.constant == pytest.approx(log(9))
        found = INTERPOLATED.bound(p, torch.zeros(6))
        assert found.value == pytest.approx(
            float(interpolated(p.double(), alpha=0.01, log_baseline=torch.zeros(6))), abs=1e-12
        )
        assert smile_clipped(0.5).bound(p).value == pytest.approx(float(smile(p.double(), clip=0.5)), abs=1e-12)
        assert barber_agakov_with(3.0).bound(p[0]).value == pytest.approx(3.0 + float(p[0].double().mean()), abs=1e-12)
        assert infonce_bound(p, independent=False).direction == "neither"

    @pytest.mark.parametrize("estimator", EVERY, ids=lambda e: e.name)
    def test_dependent_negatives_take_the_claim_away(self, estimator):
        found = estimator.claim(1.0, 8, learnt=False, independent=False)
        if estimator.negatives:
            assert (found.direction, found.status, found.value) == ("neither", "not a bound", 1.0)
            assert "not independent" in found.reason or estimator.direction == "neither"
        else:  # a mean over pairs alone has no negatives
            assert found == estimator.claim(1.0, 8, learnt=False)
        assert estimator.negatives == (estimator.name not in ("Barber-Agakov", "variational upper bound"))

    def test_an_estimated_entropy_takes_the_claim_away(self):
        log_conditional = torch.tensor([-0.5, -1.5])
        known, estimated = (barber_agakov_with(3.0, known=known).bound(log_conditional) for known in (True, False))
        assert (known.direction, known.status) == ("lower", "bound")
        assert (estimated.direction, estimated.status) == ("neither", "not a bound")
        assert known.value == estimated.value == 2.0
        assert "estimate" in estimated.reason


class TestThePage:
    """docs/estimators.md: a row for every estimator, with the catalogue's claim, and links to tests that exist."""

    TEXT = PAGE.read_text()

    def test_every_estimator_has_its_row(self):
        rows = {
            row.split(" | ")[0].removeprefix("| "): row.split(" | ")
            for row in self.TEXT.splitlines()
            if row[:2] == "| "
        }
        for estimator in EVERY:
            cells = rows[estimator.name]
            assert cells[3].startswith(estimator.direction)
            assert cells[4] == "none" if estimator.cap(8) == INF else "log" in cells[4]
            assert estimator.reference[0] in cells[7]
            assert estimator.reference[1] in cells[7]
            assert ("neither for a learnt one" in cells[3] or "learnt, only" in cells[3]) == estimator.exact
        named = set(re.findall(r"`(\w+)`", " ".join(row[1] for row in rows.values())))
        assert set(estimators.__all__) <= named

    def test_every_link_names_a_test_that_exists(self):
        links = re.findall(r"\[(test_\w+\.py)((?:::\w+)+)\]\(\.\./tests/(test_\w+\.py)\)", self.TEXT)
        assert len(links) == self.TEXT.count("](../tests/") == len(re.findall(r"test_\w+\.py::", self.TEXT))
        for shown, name, file in links:
            assert shown == file
            assert name.removeprefix("::") in collected(file), name


class TestTheBenchmark:
    def test_the_oracle_reads_all_estimators(self):
        found = oracle.measure(gaussian(2.0), 16, 3)["estimates"]
        assert all(math.isfinite(cell["mean"]) and cell["standard_error"] > 0 for cell in found.values())
        right = [found[name]["mean"] for name in ("NWJ", "TUBA", "FLO", "Jensen-Shannon, NWJ's value")]
        assert right == pytest.approx([right[0]] * 4, abs=1e-3)
        assert found["InfoNCE"]["mean"] < log(16)

    def test_tables_are_made_of_the_lines(self):
        assert oracle.table(64).count("\n") == len(oracle.measure(gaussian(2.0), 4, 2)["estimates"]) + 1
        table = gaussians.table("gaussian")
        for name in gaussians.arms():
            assert f"| {name} | " in table

    @pytest.mark.parametrize("of", ["oracle", "gaussians", "mist"])
    def test_the_page_prints_the_tables_of_the_lines(self, of):
        printed = {
            "oracle": lambda: f"{oracle.table(64)}\n\n{oracle.table(128)}",
            "gaussians": lambda: "\n\n".join(map(gaussians.table, ("gaussian", "cubic"))),
            "mist": mist.table,
        }[of]()
        page = Path(oracle.__file__).with_name("README.md").read_text()
        for table in printed.split("\n\n"):
            assert table in page, f"python -m benchmarks.estimators.{of} --table"
