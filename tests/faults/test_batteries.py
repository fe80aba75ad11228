"""The public batteries find the defects that are known of others, and every check of them can fail."""
# ruff: noqa: E501  # in tables: a defect a line

import logging
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from subjects import as_users_call_it, reports

from contrastive.scores import MiningFacts
from contrastive.testing import (
    assert_criterion,
    assert_evaluator,
    assert_miner,
    assert_objective,
    check_criterion,
    check_evaluator,
    check_miner,
    check_objective,
)


def failures(check, subject):
    with as_users_call_it():
        return check(subject).failures


# --- losses of others -----------------------------------------------------------------------------------------------


class OfPairs:
    """A loss of embeddings and labels as one of pairs."""

    def __init__(self, loss):
        self.loss = loss

    def __call__(self, x, y):
        return self.loss(torch.cat([x, y]), torch.arange(len(x)).repeat(2))


def test_pytorch_metric_learning():
    """Its normalisation of zero in half precision is NaN, and NaN goes through."""
    found = failures(check_criterion, OfPairs(losses.NTXentLoss()))
    assert found["vectors_of_zero_are_finite"] == "vectors of zero in torch.float16: the value is nan"
    assert found["nan_and_infinity_are_refused"] == "nan in x is accepted, expected ValueError"
    assert "half_precision_is_near" in found
    found = failures(check_criterion, OfPairs(losses.TripletMarginLoss()))
    assert "a gradient is not finite" in found["vectors_of_zero_are_finite"]


def test_lightly_and_info_nce():
    from lightly.loss import NTXentLoss

    found = failures(check_criterion, NTXentLoss())
    assert found["vectors_of_zero_are_finite"] == "vectors of zero in torch.float16: the value is nan"
    assert "small_batches_are_zero" in found

    def of_an_empty_batch(x, y):  # the mean of nothing
        scores = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / 0.1
        return F.cross_entropy(scores, torch.arange(len(x)))

    assert failures(check_criterion, of_an_empty_batch)["small_batches_are_zero"] == "a batch of 0: the value is nan"


def test_the_exponential_before_the_logarithm():
    def loss(scores):
        exponentials = scores.exp()
        return -(exponentials.diagonal() / exponentials.sum(1)).log()

    found = failures(check_objective, loss)
    assert {"large_scores_are_exact", "low_temperatures_are_exact", "an_absent_row_is_defined"} <= found.keys()


def test_cross_entropy_alone():
    def loss(scores, targets=None, *, log_weights=None):
        targets = torch.arange(len(scores)) if targets is None else targets
        return F.cross_entropy(scores if log_weights is None else scores + log_weights, targets, reduction="none")

    found = failures(check_objective, loss)
    assert "not finite" in found["an_absent_row_is_defined"]  # NaN, where nothing is left
    assert found["other_log_weights_are_refused"] == "log_weights of shape (8,) is accepted, expected ValueError"
    assert "one_value_an_anchor_or_a_scalar" in found  # half precision stays half

    def masked_by_the_smallest_number(scores, targets=None):
        return loss(scores.clamp_min(torch.finfo(scores.dtype).min), targets)

    found = failures(check_objective, masked_by_the_smallest_number)
    assert "expected 0" in found["an_absent_row_is_defined"]  # log n: finite and wrong


# --- evaluators of others -------------------------------------------------------------------------------------------


def test_pytorch_metric_learnings_evaluation():
    """Labels meet in float32, and ties are decided by where a row stands."""
    logging.getLogger().setLevel(logging.ERROR)  # it logs what it does
    calculator = AccuracyCalculator(include=("precision_at_1",), k=1, device=torch.device("cpu"))
    found = failures(check_evaluator, lambda x, y, k: calculator.get_accuracy(x, y)["precision_at_1"])
    assert {"large_labels_do_not_merge", "the_order_of_rows_does_not_matter"} <= found.keys()
    assert found["k_beyond_the_gallery_is_refused"] == "k = 0 of 40 rows is accepted, expected ValueError"


