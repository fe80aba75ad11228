"""The vocabulary: the one shape check, the masks, the raised precision."""

import functools
import math

import pytest
import torch
from references import INF, gradient, refused

from contrastive import (
    additive_margin_loss,
    decoupled_loss,
    infonce_bound,
    kpair_loss,
    lifted_loss,
    multi_similarity_loss,
    nwj_bound,
    ovo_loss,
    pairwise_loss,
    sigmoid_loss,
    supcon_loss,
)
from contrastive.scores import (
    MiningFacts,
    as_float32,
    check_positives,
    check_rows,
    negatives,
    partners,
    target_scores,
    without_self,
)
from miners import debiased, hardest, hcl, semihard, topk

SEVERAL_POSITIVES = [supcon_loss, lifted_loss, multi_similarity_loss, sigmoid_loss]
LOSSES = [
    kpair_loss,
    decoupled_loss,
    pairwise_loss,
    functools.partial(additive_margin_loss, margin=0.5),
    ovo_loss,
    *SEVERAL_POSITIVES,
]
BOUNDS = [infonce_bound, nwj_bound]
MINERS = [topk(2), hardest(), semihard(1.0), hcl(1.0), debiased(0.1)]


def name_of(function):
    function = getattr(function, "func", function)
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
    if function in SEVERAL_POSITIVES and dtype == torch.bool:
        with refused(name_of(function), "mask", "(2,)", "(2, 3)"):  # there a mask means several positives
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


def test_check_positives_tells_what_is_present_apart():
    scores = torch.tensor([[0.0, 1.0, -INF], [-INF, -INF, -INF], [0.0, 1.0, 2.0]], dtype=torch.float16)
    mask = torch.tensor([[True, False, False], [True, False, True], [False, False, False]])
    found, positive, negative, log_weights = check_positives("f", scores, mask, torch.ones(3, 3))
    assert found.dtype == torch.float32
    assert positive.tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert negative.tolist() == [[False, True, False], [False] * 3, [True] * 3]
    assert not log_weights[positive].any()
    assert (log_weights[negative] == 1).all()


class TestTwoViews:
    def test_without_self(self):
        scores = torch.randn(4, 4, requires_grad=True)
        found = without_self(scores)
        assert (found.diagonal() == -INF).all()
        off = ~torch.eye(4, dtype=torch.bool)
        assert torch.equal(found[off], scores[off])
        assert torch.equal(gradient(found[off], scores)[0], off.float())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_without_self_keeps_the_dtype_and_the_original(self, dtype):
        scores = torch.full((3, 3), math.nan, dtype=dtype)
        found = without_self(scores)
        assert found.dtype == dtype
        assert found.isnan().sum() == 6
        assert scores.isnan().all()

    @pytest.mark.parametrize("shape", [(2, 3), (3, 2), (4,), (), (2, 2, 2)])
    def test_without_self_refuses_another_shape(self, shape):
        with refused("without_self", str(shape), "expected"):
            without_self(torch.zeros(shape))

    def test_without_self_refuses_integers(self):
        with refused("without_self", "int64", "floating-point"):
            without_self(torch.zeros(2, 2, dtype=torch.int64))

    def test_partners_are_each_others(self):
        for rows in (0, 2, 10):
            found = partners(rows)
            assert found.dtype == torch.int64
            assert found.tolist() == [*range(rows // 2, rows), *range(rows // 2)]
            assert torch.equal(found[found], torch.arange(rows))

    def test_partners_on_a_device(self):
        assert partners(4, device="meta").device.type == "meta"
        assert partners(4, device=torch.device("cpu")).device.type == "cpu"

    @pytest.mark.parametrize("rows", [1, 7, -2])
    def test_partners_refuses_an_odd_number(self, rows):
        with refused("partners", str(rows), "even"):
            partners(rows)


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
