"""What is not the K-pair kernel: relations to it, several positives, and the peers. The properties are in one table."""

import functools
import math

import pytest
import references
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import GeneralizedLiftedStructureLoss, MultiSimilarityLoss
from references import INF, close, gradient, refused, scores_with_gaps

from contrastive import (
    additive_margin_loss,
    kpair_loss,
    lifted_loss,
    multi_similarity_loss,
    ovo_loss,
    pairwise_loss,
    sigmoid_loss,
    supcon_loss,
)
from contrastive.rows import softplus

# Name: (a loss of several positives, its loop).
SEVERAL = {
    "lifted_loss": (lifted_loss, references.lifted),
    "lifted_loss, softplus": (
        functools.partial(lifted_loss, margin=0.3, link=softplus),
        functools.partial(references.lifted, margin=0.3, link=references.softplus),
    ),
    "multi_similarity_loss": (multi_similarity_loss, references.multi_similarity),
    "multi_similarity_loss, soft": (
        functools.partial(multi_similarity_loss, alpha=1.5, beta=3.0, base=-0.2),
        functools.partial(references.multi_similarity, alpha=1.5, beta=3.0, base=-0.2),
    ),
    "sigmoid_loss": (sigmoid_loss, references.sigmoid),
    "sigmoid_loss, bias": (functools.partial(sigmoid_loss, bias=0.4), functools.partial(references.sigmoid, bias=0.4)),
}


@pytest.fixture(params=SEVERAL)
def several(request):
    return request.param.split(",")[0], *SEVERAL[request.param]


def masked(*, anchors=6, candidates=9, scale=1.0, dtype=torch.float64):
    """Scores with gaps and a mask of what is positive: row 1 has no positive, row 2 no negative, row 3 is padding."""
    scores, targets = scores_with_gaps(anchors, candidates, scale=scale)
    positives = (torch.rand(anchors, candidates) < 0.4).scatter(1, targets[:, None], True)
    positives[1], positives[2], scores[3] = False, True, -INF
    positives &= (scores > -INF) | (scores == -INF).all(1, keepdim=True)  # in padding, anything may stand
    return scores.to(dtype), positives


def embedded(*, classes=(0, 0, 0, 1, 1, 2, 2), dtype=torch.float64):
    """Unit embeddings, labels, and the mask of the positives without the self pairs."""
    z, labels = F.normalize(torch.randn(len(classes), 4, dtype=dtype)), torch.tensor(classes)
    same = labels[:, None] == labels
    return z, labels, same & ~torch.eye(len(classes), dtype=torch.bool)


