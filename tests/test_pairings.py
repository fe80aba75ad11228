"""Pairings against loops over pairs, and what may be called nats: by enumeration."""

import itertools
import math

import pytest
import torch
from references import refused

from contrastive import Cosine, infonce_bound, kpair_loss, ntxent_loss
from contrastive.lists import list_scores
from contrastive.objectives import each_positive_loss
from contrastive.pairings import Pairing, bound, contrast, in_batch, listed, other_groups, two_views, within_groups
from miners import hcl, semihard, topk

ROWS = torch.arange(4)
SEVERAL = Pairing(torch.eye(4, dtype=torch.bool) | torch.eye(4, dtype=torch.bool).flip(0), None, None, "two positives")


def loop(scores, anchors, positives, negatives):
    """The mean over an anchor's positives p of log(1 + sum over its negatives of e^(s_j - s_p))."""
    found = []
    for i in range(anchors):
        terms = [
            math.log(1 + sum(math.exp(float(scores[i, j] - scores[i, p])) for j in negatives(i))) for p in positives(i)
        ]
        found.append(sum(terms) / len(terms))
    return torch.tensor(found, dtype=torch.float64)


def silent(scores, targets, *, anchors=None):
    """A miner that forgot its return."""


def test_in_batch():
    scores = torch.randn(4, 4, dtype=torch.float64)
    expected = loop(scores, 4, lambda i: [i], lambda i: [j for j in range(4) if j != i])
    torch.testing.assert_close(contrast(scores, in_batch(ROWS, ROWS)), expected)


def test_two_views_are_ntxent():
    groups = torch.tensor([5, 3, 9, 5, 3, 9])
    scores = torch.randn(6, 6, dtype=torch.float64)
    expected = loop(scores, 6, lambda i: [(i + 3) % 6], lambda i: [j for j in range(6) if j not in (i, (i + 3) % 6)])
    torch.testing.assert_close(contrast(scores, two_views(groups, groups)), expected)
    torch.testing.assert_close(contrast(scores, two_views(groups, groups)), ntxent_loss(scores))


def test_groups_of_unequal_size_bound_nothing():
    """A critic that knows the kind of place, and nothing of the image, would read half of log 2."""
    found = bound(torch.tensor([[0.0, 50.0, 0.0]]), other_groups(torch.tensor([0]), torch.tensor([0, 0, 1])))
    assert (found.status, found.direction) == ("not a bound", "neither")
    assert "different numbers of candidates" in found.reason
    assert other_groups(torch.arange(2), torch.tensor([1, 0, 1, 0])).count == 2


def test_other_groups():
    anchors, candidates = torch.tensor([2, 0, 1]), torch.tensor([0, 0, 1, 1, 2, 2, 1])
    scores = torch.randn(3, 7, dtype=torch.float64)

    def own(i):
        return [j for j in range(7) if candidates[j] == anchors[i]]

    def others(i):
        return [j for j in range(7) if candidates[j] != anchors[i]]

    pairing = other_groups(anchors, candidates)
    torch.testing.assert_close(contrast(scores, pairing), loop(scores, 3, own, others))
    each = each_positive_loss(scores, pairing.targets)
    for i, p in itertools.product(range(3), range(7)):
        expected = float(loop(scores[i : i + 1], 1, lambda _, p=p: [p], lambda _, i=i: others(i))) if p in own(i) else 0
        assert float(each[i, p]) == pytest.approx(expected)


def test_within_groups():
    videos = torch.tensor([0, 0, 1, 1, 1])
    scores = torch.randn(5, 5, dtype=torch.float64)
    expected = loop(scores, 5, lambda i: [i], lambda i: [j for j in range(5) if j != i and videos[i] == videos[j]])
    torch.testing.assert_close(contrast(scores, within_groups(videos, videos)), expected)


