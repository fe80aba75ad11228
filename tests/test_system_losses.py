"""The losses of the systems against loops written from their papers' formulas; what their files refuse."""

import math

import pytest
import torch
from references import refused
from torch import nn

from benchmarks.systems import amdim, cpc, deep_infomax, moco, time_contrastive
from benchmarks.systems.data import made_up
from contrastive import Bilinear, NegativeSquaredDistance
from contrastive.mixture import mixture_loss
from contrastive.noise import NoiseContrast
from contrastive.pairings import in_batch, listed, other_groups, within_groups
from contrastive.terms import Term
from miners import semihard, topk


class TestNoiseContrast:
    def test_it_is_cmcs_equation(self):
        """-log P+/(P+ + m/n) - sum log (m/n)/(P + m/n), with P = e^s / (n mean e^s) (Tian et al., 2020, eq. 12)."""
        items, n = torch.tensor([7, 3]), 50
        scores = torch.randn(2, 4, dtype=torch.float64)
        p = scores.exp() / (n * scores.exp().mean())
        noise = 3 / n
        expected = [
            -math.log(float(p[i, 0]) / (float(p[i, 0]) + noise))
            - sum(math.log(noise / (float(p[i, j]) + noise)) for j in (1, 2, 3))
            for i in range(2)
        ]
        found = NoiseContrast()(scores, listed(items, torch.tensor([[7, 1, 2, 4], [3, 5, 6, 8]])))
        assert found.tolist() == pytest.approx(expected)

    def test_the_normaliser_moves_in_training_only_and_is_saved(self):
        rows = torch.arange(3)
        objective = NoiseContrast(decay=0.75)
        for level in (0.0, 2.0):
            objective(torch.full((3, 3), level), in_batch(rows, rows))
        average = math.log(0.75 * math.exp(0.0) + 0.25 * math.exp(2.0))
        assert float(objective.log_average) == pytest.approx(average, abs=1e-6)
        again = NoiseContrast()
        again.load_state_dict(objective.state_dict())
        again.eval()(torch.full((3, 3), 5.0), in_batch(rows, rows))
        assert float(again.log_average) == pytest.approx(average, abs=1e-6)

    def test_a_batch_that_is_refused_moves_nothing(self):
        rows, objective = torch.arange(3), NoiseContrast()
        objective(torch.full((3, 3), 2.0), in_batch(rows, rows))
        for broken in (math.inf, math.nan):
            scores = torch.zeros(3, 3)
            scores[0, 1] = broken
            with pytest.raises(ValueError, match="row 0"):
                objective(scores, in_batch(rows, rows))
            assert float(objective.log_average) == 2.0

    def test_where_values_are_not_looked_at_a_broken_batch_moves_nothing_either(self, monkeypatch):
        """As on an accelerator: the loss is no number, the average stays one."""
        for module in ("relatives", "rows", "scores"):
            monkeypatch.setattr(f"contrastive.{module}.eager_on_cpu", lambda x: False)
        rows, objective = torch.arange(3), NoiseContrast()
        objective(torch.full((3, 3), 2.0), in_batch(rows, rows))
        for broken in (math.inf, math.nan):
            scores = torch.zeros(3, 3)
            scores[0, 1] = broken
            assert not bool(torch.isfinite(objective(scores, in_batch(rows, rows))).all())
            assert float(objective.log_average) == 2.0

    def test_half_precision_keeps_the_normaliser(self):
        rows, objective = torch.arange(3), NoiseContrast()
        scores = torch.randn(3, 3).bfloat16()
        loss = objective(scores, in_batch(rows, rows))
        assert loss.dtype == torch.float32
        again = NoiseContrast()
        again(scores.float(), in_batch(rows, rows))
        assert torch.equal(objective.log_average, again.log_average)

    def test_an_absent_draw_is_no_noise(self):
        objective = NoiseContrast()
        objective(torch.tensor([[1.0, 0.0, 9.0]]), listed(torch.tensor([4]), torch.tensor([[4, 1, 4]])))
        assert float(objective.log_average) == pytest.approx(math.log((math.e + 1) / 2), abs=1e-6)

    def test_refusals(self):
        rows = torch.arange(2)
        with refused("NoiseContrast: its negatives must be drawn from the noise, but got the miner topk(k=1)"):
            NoiseContrast()(torch.eye(2), in_batch(rows, rows), miner=topk(1))
        with refused("NoiseContrast: decay is 1.0"):
            NoiseContrast(decay=1.0)


class TestMixture:
    def test_it_is_the_papers_loss(self):
        """- sum_j q_ij s_ij - alpha H(q_i.), q = softmax_j(tau s), s a log-softmax over the place and the negatives."""
        images, places = torch.arange(2), torch.tensor([0, 0, 1, 1])
        scores = torch.randn(3, 2, 4, dtype=torch.float64)
        tau, alpha, terms = 0.7, 0.4, []
        for i in range(2):
            own, others = ([0, 1], [2, 3]) if i == 0 else ([2, 3], [0, 1])
            for p in own:
                s = []
                for j in range(3):
                    denominator = math.exp(scores[j, i, p]) + sum(math.exp(scores[j, i, o]) for o in others)
                    s.append(math.log(math.exp(scores[j, i, p]) / denominator))
                total = sum(math.exp(tau * each) for each in s)
                q = [math.exp(tau * each) / total for each in s]
                entropy = -sum(each * math.log(each) for each in q)
                terms.append(-sum(a * b for a, b in zip(q, s, strict=True)) - alpha * entropy)
        found = mixture_loss(scores, other_groups(images, places), sharpness=tau, entropy=alpha)
        assert float(found) == pytest.approx(sum(terms) / 4)

    def test_at_the_optimum_it_is_a_soft_minimum_and_clip_and_penalty_are_the_terms(self):
        images = torch.arange(3)
        scores = torch.randn(2, 3, 3, dtype=torch.float64)
        pairing = other_groups(images, images)
        losses = torch.stack([torch.logsumexp(each, 1) - each.diagonal() for each in scores])
        torch.testing.assert_close(mixture_loss(scores, pairing), -torch.logsumexp(-losses, 0).mean())
        one = {"z": torch.eye(3, dtype=torch.float64)[:, :, None, None]}
        own = Term("z", "z", lambda x, y: scores[0], pairing=other_groups, clip=2.0, penalty=0.1)
        torch.testing.assert_close(mixture_loss(scores[:1], pairing, clip=2.0, penalty=0.1), own(one, one))

    def test_columns_are_refused(self):
        rows = torch.arange(2)
        with refused("mixture_loss: the pairing names columns, expected a mask of positives"):
            mixture_loss(torch.zeros(1, 2, 2), in_batch(rows, rows))