def nearest(x, k, *, drop_first=False, exclude_self=True):
    distance = torch.cdist(x.double(), x.double())
    if drop_first:
        return distance.argsort(1, stable=True)[:, 1 : k + 1]
    return distance.fill_diagonal_(math.inf if exclude_self else 0.0).argsort(1, stable=True)[:, :k]


def recall(labels, neighbours):
    return float((labels[neighbours] == labels[:, None]).any(1).double().mean())


@pytest.mark.parametrize(
    ("evaluate", "found"),
    [
        (lambda x, y, k: recall(y, nearest(x, k, drop_first=True)), "duplicates_do_not_find_themselves"),
        (lambda x, y, k: recall(y, nearest(x, k, exclude_self=False)), "is_that_of_the_loop"),
        (lambda x, y, k: recall(y, nearest(x, k)), "collapsed_embeddings_read_chance"),
        (lambda x, y, k: recall(y, nearest(x, k)), "a_class_of_one_is_left_out"),
        (lambda x, y, k: recall(y.float(), nearest(x, k)), "large_labels_do_not_merge"),
        (lambda x, y, k: recall(y, nearest(F.normalize(x.half()), k)) + 0 * x.zero_().sum(), "inputs_are_left_alone"),
        (lambda x, y, k: recall(y, nearest(x, 1)) + 0.1 * (k == 2), "more_neighbours_find_no_less"),
        (lambda x, y, k: float("nan") if (x == 0).all(1).any() else 1.0, "vectors_of_zero_are_defined"),
        (lambda x, y, k: 0.5, "perfect_embeddings_read_one"),
        (lambda x, y, k: 0.5, "a_single_class_reads_one"),
        (
            lambda x, y, k: recall(y, nearest(x.half(), k)) if x.dtype == torch.float32 else 0.0,
            "half_precision_is_near",
        ),
        (lambda x, y, k: recall(y, nearest(x.as_strided(x.shape, (x.shape[1], 1)), k)), "views_are_read_as_they_are"),
        (lambda x, y, k: recall(y, nearest(x.nan_to_num(), k)), "nan_and_infinity_are_refused"),
    ],
)
def test_every_check_of_evaluators_can_fail(evaluate, found):
    assert found in failures(check_evaluator, evaluate)


# --- miners with a defect -------------------------------------------------------------------------------------------


class Broken:
    """A miner of nothing but ones, and what goes wrong with it."""

    def __init__(self, wrong, **facts):
        self.wrong, self.facts = wrong, MiningFacts(**facts)

    def __call__(self, scores, targets, *, anchors=None):
        weights = torch.zeros_like(scores, dtype=torch.promote_types(scores.dtype, torch.float32))
        return self.wrong(scores, targets, weights)


def _at_random(scores, targets, weights):
    _at_random.calls += 1
    return weights - 1e-3 * _at_random.calls * (scores < 0).scatter(1, targets[:, None], False)


_at_random.calls = 0


