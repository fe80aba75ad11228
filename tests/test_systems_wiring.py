"""How the systems put their blocks together: one step of each against loops written from the papers.

Views are made certain, so that a loop knows what was seen; the blocks themselves have tests of their own.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.systems import amdim, cmc, cpc, moco
from contrastive.taps import groups_of
from miners import Bank


class Alternating(nn.Module):
    """Views that are certain: images as they are, then upside down, and again."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images if self.calls % 2 else images.flip(2)


def cosine(x, y):
    return float(x @ y / (x.norm() * y.norm()))


def told_from(positive, negatives):
    """Minus the log of the positive's share."""
    return math.log(sum(math.exp(score - positive) for score in (positive, *negatives)))


def mean(values):
    return sum(values) / len(values)


class TestMemoryBank:
    """CMC: view i against the keys of view j, and the other way round."""

    ROWS = torch.tensor([3, 0, 6, 2])

    @pytest.fixture
    def drawn(self, monkeypatch):
        """What is drawn, with the bank that drew it and the keys it held."""
        monkeypatch.setattr(cmc, "RandomView", lambda *args, **options: nn.Identity())
        found, draw = [], Bank.draw

        def recorded(bank, items, k):
            columns = draw(bank, items, k)
            found.append((bank, bank.keys.clone(), columns))
            return columns

        monkeypatch.setattr(Bank, "draw", recorded)
        return found

    def built(self, **options):
        learner = cmc.build(
            (3, 8, 8), widths=(4, 8), out=4, temperature=0.3, draws=20, items=7, bfloat16=False, **options
        )
        images = torch.rand(4, 3, 8, 8)
        encoders, heads, _, banks, _ = learner.modules
        split = torch.cat(cmc.lab(images), 1)
        z = [
            head(encoder(split[:, own])).detach()
            for encoder, head, own in zip(encoders, heads, ([0], [1, 2]), strict=True)
        ]
        return learner, images, banks, z

    def columns_of(self, drawn, banks):
        """The scores of every anchor of each term: its own key's, and those of what was drawn and is not its own."""
        assert [bank for bank, _, _ in drawn] == [banks[1], banks[0]]
        for _, _, columns in drawn:
            assert columns.shape == (4, 21)
            assert columns[:, 0].tolist() == self.ROWS.tolist()
            assert set(columns[:, 1:].flatten().tolist()) == set(range(7))  # any item, the own ones too
            assert any(row in columns[n, 1:] for n, row in enumerate(self.ROWS))
        return [(keys, columns.tolist()) for _, keys, columns in drawn]

    @pytest.mark.parametrize("binary", [False, True])
    def test_a_step_is_the_loop(self, drawn, binary):
        learner, images, banks, z = self.built(binary=binary)
        found = float(learner.loss(images, self.ROWS).detach())
        expected = 0.0
        for x, (keys, columns) in zip(z, self.columns_of(drawn, banks), strict=True):
            scored = []
            for n, own in enumerate(self.ROWS.tolist()):
                positive = cosine(x[n], keys[own]) / 0.3
                scored.append((positive, [cosine(x[n], keys[item]) / 0.3 for item in columns[n][1:] if item != own]))
            if not binary:
                expected += mean([told_from(positive, negatives) for positive, negatives in scored])
                continue
            every = [math.exp(score) for positive, negatives in scored for score in (positive, *negatives)]
            noise = mean(every) * mean([len(negatives) for _, negatives in scored])  # Z times m
            losses = []
            for positive, negatives in scored:
                drawn_together = [math.exp(score) / (math.exp(score) + noise) for score in (positive, *negatives)]
                losses.append(-math.log(drawn_together[0]) - sum(math.log(1 - p) for p in drawn_together[1:]))
            expected += mean(losses)
        assert found == pytest.approx(expected, rel=1e-5)

    def test_each_bank_moves_half_of_the_way_to_its_own_view_once_all_is_scored(self, drawn):
        learner, images, banks, z = self.built()
        before = [bank.keys.clone() for bank in banks]
        learner.loss(images, self.ROWS)
        assert all(torch.equal(keys, before[number]) for (_, keys, _), number in zip(drawn, (1, 0), strict=True))
        for bank, old, seen in zip(banks, before, z, strict=True):
            for item in range(7):
                expected = old[item]
                if item in self.ROWS:
                    now = seen[self.ROWS.tolist().index(item)]
                    expected = 0.5 * expected + 0.5 * now / now.norm()
                torch.testing.assert_close(bank.keys[item], expected / expected.norm())