class TestSeveralPositives:
    @pytest.mark.parametrize("weighted", [False, True])
    def test_equals_its_loop(self, several, weighted):
        _, loss, loop = several
        scores, positives = masked()
        log_weights = torch.randn_like(scores).masked_fill(torch.rand_like(scores) < 0.2, -INF) if weighted else None
        close(loss(scores, positives, log_weights=log_weights), loop(scores, positives, log_weights), 1e-13)

    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.float64, 1e-11), (torch.float32, 2e-6), (torch.float16, 2e-6), (torch.bfloat16, 2e-6)],
    )
    @pytest.mark.parametrize("offset", [1e4, -1e4, 0.0])
    def test_scores_of_ten_thousand(self, several, dtype, tolerance, offset):
        _, loss, loop = several
        scores, positives = masked()
        near = (scores + offset).to(dtype)
        close(loss(near, positives), loop(near, positives), tolerance)
        apart = (scores.sign() * 1e4).to(dtype)
        close(loss(apart, positives), loop(apart, positives), tolerance)

    def test_a_mask_of_one_positive_is_a_target(self, several):
        _, loss, _ = several
        scores, targets = scores_with_gaps(5, 7)
        assert torch.equal(loss(scores, F.one_hot(targets, 7).bool()), loss(scores, targets))

    def test_order_of_positives_and_negatives(self, several):
        _, loss, _ = several
        scores, positives = masked()
        columns = torch.randperm(9)
        close(loss(scores[:, columns], positives[:, columns]), loss(scores, positives), 1e-14)

    def test_gradients_of_first_and_second_order(self, several):
        _, loss, _ = several
        scores, positives = masked(anchors=5, candidates=6)
        present = scores > -INF
        log_weights = torch.randn_like(scores)

        def filled(values):
            spread = torch.full_like(scores, -INF).masked_scatter(present, values)
            return loss(spread, positives, log_weights=log_weights)

        values = scores[present].requires_grad_()
        assert torch.autograd.gradcheck(filled, (values,))
        assert torch.autograd.gradgradcheck(filled, (values,))
        log_weights = log_weights.requires_grad_()
        assert torch.autograd.gradcheck(lambda w: loss(scores, positives, log_weights=w), (log_weights,))

    def test_padding_costs_nothing_and_moves_nothing_whatever_its_mask(self, several):
        _, loss, _ = several
        scores, positives = masked()
        for value in (False, True):
            positives[3] = value
            leaf = scores.clone().requires_grad_()
            found = loss(leaf, positives)
            assert found[3] == 0
            by_score = gradient(found, leaf)[0]
            assert by_score.isfinite().all()
            assert not by_score[3].any()

    def test_what_stands_at_positives_and_gaps_is_ignored(self, several):
        _, loss, _ = several
        scores, positives = masked()
        log_weights = torch.randn_like(scores)
        wild = log_weights.masked_fill(positives | (scores == -INF), math.nan).requires_grad_()
        found = loss(scores, positives, log_weights=wild)
        assert torch.equal(found, loss(scores, positives, log_weights=log_weights))
        assert gradient(found, wild)[0].isfinite().all()

    def test_a_dropped_negative_is_no_negative(self, several):
        _, loss, _ = several
        scores, positives = masked()
        dropped = (torch.rand_like(scores) < 0.4) & ~positives
        log_weights = torch.zeros_like(scores).masked_fill(dropped, -INF).requires_grad_()
        found = loss(scores, positives, log_weights=log_weights)
        close(found, loss(scores.masked_fill(dropped, -INF), positives).detach(), 1e-15)
        assert not gradient(found, log_weights)[0][dropped].any()

    def test_no_candidates_at_all(self, several):
        _, loss, _ = several
        assert loss(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool)).tolist() == [0.0] * 3
        assert loss(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)).shape == (0,)

    @pytest.mark.parametrize("value", [math.nan, INF])
    def test_a_row_without_a_positive_is_checked_too(self, several, value):
        name, loss, _ = several
        scores = torch.zeros(2, 3)
        scores[1, 2] = value
        with refused(name, "row 1", "NaN or +inf score"):
            loss(scores, torch.tensor([[True, False, False], [False] * 3]))

    def test_an_absent_positive_is_refused(self, several):
        name, loss, _ = several
        scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, -INF, 2.0]])
        with refused(name, "row 1", "absent"):
            loss(scores, torch.tensor([[True, True, False], [True, True, False]]))

    @pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3,), ()])
    def test_a_mask_of_another_shape_is_refused(self, several, shape):
        name, loss, _ = several
        with refused(name, "mask", str(shape), "(2, 3)"):
            loss(torch.zeros(2, 3), torch.zeros(shape, dtype=torch.bool))

    @pytest.mark.parametrize("shape", [(3,), (), (1, 2, 3)])
    def test_scores_of_another_rank_are_refused_with_a_mask_too(self, several, shape):
        name, loss, _ = several
        with refused(name, str(shape), "[anchors, candidates]"):
            loss(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))


class TestOneVersusOne:
    def test_is_never_less_than_kpair(self):
        scores, targets = scores_with_gaps(50, 9, scale=3.0)
        assert (ovo_loss(scores, targets) >= kpair_loss(scores, targets) - 1e-14).all()

    def test_one_negative_makes_all_three_equal(self):
        scores = torch.randn(9, 2, dtype=torch.float64) * 20
        targets = torch.zeros(9, dtype=torch.int64)
        close(ovo_loss(scores, targets), kpair_loss(scores, targets), 1e-15)
        close(ovo_loss(scores, targets), pairwise_loss(scores, targets), 1e-15)

    def test_is_the_sum_of_which_pairwise_is_the_mean(self):
        scores, targets = scores_with_gaps(6, 9)
        log_weights = torch.randn_like(scores).scatter(1, targets[:, None], 0.0)
        kept = (scores > -INF).scatter(1, targets[:, None], False)
        total = log_weights.exp().masked_fill(~kept, 0.0).sum(1)
        mean = pairwise_loss(scores, targets, log_weights=log_weights)
        close(ovo_loss(scores, targets, log_weights=log_weights), total * mean, 1e-13)

    def test_what_stands_at_the_target_is_ignored(self):
        scores, targets = scores_with_gaps(4, 6)
        wild = torch.zeros_like(scores).scatter(1, targets[:, None], math.nan)
        assert torch.equal(ovo_loss(scores, targets, log_weights=wild), ovo_loss(scores, targets))

    def test_weights_beyond_the_largest_float_are_refused(self):
        with refused("ovo_loss", "row 1", "log_weights overflow"):
            ovo_loss(torch.zeros(2, 2), log_weights=torch.tensor([[0.0, 0.0], [1e4, 0.0]]))


