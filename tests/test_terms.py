"""Taps, terms, wrappers, views and AMDIM's encoder: what systems are put together from."""

import copy
import math

import pytest
import torch
from references import refused
from torch import nn

from contrastive import InnerProduct
from contrastive.critics import score_penalty, soft_clip
from contrastive.encoders import ConvNet
from contrastive.estimators import donsker_varadhan, jensen_shannon
from contrastive.pairings import contrast, in_batch, other_groups
from contrastive.receptive import ReceptiveNet
from contrastive.taps import Taps, groups_of, random_place, rows_of, tap
from contrastive.terms import Term, maximised, total
from contrastive.views import halves, lab, mirrored, patch_grid, same_moments
from contrastive.wrappers import (
    ResidualHead,
    RowContext,
    in_evaluation_mode,
    in_shuffled_parts,
    momentum_copy,
    refuse_batch_norm,
)
from miners import Bank, Queue, hcl, topk


class TestTaps:
    def test_maps_are_those_of_the_submodules(self):
        encoder = ConvNet(1, widths=(4, 8)).eval()
        images = torch.rand(3, 1, 12, 12)
        maps = Taps(encoder, {"early": "layers.2", "late": ""})(images)
        assert list(maps) == ["early", "late"]
        torch.testing.assert_close(maps["early"], encoder.layers[:3](images))
        torch.testing.assert_close(maps["late"][:, :, 0, 0], encoder(images))
        assert not encoder.layers[2]._forward_hooks  # nothing stays behind

    def test_gradients_and_state_are_the_encoders(self):
        encoder = nn.Sequential(nn.Conv2d(1, 2, 3))
        taps = Taps(encoder, {"map": "0"})
        taps(torch.rand(1, 1, 4, 4))["map"].sum().backward()
        assert encoder[0].weight.grad is not None
        assert set(taps.state_dict()) == {"encoder.0.weight", "encoder.0.bias"}
        copy.deepcopy(taps)(torch.rand(1, 1, 4, 4))

    def test_a_tap_that_does_not_exist_lists_those_that_do(self):
        encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
        with refused("Taps: 'map' is to be the submodule 'layer7'; the encoder has '', '0', '1'"):
            Taps(encoder, {"map": "layer7"})
        with refused("no tap 'local'; there are 'map', 'global'"):
            tap({"map": torch.zeros(1), "global": torch.zeros(1)}, "local")
        with refused("Taps: 'x' has shape (1, 2, 3)"):
            Taps(nn.Sequential(nn.Flatten(2)), {"x": "0"})(torch.rand(1, 2, 3, 1))

    def test_rows_go_image_by_image(self):
        maps = torch.arange(12.0).view(2, 1, 2, 3)
        assert rows_of(maps).flatten().tolist() == list(range(12))
        assert groups_of(maps).tolist() == [0] * 6 + [1] * 6

    def test_random_places_are_of_the_own_image_and_reach_all(self):
        maps = torch.arange(2000.0).view(500, 1, 2, 2)
        place = random_place(maps).flatten()
        assert ((place // 4) == torch.arange(500)).all()
        assert set((place % 4).tolist()) == {0, 1, 2, 3}


class TestTerms:
    def test_a_term_is_its_formula(self):
        x, y = ({"a": torch.randn(2, 3, 1, 1), "b": torch.randn(2, 3, 2, 1)} for _ in range(2))
        term = Term("a", "b", InnerProduct(), pairing=other_groups, weight=0.5, clip=2.0, penalty=0.3)
        scores = x["a"].flatten(1) @ rows_of(y["b"]).T
        losses = []
        for i in range(2):
            negatives = torch.logsumexp((2 * torch.tanh(scores / 2))[i, [2, 3] if i == 0 else [0, 1]], 0)
            for p in (2 * i, 2 * i + 1):
                positive = 2 * math.tanh(float(scores[i, p]) / 2)
                losses.append(-positive + float(torch.logaddexp(torch.tensor(positive), negatives)))
        expected = 0.5 * (sum(losses) / 4 + 0.3 * float((scores**2).mean()))
        assert float(term(x, y)) == pytest.approx(expected, rel=1e-5)

    def test_both_directions(self):
        term = Term("z", "z", InnerProduct())
        x, y = ({"z": torch.randn(4, 3, 1, 1)} for _ in range(2))
        assert float(total([term, term], x, y, both=True)) == pytest.approx(float(term(x, y) + term(y, x)), rel=1e-5)
        assert float(total([term, term], x, y)) == pytest.approx(2 * float(term(x, y)), rel=1e-5)

    def test_the_bound_is_of_the_clipped_scores(self):
        x = {"z": 10 * torch.eye(4)[:, :, None, None]}
        found = Term("z", "z", InnerProduct(), clip=1.0).bound(x, x)
        assert found.value == pytest.approx(math.log(4) - math.log(1 + 3 * math.exp(-1)), rel=1e-4)

    def test_an_estimator_becomes_an_objective(self):
        images, places = torch.arange(2), torch.tensor([0, 0, 1, 1])
        scores = torch.randn(2, 4)
        pairing = other_groups(images, places)
        own, others = scores[pairing.targets], scores[~pairing.targets]
        expected = nn.functional.softplus(-own).mean() + nn.functional.softplus(others).mean()
        torch.testing.assert_close(maximised(jensen_shannon)(scores, pairing), expected)
        expected = torch.logsumexp(others, 0) - math.log(4) - own.mean()
        torch.testing.assert_close(maximised(donsker_varadhan)(scores, pairing), expected)
        with refused("maximised: jensen_shannon weighs no negatives, but got the miner hcl"):
            maximised(jensen_shannon)(scores, pairing, miner=hcl(1.0))

    def test_refusals(self):
        x, y = {"a": torch.zeros(2, 3, 1, 1)}, {"a": torch.zeros(3, 3, 1, 1)}
        with refused("no tap 'b'; there are 'a'"):
            Term("a", "b", InnerProduct())(x, x)
        with refused("Term: got views of unequal length, 2 of 'a' and 3 of 'a'"):
            Term("a", "a", InnerProduct())(x, y)
        with refused("total: got no terms"):
            total([], x, x)

    def test_modifiers_keep_what_is_absent(self):
        scores = torch.tensor([[1.0, -torch.inf, 3.0]], requires_grad=True)
        clipped = soft_clip(scores, 2.0)
        assert clipped.detach().tolist()[0] == pytest.approx([2 * math.tanh(0.5), -math.inf, 2 * math.tanh(1.5)])
        clipped[0, ::2].sum().backward()
        assert torch.isfinite(scores.grad).all()
        assert float(score_penalty(scores).detach()) == 5.0
        with refused("soft_clip: bound is 0, expected a positive number"):
            soft_clip(scores, 0)


class TestWrappers:
    def test_every_part_gets_its_mode_back(self):
        module = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Sequential(nn.Dropout()))
        outside = nn.Sequential(module.eval())  # is in training mode, what it holds is not
        module[1].train()

        def fails():
            with in_evaluation_mode(outside):
                assert not any(part.training for part in outside.modules())
                raise KeyError

        for _ in range(2):
            with pytest.raises(KeyError):
                fails()
            assert [part.training for part in outside.modules()] == [True, False, False, True, True]

    def test_a_momentum_copy_follows(self):
        layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        slow = momentum_copy(layer, 0.9)
        slow.update_parameters(layer)
        before = layer[0].weight.detach().clone()
        with torch.no_grad():
            layer[0].weight += 1
        slow.update_parameters(layer)
        torch.testing.assert_close(slow.module[0].weight, before + 0.1)
        assert not any(p.requires_grad for p in slow.parameters())
        again = momentum_copy(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), 0.9)
        again.load_state_dict(slow.state_dict())
        for copied in (slow, again):
            with torch.no_grad():
                layer[0].weight.fill_(5.0)
            copied.update_parameters(layer)
        torch.testing.assert_close(again.module[0].weight, slow.module[0].weight)

    def test_shuffled_parts_have_statistics_of_their_own(self):
        norm = nn.BatchNorm1d(1)
        x = torch.randn(8, 1)
        torch.manual_seed(0)
        apart = in_shuffled_parts(norm, x, 2)
        order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
        for rows in order.chunk(2):
            expected = (x[rows] - x[rows].mean()) / (x[rows].var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(apart[rows], expected)
        assert not torch.allclose(apart, norm(x))

    def test_batch_norms_that_leak_are_refused_with_the_reason(self):
        with refused("CPC: 1 is a BatchNorm2d; the statistics of a batch tell its members of each other"):
            refuse_batch_norm("CPC", nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))

    def test_a_context_never_looks_down(self):
        context = RowContext(3, layers=2)
        maps = torch.randn(1, 3, 5, 4, requires_grad=True)
        context(maps)[0, :, 2].sum().backward()
        seen = maps.grad.abs().sum((0, 1, 3)) > 0
        assert seen.tolist() == [True, True, True, False, False]

    def test_a_head_starts_linear_and_works_place_by_place(self):
        head = ResidualHead(3, 4, norm=lambda width: nn.GroupNorm(1, width))
        maps = torch.randn(2, 3, 2, 2)
        linear = head.norm(head.shortcut(maps))
        torch.testing.assert_close(head(maps), linear)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: momentum_copy(nn.Linear(1, 1), 1.0), "momentum_copy: decay is 1.0"),
            (lambda: in_shuffled_parts(nn.Identity(), torch.zeros(3, 1), 2), "in_shuffled_parts: got 3 images in 2"),
            (lambda: RowContext(2, layers=0), "RowContext: layers is 0"),
        ],
    )
    def test_refusals(self, call, message):
        with refused(message):
            call()