def test_listed():
    items = torch.tensor([7, 3])
    candidates = torch.tensor([[7, 1, 7, 2], [3, 3, 4, 5]])
    scores = torch.randn(2, 4, dtype=torch.float64)
    negatives = [[1, 3], [2, 3]]
    expected = loop(scores, 2, lambda i: [0], lambda i: negatives[i])
    torch.testing.assert_close(contrast(scores, listed(items, candidates)), expected)


@pytest.mark.parametrize("miner", [hcl(1.0), topk(1), semihard(1.0)], ids=repr)
def test_a_miner_sees_the_rows_without_what_is_absent(miner):
    videos = torch.tensor([0, 0, 0, 1, 1, 1])
    scores = torch.randn(6, 6, dtype=torch.float64)
    found = contrast(scores, within_groups(videos, videos), miner=miner)
    for rows in (slice(0, 3), slice(3, 6)):
        block = scores[rows, rows]
        expected = kpair_loss(block, log_weights=miner(block, torch.arange(3)))
        torch.testing.assert_close(found[rows], expected)


def test_of_several_positives_a_miner_weighs_the_negatives_alone():
    anchors, candidates = torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1])
    scores = torch.randn(2, 4, dtype=torch.float64)
    found = contrast(scores, other_groups(anchors, candidates), miner=topk(1))
    for i, own in enumerate(([0, 1], [2, 3])):
        hardest = max(float(scores[i, j]) for j in range(4) if j not in own)
        expected = sum(math.log1p(math.exp(hardest - float(scores[i, p]))) for p in own) / 2
        assert float(found[i]) == pytest.approx(expected)


def test_gradients_flow():
    scores = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    pairing = other_groups(torch.arange(3), torch.arange(3).repeat_interleave(2))
    assert torch.autograd.gradcheck(lambda s: contrast(s, pairing), scores)
    assert torch.autograd.gradcheck(lambda s: each_positive_loss(s, pairing.targets), scores)


class TestNats:
    def test_a_batch_of_pairs_is_infonce(self):
        scores = torch.randn(5, 5)
        rows = torch.arange(5)
        assert bound(scores, in_batch(rows, rows)) == infonce_bound(scores)
        assert bound(scores, in_batch(rows, rows), miner=topk(2)).constant == pytest.approx(math.log(3))

    @pytest.mark.parametrize(
        ("pairing", "scores", "why"),
        [
            (in_batch(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])), torch.eye(3), "own group"),
            (within_groups(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])), torch.eye(3), "own group"),
            (listed(torch.tensor([0, 1]), torch.tensor([[0, 1], [1, 0]])), torch.eye(2), "older encoders"),
        ],
    )
    def test_dependent_negatives_bound_nothing(self, pairing, scores, why):
        found = bound(scores, pairing)
        assert (found.status, found.direction) == ("not a bound", "neither")
        assert math.isnan(found.value)
        assert why in found.reason

    def test_groups_count_once(self):
        """The perfect critic of 3 images with 4 places each reads log 3, not log 9."""
        images = torch.arange(3)
        places = images.repeat_interleave(4)
        scores = 100.0 * (images[:, None] == places).float()
        found = bound(scores, other_groups(images, places))
        assert (found.value, found.cap) == (pytest.approx(math.log(3)), pytest.approx(math.log(3)))
        assert bound(scores, other_groups(images, places), miner=hcl(1.0)).status == "not a bound"

    @pytest.mark.parametrize(("images", "copies"), [(2, 8), (5, 2)])
    def test_all_columns_counted_it_is_no_bound(self, images, copies):
        """X = Y is a fair coin, I = log 2; the places (or the two views) of another image are equal.

        With log(1 + (B - 1) L) the critic 50 [x = y] reads more than log 2: for 2 images of 8 places, and for the two
        views of 5 images. With log B it does not.
        """
        value = {"all": 0.0, "images": 0.0}
        for coins in itertools.product((0, 1), repeat=images):
            candidates = torch.tensor([coins[0], *(coin for coin in coins[1:] for _ in range(copies))])
            scores = 50.0 * (candidates == coins[0]).double()[None]
            loss = float(kpair_loss(scores, torch.tensor([0])))
            value["all"] += (math.log(1 + (images - 1) * copies) - loss) / 2**images
            value["images"] += (math.log(images) - loss) / 2**images
        assert value["all"] > math.log(2) + 1e-3
        assert value["images"] <= math.log(2)