class TestAmdim:
    """1 -> 5, 1 -> 7 and 5 -> 5, of each view in the other; the penalty is of the scores before the clip."""

    def test_a_step_is_the_loop(self, monkeypatch):
        monkeypatch.setattr(amdim, "RandomView", lambda *args, **options: Alternating())
        flips = []
        monkeypatch.setattr(amdim, "mirrored", lambda images: flips.append(images) or images.flip(3))
        monkeypatch.setattr(amdim, "random_place", lambda maps: maps[:, :, 1:2, 3:4])
        learner = amdim.build((3, 32, 32), width=4, out=8, depth=1, clip=20.0, penalty=5e-2, bfloat16=False)
        encoder, heads = learner.modules[:2]
        with torch.no_grad():
            encoder.encoder.encoder.f1[-1].weight.fill_(8.0)  # scores that the clip bends
            for tap in ("5", "7"):
                heads[tap].norm.weight.fill_(4.0)
        images = torch.rand(3, 3, 32, 32)
        found = float(learner.loss(images, torch.arange(3)).detach())
        assert len(flips) == 1  # both views are flipped alike

        views = []
        for view in (images.flip(3), images.flip(3).flip(2)):
            with torch.no_grad():
                maps = encoder(4 * (view - 0.5))
                views.append({"1": maps["1"], **{tap: heads[tap](maps[tap]) for tap in ("5", "7")}})

        def term(sources, targets):
            """Of three images; every place of the own one is told from all places of the two others."""
            raw = [[(s @ targets.flatten(2)[j]) / 8**0.5 for j in range(3)] for s in sources]
            squares = [float(score) ** 2 for row in raw for of_image in row for score in of_image]
            losses = []
            for i in range(3):
                clipped = [[20 * math.tanh(float(s) / 20) for s in of_image] for of_image in raw[i]]
                others = [s for j in range(3) if j != i for s in clipped[j]]
                losses.append(mean([told_from(own, others) for own in clipped[i]]))
            assert max(squares) > 20**2
            return mean(losses) + 5e-2 * mean(squares)

        expected = []
        for x, y in (views, views[::-1]):
            assert groups_of(y["7"]).bincount().tolist() == [49] * 3
            expected.append(
                term(x["1"][:, :, 0, 0], y["5"]) + term(x["1"][:, :, 0, 0], y["7"]) + term(x["5"][:, :, 1, 3], y["5"])
            )
        assert expected[0] != pytest.approx(expected[1], rel=1e-3)
        assert found == pytest.approx(mean(expected), rel=1e-5)


class TestCpc:
    """The context at row r knows rows 0 to r and is to find the patch at row r + k of its own column."""

    @pytest.mark.parametrize("below", [(1,), (2, 3), (6,)])
    def test_a_step_is_the_loop(self, monkeypatch, below):
        monkeypatch.setattr(cpc, "RandomView", lambda *args, **options: nn.Identity())
        learner = cpc.build((1, 16, 12), patch=4, stride=2, widths=(3, 4), layers=1, below=below)
        learner.modules.double()
        encoder, context, terms = learner.modules
        images = torch.rand(2, 1, 16, 12, dtype=torch.float64)
        found = float(learner.loss(images, torch.arange(2)).detach())

        rows, columns = 7, 5
        with torch.no_grad():
            z = torch.empty(2, 4, rows, columns, dtype=torch.float64)
            for n in range(2):
                for r in range(rows):
                    for c in range(columns):
                        patch = images[n : n + 1, :, 2 * r : 2 * r + 4, 2 * c : 2 * c + 4]
                        z[n, :, r, c] = encoder(4 * (patch - 0.5))[0]
            known = context(z)
        expected = 0.0
        for k, term in zip(below, terms, strict=True):
            matrix = term.critic.weight.detach()
            candidates = [z[n, :, r, c] for n in range(2) for r in range(k, rows) for c in range(columns)]
            losses = []
            for n in range(2):
                for r in range(rows - k):
                    for c in range(columns):
                        wanted = z[n, :, r + k, c]
                        guess = known[n, :, r, c] @ matrix
                        others = [float(guess @ other) for other in candidates if not torch.equal(other, wanted)]
                        assert len(others) == 2 * (rows - k) * columns - 1  # the own image's other patches too
                        losses.append(told_from(float(guess @ wanted), others))
            expected += mean(losses) / len(below)
        assert found == pytest.approx(expected, rel=1e-9)