@pytest.mark.parametrize(
    ("miner", "found"),
    [
        (Broken(lambda s, t, w: w[:, :-1]), "weights_have_the_scores_shape"),
        (Broken(lambda s, t, w: w / 0.0), "weights_are_neither_nan_nor_infinite"),
        (Broken(lambda s, t, w: w + 1.0), "the_target_is_unweighted"),
        (Broken(lambda s, t, w: w.masked_fill(s.isnan(), -math.inf)), "other_shapes_are_refused"),
        (Broken(lambda s, t, w: w - s.exp().log().amax().isfinite().logical_not() / 0.0), "losses_stay_finite_in_every_corner"),
        (Broken(lambda s, t, w: w[: len(s) or None] if s.numel() else 1 / 0), "empty_and_lonely_rows_are_defined"),
        (Broken(lambda s, t, w: (w + s.masked_fill(s == -math.inf, 0).sum().detach() * (1 - F.one_hot(t, s.shape[1])))), "rows_do_not_see_each_other"),
        (Broken(lambda s, t, w: w + torch.arange(s.shape[1]) * (1 - F.one_hot(t, s.shape[1]))), "the_order_of_candidates_does_not_matter"),
        (Broken(lambda s, t, w: w - s.shape[1] * (1 - F.one_hot(t, s.shape[1]))), "absent_candidates_change_nothing"),
        (Broken(lambda s, t, w: (s.clamp_(min=0), w)[1]), "inputs_are_left_alone"),
        (Broken(lambda s, t, w: w), "survives_pickle_and_deepcopy"),  # a closure
        (Broken(_at_random), "the_same_seed_gives_the_same_weights"),
        (Broken(lambda s, t, w: (s @ s.T @ s * 0.01).to(w.dtype) * (1 - F.one_hot(t, s.shape[1]))), "autocast_changes_nothing"),
        (Broken(lambda s, t, w: (w - 1.0).scatter(1, t[:, None], 0.0), mass="all"), "the_mass_it_promises_is_there"),
        (Broken(lambda s, t, w: w.masked_fill(s < s.amax(1, keepdim=True), -9.0).scatter(1, t[:, None], 0.0), mass=2), "the_mass_it_promises_is_there"),
        (Broken(lambda s, t, w: (w - s.detach().clamp(-50, 50)).scatter(1, t[:, None], 0.0), monotone=True), "monotone_is_monotone"),
        (Broken(lambda s, t, w: w + s.detach().clone().requires_grad_().tanh() * (1 - F.one_hot(t, s.shape[1]))), "gradients_are_those_of_the_weights"),
        (Broken(lambda s, t, w: w + torch.as_strided(s, s.shape, (s.shape[1], 1)).clamp(-50, 50).to(w) * (1 - F.one_hot(t, s.shape[1]))), "views_are_read_as_they_are"),
    ],
)  # fmt: skip
def test_every_check_of_miners_can_fail(miner, found):
    assert found in failures(check_miner, miner)


def test_a_mined_score_that_is_broken_may_not_be_hidden(monkeypatch):
    """The loss behind a miner finds it, unless that is broken as well."""
    monkeypatch.setattr("contrastive.testing.miners.kpair_loss", lambda s, t, *, log_weights: (s + log_weights).sum(1))
    found = failures(check_miner, Broken(lambda s, t, w: w))
    assert "a_broken_score_is_not_hidden" in found


# --- objectives and criteria with a defect --------------------------------------------------------------------------


def kpair(scores, targets=None, *, log_weights=None):
    from contrastive import kpair_loss

    return kpair_loss(scores, targets, log_weights=log_weights)


@pytest.mark.parametrize(
    ("objective", "found"),
    [
        (lambda s, targets=None: kpair(s, targets if targets is None else targets.long().clamp(0, 7).expand(8)), "other_targets_are_refused"),
        (lambda s: kpair(s)[:3], "one_value_an_anchor_or_a_scalar"),
        (lambda s: kpair(s).mean(), "small_batches_are_defined_or_refused"),
        (lambda s: kpair(s.clamp_(max=1.0)), "inputs_are_left_alone"),
        (lambda s: kpair(s.as_strided(s.shape, (s.shape[1], 1))), "views_are_read_as_they_are"),
        (lambda s: kpair(s), "survives_pickle_and_deepcopy"),
        (lambda s: kpair(s) * torch.tensor(id(object()) % 97 + _tick()), "the_same_seed_gives_the_same_value"),
        (lambda s: kpair(s) + s.detach().diagonal().square(), "gradients_are_those_of_the_value"),
        (lambda s: kpair(s.float()).to(s.dtype), "one_value_an_anchor_or_a_scalar"),
        (lambda s: kpair(s + (s @ s.T) * 1e-3), "autocast_changes_nothing"),
        (lambda s: kpair(s / s.std()), "equal_scores_are_finite"),
        (lambda s: kpair(s) * torch.arange(len(s)), "the_order_of_anchors_does_not_matter"),
        (lambda s, targets=None: kpair(s, targets) * s.shape[1], "absent_candidates_change_nothing"),
        (lambda s, targets=None, *, log_weights=None: kpair(s, targets, log_weights=None), "a_dropped_negative_is_an_absent_one"),
        (lambda s: s.flatten()[: len(s)] * 1.0, "other_shapes_are_refused"),
        (lambda s: kpair(s.float()), "other_dtypes_are_refused"),
    ],
)  # fmt: skip
def test_every_check_of_objectives_can_fail(objective, found):
    assert found in failures(check_objective, objective)