class TestViews:
    def test_halves(self):
        images = torch.arange(16.0).view(1, 1, 4, 4)
        upper, lower = halves(images)
        assert torch.equal(torch.cat([upper, lower], 2), images)
        left, right = halves(images, across="columns")
        assert torch.equal(torch.cat([left, right], 3), images)
        with refused("halves: images have 3 rows, expected an even number"):
            halves(torch.zeros(1, 1, 3, 4))
        with refused("halves: across is 'depth'"):
            halves(images, across="depth")

    def test_lightness_and_colour(self):
        """CIE's formulas on three colours, D65 white."""
        colours = torch.tensor([[0.2, 0.5, 0.9], [1.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
        lightness, colour = lab(colours.view(3, 3, 1, 1))
        matrix = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
        for i, rgb in enumerate(colours.tolist()):
            linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in rgb]
            xyz = [sum(a * b for a, b in zip(row, linear, strict=True)) for row in matrix]
            f = [(t / w) ** (1 / 3) for t, w in zip(xyz, (0.95047, 1.0, 1.08883), strict=True)]
            assert float(lightness[i]) == pytest.approx((116 * f[1] - 16) / 50 - 1, abs=1e-3)
            ab = [500 * (f[0] - f[1]) / 110, 200 * (f[1] - f[2]) / 110]
            assert colour[i].flatten().tolist() == pytest.approx(ab, abs=2e-3)
        with refused("lab: images have shape (1, 1, 2, 2), expected [n, 3, h, w]"):
            lab(torch.zeros(1, 1, 2, 2))

    def test_mirrored_at_random(self):
        images = torch.arange(4.0).expand(200, 1, 1, 4)
        found = mirrored(images)
        flipped = (found[:, 0, 0, 0] == 3).sum()
        assert 60 < int(flipped) < 140
        assert torch.equal(found.sort(3).values, images)

    def test_patches(self):
        images = torch.rand(2, 3, 12, 16)
        patches = patch_grid(images, 4, 2)
        assert patches.shape == (2, 5, 7, 3, 4, 4)
        assert torch.equal(patches[1, 3, 2], images[1, :, 6:10, 4:8])
        with refused("patch_grid: images have shape (1, 1, 11, 28), expected at least 12 pixels a side"):
            patch_grid(torch.zeros(1, 1, 11, 28), 8, 4)

    def test_moments_are_the_same_of_both_cameras(self):
        first = torch.arange(10.0).view(2, 5, 1)
        x, y, videos = same_moments(first, -first, 3)
        assert torch.equal(x, -y)
        assert torch.equal((x.flatten() // 5).long(), videos)
        assert len(set(x.flatten().tolist())) == 6
        with refused("same_moments: got views of unequal length, (2, 5) and (2, 4) videos and frames"):
            same_moments(first, first[:, :4], 2)
        with refused("same_moments: count is 6, expected 1 to 5"):
            same_moments(first, first, 6)


class TestReceptiveNet:
    @pytest.mark.parametrize("size", [32, 64])
    def test_a_place_sees_its_field_and_no_more(self, size):
        """The gradient of one place is where it looks; random weights, for the zeros of the start hide the branch."""
        net = ReceptiveNet(1, size=size, width=2, out=4, depth=2).double().eval()
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        taps = Taps(net, {name: name for name in net.fields})
        for name, (field, stride) in net.fields.items():
            images = torch.rand(1, 1, size, size, dtype=torch.float64, requires_grad=True)
            last = taps(images)[name]
            last[0, :, -1, -1].sum().backward()
            rows = (images.grad[0, 0].abs().sum(1) > 0).nonzero().flatten()
            start = (last.shape[2] - 1) * stride
            assert start <= int(rows[0])
            assert int(rows[-1]) < start + field == size

    def test_it_starts_as_average_pooling(self):
        net = ReceptiveNet(1, width=2, out=4, depth=1)
        block = net.f5[0]
        maps = torch.randn(1, 8, 7, 7)
        torch.testing.assert_close(block(maps), nn.functional.avg_pool2d(maps, 3, 1))

    def test_refusals(self):
        with refused("ReceptiveNet: got images of shape (1, 3, 28, 28), expected 32 x 32 pixels: its maps see f7 8"):
            ReceptiveNet(3, width=2, out=4)(torch.zeros(1, 3, 28, 28))
        with refused("ReceptiveNet: size is 28 pixels, expected one of 32, 64"):
            ReceptiveNet(3, size=28)


class TestBank:
    def test_keys_move_and_stay_unit(self):
        bank = Bank(5, 3, momentum=0.5)
        before = bank.keys.clone()
        rows = torch.randn(2, 3)
        bank.update(torch.tensor([1, 4]), rows)
        for item, row in ((1, rows[0]), (4, rows[1])):
            moved = 0.5 * before[item] + 0.5 * row / row.norm()
            torch.testing.assert_close(bank.keys[item], moved / moved.norm())
        assert torch.equal(bank.keys[[0, 2, 3]], before[[0, 2, 3]])

    def test_draws_reach_all_and_start_with_the_own(self):
        columns = Bank(5, 3).draw(torch.tensor([2, 3]), 200)
        assert columns[:, 0].tolist() == [2, 3]
        assert set(columns[:, 1:].flatten().tolist()) == set(range(5))

    def test_refusals(self):
        bank = Bank(5, 3)
        with refused("Bank: items is 1 and dim 3"):
            Bank(1, 3)
        with refused("Bank: momentum is 1.0"):
            Bank(5, 3, momentum=1.0)
        with refused("Bank.draw: k is 0"):
            bank.draw(torch.tensor([0]), 0)
        with refused("Bank.update: rows have shape (1, 2), expected [1, 3]"):
            bank.update(torch.tensor([0]), torch.zeros(1, 2))
        with refused("Bank.update: row 0 of the rows holds a NaN"):
            bank.update(torch.tensor([0]), torch.full((1, 3), torch.nan))
        kept = bank.keys.clone()
        for item in (-1, 5):
            with refused(f"Bank.draw: items lie in [{item}, {item}], expected [0, 4]"):
                bank.draw(torch.tensor([item]), 2)
            with refused(f"Bank.update: items lie in [{item}, {item}], expected [0, 4]"):
                bank.update(torch.tensor([item]), torch.ones(1, 3))
        assert torch.equal(bank.keys, kept)


def test_a_queue_need_not_be_a_multiple_of_the_batch():
    """The released MoCo asserts that it is; here the oldest keys leave, one by one."""
    queue = Queue(5, 1)
    for start in (0, 2, 4):
        queue.enqueue(torch.arange(start, start + 2.0)[:, None])
    assert queue.keys().flatten().tolist() == [1, 2, 3, 4, 5]


def test_a_miner_and_another_critic_go_into_any_term():
    maps = {"z": torch.randn(6, 3, 1, 1)}
    plain, mined = (Term("z", "z", InnerProduct(), miner=miner) for miner in (None, topk(1)))
    assert float(mined(maps, maps)) < float(plain(maps, maps))
    scores = rows_of(maps["z"]) @ rows_of(maps["z"]).T
    rows = torch.arange(6)
    expected = contrast(scores, in_batch(rows, rows), miner=topk(1)).mean()
    torch.testing.assert_close(mined(maps, maps), expected)