class TestTimeContrast:
    def test_triplets_are_facenets(self):
        """max(0, d+ - d- + 0.2), d+ < d- < d+ + 0.2, negatives of the video; 0 where there are none."""
        videos = torch.tensor([0, 0, 0, 1, 1])
        x = nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64), dim=1)
        y = nn.functional.normalize(x + 0.3 * torch.randn(5, 3, dtype=torch.float64), dim=1)
        distance = torch.cdist(x, y) ** 2
        expected = []
        for i in range(5):
            hinges = [
                float(distance[i, i] - distance[i, j]) + 0.2
                for j in range(5)
                if j != i and videos[j] == videos[i] and 0 < distance[i, j] - distance[i, i] < 0.2
            ]
            expected.append(sum(hinges) / len(hinges) if hinges else 0.0)
        scores = NegativeSquaredDistance()(x, y)
        found = time_contrastive.triplets(scores, within_groups(videos, videos), miner=semihard(0.2))
        assert found.tolist() == pytest.approx(expected)

    def test_an_alignment_that_is_off_by_one(self):
        scores = torch.eye(4).roll(1, 1)
        assert time_contrastive.alignment_error(torch.eye(4)) == 0
        assert time_contrastive.alignment_error(scores) == pytest.approx((1 + 1 + 1 + 3) / 4 / 4)

    def test_digits_that_are_judged_on_were_not_trained_on(self):
        images = time_contrastive.unseen_digits(made_up("mnist", 50))
        assert set(images.train.labels.tolist()) == {0, 1, 2, 3, 4}
        assert set(images.test.labels.tolist()) == set(images.held_out.labels.tolist()) == {5, 6, 7, 8, 9}

    def test_the_cameras_see_different_pixels_and_something_is_in_the_way(self):
        digits = torch.rand(2, 1, 28, 28)
        plain, hidden = (time_contrastive.film(digits, camera=0, hidden=share) for share in (0.0, 0.4))
        assert plain.shape == (2, time_contrastive.FRAMES, 1, 28, 28)
        grey = (hidden == 0.5).flatten(2).sum(2).float()
        assert (grey.sqrt() / 28 - 0.4).abs().max() < 0.06  # a square of 40 % of the side, in every frame
        assert not (plain == 0.5).any()


class TestFiles:
    def test_the_context_is_scored_by_one_bilinear_critic_a_distance(self):
        learner = cpc.build((1, 28, 28), widths=(4, 8), layers=1)
        critics = [module for module in learner.modules.modules() if isinstance(module, Bilinear)]
        assert len(critics) == 2
        assert critics[0] is not critics[1]

    def test_mocos_positive_is_column_0_and_its_own_older_key_absent(self):
        """Every image is seen twice in two steps: with the queue's only other keys its own, nothing is to be told."""
        torch.manual_seed(0)
        learner = moco.build((1, 8, 8), widths=(4,), out=4, size=4, parts=2)
        images, rows = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
        for _ in range(2):
            assert float(learner.loss(images, rows).detach()) == 0.0  # an empty queue, and then own keys alone
            learner.after_step()
        assert float(learner.loss(images, rows + 1).detach()) > 0.0

    def test_a_system_says_what_its_number_may_be_called(self):
        learner = deep_infomax.build((3, 32, 32), widths=(4, 8), hidden=16, code=4, units=8)
        found = learner.bound(torch.rand(5, 3, 32, 32))
        assert found.cap == pytest.approx(math.log(5))
        learner = amdim.build((3, 32, 32), width=4, out=8, depth=1)
        assert learner.bound(torch.rand(5, 3, 32, 32)).cap == pytest.approx(math.log(5))

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: moco.build((3, 32, 32), widths=(4, 8), parts=1), "MoCo: 0.encoder.0.map1.1 is a BatchNorm2d"),
            (
                lambda: cpc.build((1, 8, 8), widths=(4, 8)).loss(torch.rand(2, 1, 8, 8), torch.arange(2)),
                "patch_grid: images have shape (2, 1, 8, 8), expected at least 12 pixels a side",
            ),
            (lambda: amdim.build((1, 28, 28)), "ReceptiveNet: size is 28 pixels, expected one of 32, 64"),
            (
                lambda: deep_infomax.build((3, 32, 32), widths=(4, 8), objective="jsd", miner=topk(1)).loss(
                    torch.rand(4, 3, 32, 32), torch.arange(4)
                ),
                "maximised: jensen_shannon weighs no negatives, but got the miner topk(k=1)",
            ),
        ],
    )
    def test_refusals(self, call, message):
        with refused(message):
            call()