class TestAbsentCandidates:
    """The constant is of what is there: padding costs nothing and may not be counted."""

    def test_in_batch(self):
        scores = torch.full((4, 4), -math.inf).fill_diagonal_(0.0)  # each positive alone
        assert bound(scores, in_batch(ROWS, ROWS)).value == infonce_bound(scores).value == 0.0
        padded = 50.0 * torch.eye(4)
        padded[3] = padded[:, 3] = -math.inf
        found = bound(padded, in_batch(ROWS, ROWS))
        assert found == infonce_bound(padded)
        assert found.value <= math.log(3) + 1e-12

    def test_where_nobody_can_count(self):
        groups = torch.arange(3).repeat(2)
        scores = torch.randn(6, 6)
        assert bound(scores, two_views(groups, groups)).status == "bound"
        scores[:, 4] = -math.inf
        scores[4] = -math.inf
        found = bound(scores, two_views(groups, groups))
        assert found.status == "not a bound"
        assert "absent" in found.reason


def test_a_negative_of_the_anchors_own_group_at_another_place():
    """A critic that knows the group alone would read log 3 - log 2."""
    assert in_batch(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])).count is None
    assert in_batch(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])).count is None
    assert in_batch(torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])).count == 3


def test_a_bank_and_a_queue_are_lists():
    x, keys = torch.randn(2, 3), torch.randn(10, 3)
    columns = torch.tensor([[4, 0, 1], [7, 7, 2]])
    items = torch.tensor([4, 7])
    found = contrast(list_scores(Cosine(), x, keys, columns), listed(items, columns))
    full = Cosine()(x, keys)
    expected = kpair_loss(full[:1, [4, 0, 1]], torch.tensor([0])), kpair_loss(full[1:, [7, 2]], torch.tensor([0]))
    torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: in_batch(ROWS, ROWS[:3]), "in_batch: got views of unequal length, 4 anchors and 3 candidates"),
        (lambda: within_groups(ROWS, ROWS[:3]), "within_groups: got views of unequal length"),
        (lambda: within_groups(ROWS, ROWS.flip(0)), "within_groups: row 0 is of group 0 and of 3"),
        (lambda: two_views(ROWS[:3], ROWS[:3]), "two_views: got 3 rows, expected the first views"),
        (lambda: two_views(ROWS, ROWS), "two_views: got 4 rows, expected the first views"),
        (lambda: two_views(ROWS % 2, 1 - ROWS % 2), "two_views: anchors and candidates are of different groups"),
        (lambda: other_groups(ROWS, ROWS[:3]), "other_groups: anchor 3 is of group 3, which has no candidate"),
        (lambda: listed(ROWS[:1], torch.tensor([[1, 0]])), "listed: candidates have shape (1, 2), expected a row"),
        (
            lambda: contrast(torch.zeros(3, 4), other_groups(ROWS, ROWS)),
            "Pairing: scores have shape (3, 4), expected 4 anchors and 4 candidates",
        ),
        (lambda: contrast(torch.zeros(3, 4), in_batch(ROWS, ROWS)), "expected 4 anchors"),
        (lambda: contrast(torch.zeros(4, 4), in_batch(ROWS, ROWS), miner=silent), "contrast: the miner"),
        (lambda: contrast(torch.zeros(4, 4), SEVERAL, miner=silent), "returned NoneType, expected log-weights of"),
    ],
)
def test_refusals(call, message):
    with refused(message):
        call()


def test_a_pairing_of_ones_own():
    """Nothing but the four facts is needed."""
    pairing = Pairing(torch.tensor([1, 0]), torch.eye(2, dtype=torch.bool), None, "made by hand")
    assert contrast(torch.randn(2, 2), pairing).tolist() == [0.0, 0.0]