class TestMoco:
    """Four steps of four images with a queue of ten keys: neither full at a step's end nor a multiple of the batch."""

    def test_steps_are_the_loop(self, monkeypatch):
        monkeypatch.setattr(moco, "RandomView", lambda *args, **options: Alternating())
        parted, shuffled = [], moco.in_shuffled_parts

        def recorded(encode, images, parts):
            keys = shuffled(encode, images, parts)
            parted.append((encode, images, parts, keys))
            return keys

        monkeypatch.setattr(moco, "in_shuffled_parts", recorded)
        learner = moco.build(
            (3, 8, 8), widths=(4, 8), out=4, temperature=0.5, size=10, decay=0.9, parts=2, bfloat16=False
        )
        query, key, queue, _ = learner.modules
        optimiser = torch.optim.SGD([p for p in learner.modules.parameters() if p.requires_grad], lr=0.5)
        data, old, absent = torch.rand(8, 3, 8, 8), [], 0
        for step, rows in enumerate(([0, 1, 2, 3], [2, 3, 4, 5], [7, 6, 5, 0], [1, 2, 3, 4])):
            images = data[rows]
            with torch.no_grad():
                q = query(4 * (images - 0.5))
            loss = learner.loss(images, torch.tensor(rows))
            encode, seen, parts, keys = parted[step]
            assert (encode, parts) == (key, 2)
            torch.testing.assert_close(seen, 4 * (images.flip(2) - 0.5))
            losses = []
            for n, row in enumerate(rows):
                negatives = [cosine(q[n], stored) / 0.5 for stored, item in old if item != row]
                absent += len(old) - len(negatives)
                losses.append(told_from(cosine(q[n], keys[n]) / 0.5, negatives))
            assert float(loss.detach()) == pytest.approx(mean(losses), rel=1e-4, abs=1e-6)
            old = [*old, *zip(keys, rows, strict=True)][-10:]  # once all is scored
            torch.testing.assert_close(queue.keys(), torch.stack([stored for stored, _ in old]))
            assert queue.ids().tolist() == [item for _, item in old]

            slow = [p.clone() for p in key.module.parameters()]
            optimiser.zero_grad()
            loss.backward()
            assert all(p.grad is None for p in key.parameters())
            optimiser.step()
            assert all(map(torch.equal, slow, key.module.parameters()))
            learner.after_step()
            for before, now, fast in zip(slow, key.module.parameters(), query.parameters(), strict=True):
                torch.testing.assert_close(now, 0.9 * before + 0.1 * fast.detach() if step else fast.detach())
        assert absent == 9  # two, two and five: keys of the anchor's own image

    def test_every_part_of_the_keys_has_batch_statistics_of_its_own(self, monkeypatch):
        """Of keys in two parts, each is as if the other had not been there."""
        monkeypatch.setattr(moco, "RandomView", lambda *args, **options: nn.Identity())
        learner = moco.build((3, 8, 8), widths=(4, 8), out=4, size=8, parts=2, bfloat16=False)
        key, queue = learner.modules[1:3]
        images = torch.rand(6, 3, 8, 8)
        torch.manual_seed(0)
        learner.loss(images, torch.arange(6))
        torch.manual_seed(0)
        order = torch.randperm(6)
        assert order.tolist() != list(range(6))
        for members in (order[:3], order[3:]):
            with torch.no_grad():
                torch.testing.assert_close(queue.keys()[members], key(4 * (images[members] - 0.5)))
        assert not torch.allclose(queue.keys(), F.normalize(queue.keys(), dim=1))