def _tick():
    _tick.calls += 1
    return _tick.calls


_tick.calls = 0


def pairs(x, y):
    from contrastive import Cosine, KPairLoss

    return KPairLoss(Cosine())(x, y)


@pytest.mark.parametrize(
    ("criterion", "found"),
    [
        (lambda x, y: pairs(x.nan_to_num(), y.nan_to_num()), "nan_and_infinity_are_refused"),
        (lambda x, y: pairs(x[: len(y)], y), "other_shapes_are_refused"),
        (lambda x, y: pairs(x if x.is_floating_point() else x.real.float(), y if y.is_floating_point() else y.real.float()), "other_dtypes_are_refused"),
        (lambda x, y: pairs(x.clamp_(max=1.0), y), "inputs_are_left_alone"),
        (lambda x, y: pairs(x.as_strided(x.shape, (x.shape[1], 1)), y), "views_are_read_as_they_are"),
        (lambda x, y: pairs(x, y), "survives_pickle_and_deepcopy"),
        (lambda x, y: pairs(x, y) * _tick(), "the_same_seed_gives_the_same_value"),
        (lambda x, y: pairs(x, y) + x.detach().sum(), "gradients_are_those_of_the_value"),
        (lambda x, y: pairs(x, y) + (100.0 if x.dtype == torch.float16 else 0.0), "half_precision_is_near"),
        (lambda x, y: pairs(x, y) + (1e3 * (x @ y.T)).sin().sum(), "autocast_keeps_the_digits_of_the_sum"),
        (lambda x, y: pairs(x / x.norm(dim=1, keepdim=True), y), "vectors_of_zero_are_finite"),
        (lambda x, y: pairs((x - x.mean(0)) / x.std(0), y), "collapsed_embeddings_are_finite"),
        (lambda x, y: pairs(x, y) + (1 / torch.cdist(x, x).fill_diagonal_(1.0)).sum(), "duplicates_are_finite"),
        (lambda x, y: pairs(x, y) + x[0].sum(), "the_order_of_pairs_does_not_matter"),
    ],
)  # fmt: skip
def test_every_check_of_criteria_can_fail(criterion, found):
    assert found in failures(check_criterion, criterion)


# --- the form -------------------------------------------------------------------------------------------------------


def test_a_report_names_what_failed_first():
    with as_users_call_it(), pytest.raises(AssertionError) as caught:
        assert_criterion(OfPairs(losses.NTXentLoss()))
    message = str(caught.value)
    assert "of 15 checks fail" in message
    assert "- nan_and_infinity_are_refused: nan in x is accepted, expected ValueError" in message
    assert message.count("\n") == 4
    for check in (assert_objective, assert_miner, assert_evaluator):
        with as_users_call_it(), pytest.raises(AssertionError, match="checks fail"):
            check(_raises)


def _raises(*arguments, **options):
    raise KeyError("nothing works")


def test_exempt_checks_are_named_and_misspelt_ones_refused():
    with as_users_call_it():
        report = check_objective(lambda s: kpair(s), exempt=["survives_pickle_and_deepcopy"])
    assert report.holds
    assert report.exempt == ("survives_pickle_and_deepcopy",)
    with pytest.raises(ValueError, match="exempt names survives_pickles, expected some of nan_and_infinity"):
        check_objective(kpair, exempt=["survives_pickles"])


def test_every_check_of_every_battery_is_seen_failing_here():
    """A check that nothing can fail proves nothing: each has a defect above that it finds."""
    text = Path(__file__).read_text(encoding="utf-8")
    for kind in ("objective", "criterion", "miner", "evaluator"):
        report = next(iter(reports(kind).values()))
        for name in (*report.passed, *report.failures, *report.exempt):
            assert f'"{name}"' in text, f"{kind}: {name}"