class TestLifted:
    @pytest.mark.parametrize("margin", [0.0, 0.6, -2.0])
    def test_softplus_and_one_positive_is_kpair_with_a_margin(self, margin):
        scores, targets = scores_with_gaps(6, 9)
        log_weights = torch.randn_like(scores).scatter(1, targets[:, None], 0.0)
        close(
            lifted_loss(scores, targets, margin=margin, link=softplus, log_weights=log_weights),
            additive_margin_loss(scores, targets, margin=margin, log_weights=log_weights),
            1e-13,
        )

    def test_equals_the_peer(self):
        z, labels, positives = embedded()
        scores = (-torch.cdist(z, z)).fill_diagonal_(-INF)
        close(lifted_loss(scores, positives).mean(), GeneralizedLiftedStructureLoss()(z, labels), 1e-7)
        # A similarity's margin has the other sign there. Its scores have no square root: all digits agree.
        cosines = (z @ z.T).fill_diagonal_(-INF)
        peer = GeneralizedLiftedStructureLoss(neg_margin=-0.3, distance=CosineSimilarity())
        close(lifted_loss(cosines, positives, margin=0.3).mean(), peer(z, labels), 1e-14)

    def test_gradient_equals_the_peer(self):
        z, labels, positives = embedded()
        z.requires_grad_()
        unit = F.normalize(z)
        ours = lifted_loss((unit @ unit.T).masked_fill(torch.eye(7, dtype=torch.bool), -INF), positives, margin=0.3)
        peer = GeneralizedLiftedStructureLoss(neg_margin=-0.3, distance=CosineSimilarity())
        close(gradient(ours.mean(), z)[0], gradient(peer(z, labels), z)[0], 1e-14)

    def test_an_anchor_without_a_positive_or_a_negative_costs_nothing_and_moves_nothing(self):
        scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        positives = torch.tensor([[False] * 4, [True] * 4, [True, False, False, False]])
        for link in (torch.relu, softplus, lambda x: x + 5.0):
            loss = lifted_loss(scores, positives, link=link)
            assert loss[:2].tolist() == [0.0, 0.0]
            (found,) = gradient(loss, scores)
            assert not found[:2].any()
            assert found[2].any()

    def test_the_peer_counts_such_an_anchor_and_that_is_why_it_differs(self):
        z, labels, positives = embedded(classes=(0, 0, 1))
        cosines = (z @ z.T).fill_diagonal_(-INF)
        ours = lifted_loss(cosines, positives, margin=5.0)
        lonely = torch.logsumexp(cosines[2, :2] + 5.0, 0)
        peer = GeneralizedLiftedStructureLoss(neg_margin=-5.0, distance=CosineSimilarity())(z, labels)
        assert ours[2] == 0
        close((ours.sum() + lonely) / 3, peer, 1e-14)

    @pytest.mark.parametrize("margin", [math.nan, INF])
    def test_a_margin_that_is_not_finite_is_refused(self, margin):
        with refused("lifted_loss", str(margin), "finite"):
            lifted_loss(torch.zeros(2, 2), margin=margin)

    def test_a_link_that_is_undefined_is_named(self):
        with refused("lifted_loss", "row 0", "link"):
            lifted_loss(torch.zeros(2, 2), link=lambda x: x * math.nan)


class TestMultiSimilarity:
    @pytest.mark.parametrize(("alpha", "beta", "base"), [(2.0, 50.0, 0.5), (2.0, 40.0, 1.0), (5.0, 1.0, -0.1)])
    def test_equals_the_peer(self, alpha, beta, base):
        z, labels, positives = embedded(classes=(0, 0, 0, 1, 1, 2))  # the last has no positive: its negatives count
        z.requires_grad_()
        unit = F.normalize(z)
        cosines = (unit @ unit.T).masked_fill(torch.eye(6, dtype=torch.bool), -INF)
        loss = multi_similarity_loss(cosines, positives, alpha=alpha, beta=beta, base=base).mean()
        peer = MultiSimilarityLoss(alpha=alpha, beta=beta, base=base)(z, labels)
        close(loss, peer.detach(), 1e-14)
        close(gradient(loss, z)[0], gradient(peer, z)[0], 1e-14)

    def test_each_term_stands_alone(self):
        scores = torch.tensor([[0.2, 0.9, 0.1]], dtype=torch.float64)
        nothing, everything = torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
        above = scores - 0.5
        pushed = torch.log1p(torch.exp(50 * above).sum(1)) / 50
        pulled = torch.log1p(torch.exp(-2 * above).sum(1)) / 2
        close(multi_similarity_loss(scores, nothing), pushed, 1e-14)
        close(multi_similarity_loss(scores, everything), pulled, 1e-14)
        # K = 1, and a row with nothing but its positive: the pull alone.
        close(multi_similarity_loss(scores[:, :1]), [math.log1p(math.exp(0.6)) / 2], 1e-14)

    def test_is_measured_against_the_base(self):
        scores, targets = scores_with_gaps(5, 7)
        moved = multi_similarity_loss(scores + 0.3, targets, base=0.8)
        close(moved, multi_similarity_loss(scores, targets), 1e-13)
        assert (multi_similarity_loss(scores + 0.3, targets) - moved).abs().min() > 1e-3

    @pytest.mark.parametrize(
        "options", [{"alpha": 0.0}, {"beta": 0.0}, {"alpha": -1.0}, {"beta": INF}, {"alpha": math.nan}, {"base": INF}]
    )
    def test_options_out_of_range_are_refused(self, options):
        ((option, value),) = options.items()
        with refused("multi_similarity_loss", f"{option} = {value}", "expected finite"):
            multi_similarity_loss(torch.zeros(2, 2), **options)


