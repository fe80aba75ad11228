"""Scores of lists are entries of the matrix, for every kind of critic, in value and gradient."""

import pytest
import torch
from references import refused
from torch import nn

from contrastive import Bilinear, Concat, Cosine, InnerProduct, NegativeSquaredDistance, Separable, list_scores

COLUMNS = torch.tensor([[0, 4, 4, 2], [1, 0, 3, 3], [2, 2, 2, 2]])


class Distance(nn.Module):
    """Known to nobody: neither factors nor a split."""

    def forward(self, x, y):
        return -torch.cdist(x, y)


CRITICS = [
    InnerProduct(0.5),
    Cosine(0.2, learnable=True),
    NegativeSquaredDistance(2.0),
    Bilinear(6),
    Separable(6, hidden=5, out=4),
    Concat(6, hidden=5, layers=2),
    Distance(),
]


def pairs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, 6, generator=generator, dtype=torch.float64).to(dtype) for n in (3, 5))


@pytest.mark.parametrize("critic", CRITICS, ids=lambda critic: type(critic).__name__)
class TestEveryCritic:
    def test_is_gathered_from_the_matrix(self, critic):
        critic = critic.double()
        x, y = (z.requires_grad_() for z in pairs())
        weights = torch.randn(3, 4, dtype=torch.float64)
        inputs = [x, y, *critic.parameters()]
        found, expected = list_scores(critic, x, y, COLUMNS), critic(x, y).gather(1, COLUMNS)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        gradients = (torch.autograd.grad((weights * scores).sum(), inputs) for scores in (found, expected))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("columns", [torch.zeros(3, 0, dtype=torch.int64), COLUMNS[:, :1]])
    def test_of_any_length(self, critic, columns):
        x, y = pairs()
        assert list_scores(critic.double(), x, y, columns).shape == columns.shape

    def test_autocast_keeps_float32(self, critic):
        x, y = pairs(torch.float32)
        critic = critic.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = list_scores(critic, x, y, COLUMNS)
        assert found.dtype == torch.float32


def test_candidates_of_an_anchors_own():
    x, _ = pairs()
    own = torch.randn(3, 4, 6, dtype=torch.float64)
    found = list_scores(Cosine(0.1), x, own.flatten(0, 1), torch.arange(12).view(3, 4))
    expected = torch.stack([Cosine(0.1)(x[i : i + 1], own[i])[0] for i in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_split_of_ones_own_may_score_in_half_precision():
    class Half(nn.Module):
        def split(self, x, y):
            return x, y

        def pairs(self, x, y):
            return (x[:, None] * y).sum(-1).bfloat16()

    x, y = pairs(torch.float32)
    assert list_scores(Half(), x, y, COLUMNS).dtype == torch.float32


def test_columns_are_checked():
    x, y = pairs()
    for columns, words in (
        (COLUMNS[:2], "expected [3, k] and torch.int64"),
        (COLUMNS[0], "expected [3, k]"),
        (COLUMNS.int(), "torch.int32"),
        (COLUMNS + 1, "columns lie in [1, 5], expected [0, 4]"),
        (COLUMNS - 1, "columns lie in [-1, 3]"),
    ):
        with refused("list_scores", words):
            list_scores(Cosine(), x, y, columns)
