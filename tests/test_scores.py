"""The vocabulary: the one shape check, the masks, the raised precision."""

import math

import pytest
import torch
from references import INF, refused

from contrastive import decoupled_loss, infonce_bound, kpair_loss, nwj_bound, pairwise_loss, supcon_loss
from contrastive.scores import MiningFacts, as_float32, check_rows, negatives, target_scores
from miners import debiased, hardest, hcl, semihard, topk

LOSSES = [kpair_loss, decoupled_loss, pairwise_loss, supcon_loss]
BOUNDS = [infonce_bound, nwj_bound]
MINERS = [topk(2), hardest(), semihard(1.0), hcl(1.0), debiased(0.1)]


def name_of(function):
    return getattr(function, "__name__", repr(function))


every_function = pytest.mark.parametrize("function", [*LOSSES, *BOUNDS, *MINERS], ids=name_of)
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=name_of)


def targets_of(*columns, **options):
    return torch.tensor(columns, **options)


@every_function
@pytest.mark.parametrize("shape", [(4,), (), (2, 3, 3)])
def test_scores_of_another_rank_are_refused(function, shape):
    with refused(name_of(function), str(shape), "[anchors, candidates]"):
        function(torch.zeros(shape), targets_of(0, 0))


@every_function
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_scores_that_do_not_float_are_refused(function, dtype):
    with refused(name_of(function), str(dtype), "floating-point"):
        function(torch.zeros(2, 3, dtype=dtype), targets_of(0, 1))


@every_function
@pytest.mark.parametrize(
    "targets", [targets_of(0), targets_of(0, 1, 2), targets_of(0, 1)[:, None], torch.tensor(0), targets_of(0)[:0]]
)
def test_targets_of_another_shape_are_refused_and_a_single_one_does_not_broadcast(function, targets):
    with refused(name_of(function), str(tuple(targets.shape)), "expected [2]"):
        function(torch.zeros(2, 3), targets)


@every_function
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.complex64])
def test_targets_that_are_not_integers_are_refused(function, dtype):
    if function is supcon_loss and dtype == torch.bool:
        with refused("supcon_loss", "mask", "(2,)", "(2, 3)"):  # there a mask means several positives
            function(torch.zeros(2, 3), torch.zeros(2, dtype=dtype))
        return
    with refused(name_of(function), str(dtype), "integer"):
        function(torch.zeros(2, 3), torch.zeros(2, dtype=dtype))


@every_function
@pytest.mark.parametrize("column", [-1, 3, 2**31, -(2**62)])
def test_targets_out_of_range_are_refused(function, column):
    with refused(name_of(function), str(column), "[0, 2]"):
        function(torch.zeros(2, 3), targets_of(0, column))


@pytest.mark.parametrize("function", [*LOSSES, *BOUNDS], ids=name_of)
def test_the_diagonal_needs_a_column_for_every_anchor(function):
    with refused(name_of(function), "(3, 2)", "at least 3"):
        function(torch.zeros(3, 2))


@every_loss
@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (3,), (2, 4), ()])
def test_log_weights_of_another_shape_are_refused_and_do_not_broadcast(loss, shape):
    with refused(name_of(loss), str(shape), "(2, 3)"):
        loss(torch.zeros(2, 3), targets_of(0, 1), log_weights=torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_targets_will_do(dtype):
    scores = torch.randn(3, 4)
    assert torch.equal(kpair_loss(scores, targets_of(3, 0, 2, dtype=dtype)), kpair_loss(scores, targets_of(3, 0, 2)))


def test_check_rows_raises_half_precision_and_leaves_the_rest():
    for given, expected in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        x = torch.zeros(2, 3, dtype=given)
        scores, targets, log_weights = check_rows("f", x, None, x)
        assert scores.dtype == log_weights.dtype == as_float32(x).dtype == expected
        assert targets.dtype == torch.int64
        assert targets.tolist() == [0, 1]
        if given == expected:
            assert scores is x


def test_target_scores_is_a_column():
    scores = torch.arange(6.0).reshape(2, 3)
    assert target_scores(scores, targets_of(2, 0)).tolist() == [[2.0], [3.0]]


def test_negatives_are_what_is_present_but_the_target():
    scores = torch.tensor([[0.0, -INF, -1e30], [-INF, -INF, -INF], [math.nan, INF, 0.0]])
    found = negatives(scores, targets_of(0, 1, 2))
    # NaN and +inf count as present: were they left out, a broken score would pass for an absent candidate.
    assert found.tolist() == [[False, False, True], [False, False, False], [True, True, False]]


def test_facts_promise_nothing_by_default():
    assert MiningFacts() == MiningFacts(mass=None, monotone=False)