class TestSigmoid:
    def test_is_algorithm_1(self):
        image, text = (F.normalize(torch.randn(5, 8, dtype=torch.float64)) for _ in range(2))
        logits = image @ text.T * 10 - 10
        z = 2 * torch.eye(5, dtype=torch.float64) - 1
        algorithm = -F.logsigmoid(z * logits).sum() / 5
        close(sigmoid_loss(image @ text.T * 10).mean(), algorithm, 1e-14)

    def test_is_binary_cross_entropy_of_every_pair(self):
        scores, positives = torch.randn(5, 7, dtype=torch.float64), torch.rand(5, 7) < 0.3
        one_by_one = F.binary_cross_entropy_with_logits(scores + 0.7, positives.double(), reduction="none")
        close(sigmoid_loss(scores, positives, bias=0.7), one_by_one.sum(1), 1e-14)

    def test_a_learnt_bias(self):
        scores, positives = masked(anchors=5, candidates=6)
        bias = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        loss = sigmoid_loss(scores, positives, bias=bias)
        assert torch.equal(loss, sigmoid_loss(scores, positives, bias=0.4))
        assert torch.autograd.gradcheck(lambda b: sigmoid_loss(scores, positives, bias=b), (bias,))
        assert torch.autograd.gradgradcheck(lambda b: sigmoid_loss(scores, positives, bias=b), (bias,))
        (padding,) = gradient(sigmoid_loss(scores[3:4], positives[3:4], bias=bias), bias)
        assert padding == 0

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_a_bias_of_another_dtype_changes_no_dtype(self, dtype):
        bias = torch.tensor(-2.0, dtype=dtype, requires_grad=True)
        for scores in (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.float64)):
            loss = sigmoid_loss(scores, bias=bias)
            assert loss.dtype == scores.dtype
            assert gradient(loss, bias)[0].dtype == dtype

    def test_an_absent_candidate_has_no_term(self):
        scores = torch.tensor([[1.0, -INF, 2.0], [1.0, -1e4, 2.0]])
        loss = sigmoid_loss(scores, torch.tensor([0, 0]), bias=0.0)
        assert loss[0] == loss[1]

    def test_without_a_positive_its_negatives_count(self):
        scores = torch.randn(1, 4, dtype=torch.float64)
        loss = sigmoid_loss(scores, torch.zeros(1, 4, dtype=torch.bool), bias=-1.0)
        close(loss, F.softplus(scores - 1.0).sum(1), 1e-14)
        # K = 1, and a row with nothing but its positive: the positive's term alone.
        close(sigmoid_loss(scores[:, :1], bias=-1.0), F.softplus(1.0 - scores[:, 0]), 1e-14)

    def test_a_shift_is_a_bias(self):
        scores, targets = scores_with_gaps(5, 7)
        close(sigmoid_loss(scores + 3.0, targets, bias=-4.0), sigmoid_loss(scores, targets, bias=-1.0), 1e-14)
        assert (sigmoid_loss(scores + 3.0, targets) - sigmoid_loss(scores, targets)).abs().min() > 0.1

    @pytest.mark.parametrize("bias", [math.nan, INF, -INF])
    def test_a_bias_that_is_not_finite_is_refused(self, bias):
        for given in (bias, torch.tensor(bias), torch.tensor(bias, requires_grad=True)):
            with refused("sigmoid_loss", "bias", "finite"):
                sigmoid_loss(torch.zeros(2, 2), bias=given)

    @pytest.mark.parametrize("shape", [(1,), (2, 2)])
    def test_a_bias_that_is_not_a_scalar_is_refused(self, shape):
        with refused("sigmoid_loss", "bias", str(shape), "scalar"):
            sigmoid_loss(torch.zeros(2, 2), bias=torch.zeros(shape))


def test_several_positives_are_read_alike_by_all():
    """One parser: what `supcon_loss` takes as targets, the others take, and refuse with the same words."""
    for loss in (supcon_loss, lifted_loss, multi_similarity_loss, sigmoid_loss):
        with refused(loss.__name__, "targets have dtype torch.float32", "integer"):
            loss(torch.zeros(2, 3), torch.zeros(2))
        with refused(loss.__name__, "targets have shape (1,)", "[2]"):
            loss(torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64))
