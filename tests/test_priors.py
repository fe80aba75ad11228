"""Prior matching: by loops from the paper's formulas, which loss reaches whom, and whether codes become uniform."""

import math

import pytest
import torch
from references import refused
from torch import nn
from torch.func import functional_call

from contrastive.encoders import MLP
from contrastive.priors import PriorMatching, gradient_penalty


class Quadratic(nn.Module):
    """A discriminator whose slope is known: a x.x + b x_0."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))

    def forward(self, x):
        return (self.a * x.square().sum(1) + self.b * x[:, 0])[:, None]


def loops(a, b, codes, uniform, penalty):
    """Both losses of every row, number by number."""

    def logit(row):
        return a * sum(v * v for v in row) + b * row[0]

    def slope(row):
        return sum((2 * a * v + (b if i == 0 else 0)) ** 2 for i, v in enumerate(row))

    encoder, discriminator = [], []
    for y, u in zip(codes.tolist(), uniform.tolist(), strict=True):
        z = [1 / (1 + math.exp(-v)) for v in y]
        probability = [1 / (1 + math.exp(-logit(row))) for row in (z, u)]
        encoder.append(-math.log(probability[0]))
        discriminator.append(
            -math.log(probability[1]) - math.log(1 - probability[0]) + penalty / 2 * (slope(u) + slope(z))
        )
    return encoder, discriminator


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5])
def test_both_losses_are_the_formulas(penalty):
    codes = 3 * torch.randn(6, 4, dtype=torch.float64)
    torch.manual_seed(1)
    uniform = torch.rand_like(codes)
    torch.manual_seed(1)
    found = PriorMatching(Quadratic(0.7, -1.2), penalty=penalty)(codes)
    for values, expected in zip(found, loops(0.7, -1.2, codes, uniform, penalty), strict=True):
        assert values.tolist() == pytest.approx(expected, abs=1e-12)


def test_gradients_by_differences():
    codes, (a, b) = torch.randn(5, 3), torch.tensor([0.7, -1.2], dtype=torch.float64)
    matching = PriorMatching(Quadratic(0.7, -1.2))

    def losses(which):
        def of(codes, a, b):
            torch.manual_seed(1)  # the draws of the prior
            return functional_call(matching, {"discriminator.a": a, "discriminator.b": b}, (codes,))[which]

        return of

    codes = codes.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: losses(0)(y, a, b), codes)
    weights = a.clone().requires_grad_(), b.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *w: losses(1)(codes.detach(), *w), weights)  # the penalty's slope, too


def test_each_loss_reaches_its_own_side_only():
    codes = torch.randn(5, 3, requires_grad=True)
    matching = PriorMatching(MLP(3, hidden=(8,), out=1, batch_norm=False))
    encoder_loss, discriminator_loss = matching(codes)
    encoder_loss.mean().backward()
    assert codes.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in matching.parameters())
    codes.grad = None
    discriminator_loss.mean().backward()
    assert codes.grad is None
    assert all(weight.grad is not None for weight in matching.discriminator.parameters())


def test_codes_become_uniform():
    codes = nn.Parameter(2.0 + 0.1 * torch.randn(128, 2))
    matching = PriorMatching(MLP(2, hidden=(32, 32), out=1, batch_norm=False))
    optimiser = torch.optim.Adam([{"params": [codes], "lr": 0.02}, {"params": matching.parameters(), "lr": 5e-3}])

    def distance():
        """Kolmogorov and Smirnov's, the larger of the two columns."""
        ordered = torch.sigmoid(codes.detach()).sort(0).values
        grid = (torch.arange(128) + 0.5) / 128
        return float((ordered - grid[:, None]).abs().max())

    assert distance() > 0.7
    for _ in range(300):
        encoder_loss, discriminator_loss = matching(codes)
        optimiser.zero_grad()
        (encoder_loss.mean() + discriminator_loss.mean()).backward()
        optimiser.step()
    assert distance() < 0.25


def test_the_divergence_is_bounded_from_below():
    # Codes whose sigmoids are uniform on [0, 1/2]: the densities are 2 and 1 there, 0 and 1 beyond.
    # Their mean: 3/2 and 1/2.
    twice = math.log(2 / 1.5) + 0.5 * math.log(1 / 1.5) + 0.5 * math.log(1 / 0.5)
    codes = torch.logit(torch.rand(20_000, 1, dtype=torch.float64) / 2)

    class Best(nn.Module):
        def forward(self, x):  # log of prior over codes; far from 0 where the codes never are
            return torch.where(x < 0.5, -math.log(2), 30.0)

    best = math.log(4) - float(PriorMatching(Best(), penalty=0.0)(codes)[1].mean())
    assert best == pytest.approx(twice, abs=0.02)
    for seed in range(5):
        torch.manual_seed(seed)
        other = PriorMatching(MLP(1, hidden=(4,), out=1, batch_norm=False).double(), penalty=0.0)
        assert math.log(4) - float(other(codes)[1].detach().mean()) < best


def test_extreme_codes_stay_finite():
    codes = torch.tensor([[1e4, -1e4]], requires_grad=True)
    encoder_loss, discriminator_loss = PriorMatching(nn.Linear(2, 1))(codes)
    (encoder_loss + discriminator_loss).sum().backward()
    assert bool(torch.isfinite(codes.grad).all())


def test_without_gradients_the_penalty_is_the_same():
    codes, matching = torch.randn(5, 3), PriorMatching(MLP(3, hidden=(8,), out=1, batch_norm=False))
    torch.manual_seed(1)
    expected = matching(codes)[1]
    torch.manual_seed(1)
    with torch.no_grad():
        assert torch.equal(matching(codes)[1], expected)


def test_gradient_penalty_of_images():
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    found = gradient_penalty(lambda x: x.square().sum((1, 2, 3)), x)
    assert found.tolist() == pytest.approx([4 * float(row.square().sum()) for row in x])


@pytest.mark.parametrize("penalty", [-1.0, math.inf, math.nan])
def test_a_penalty_that_is_none_is_refused(penalty):
    with pytest.raises(ValueError, match="penalty is"):
        PriorMatching(nn.Linear(2, 1), penalty=penalty)


def test_batch_norm_is_refused_for_it_hides_the_difference():
    """Shown on codes far from the prior: normalised apart, both have the same mean."""
    codes, prior = 5 + 0.1 * torch.randn(500, 1).double(), torch.rand(500, 1).double()
    norm = nn.BatchNorm1d(1, affine=False).double()
    assert float(torch.sigmoid(codes).mean() - prior.mean()) > 0.4
    torch.testing.assert_close(norm(torch.sigmoid(codes)).mean(), norm(prior).mean(), atol=1e-5, rtol=0)
    with refused("PriorMatching: 1 is a BatchNorm1d; codes and draws of the prior are normalised apart", "LayerNorm"):
        PriorMatching(nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    PriorMatching(nn.Sequential(nn.Linear(1, 4), nn.LayerNorm(4), nn.Linear(4, 1)))(codes.float())


def test_what_does_not_fit_is_refused():
    with refused("PriorMatching", "(2, 3, 4)", "expected floating-point [n, d]"):
        PriorMatching(nn.Linear(4, 1))(torch.zeros(2, 3, 4))
    with refused("PriorMatching", "int64"):
        PriorMatching(nn.Linear(3, 1))(torch.zeros(2, 3, dtype=torch.int64))
    with refused("the discriminator gave shape (5, 2)", "expected [5, 1]"):
        PriorMatching(nn.Linear(3, 2))(torch.zeros(5, 3))
