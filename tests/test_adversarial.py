"""Virtual adversarial training: beside a loop with finite differences, and what must stay untouched."""

import math

import pytest
import torch
from references import refused
from torch import nn

from contrastive.adversarial import untracked_statistics, virtual_adversarial_loss, virtual_adversarial_view
from contrastive.assignments import divergence
from contrastive.norms import global_batch_norms


def model(*, width=3, classes=4, norm=False):
    layers = [nn.Linear(width, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Tanh(), nn.Linear(8, classes)]
    return nn.Sequential(*layers).double()


def looped_direction(net, row, start, xi, iterations):
    """Miyato et al. (2018), algorithm 1 and eq. 12, for one row: the gradient by central differences."""

    def distance(d):
        with torch.no_grad():
            return float(divergence(net(row[None]), net((row + xi * d)[None])))

    d = start / start.norm()
    for _ in range(iterations):
        slope = torch.zeros_like(d)
        for i in range(len(d)):
            step = torch.zeros_like(d)
            step[i] = 1e-5
            slope[i] = (distance(d + step) - distance(d - step)) / 2e-5
        d = slope / slope.norm()
    return d


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("xi", [10.0, 0.1])
def test_the_view_is_that_of_the_loop(xi, iterations):
    net, x = model(), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    radius = torch.linspace(0.1, 2.0, 5, dtype=torch.float64)
    torch.manual_seed(1)
    starts = torch.randn_like(x)
    torch.manual_seed(1)
    found = virtual_adversarial_view(net, x, net(x), radius=radius, xi=xi, iterations=iterations)
    assert not found.requires_grad
    for row, view, start, epsilon in zip(x.detach(), found, starts, radius, strict=True):
        expected = row + epsilon * looped_direction(net, row, start, xi, iterations)
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_the_direction_is_worse_than_a_random_one():
    net, x = model(), torch.randn(200, 3, dtype=torch.float64)
    net[0].weight.data[:, 0] *= 20  # one input matters
    logits = net(x).detach()
    found = divergence(logits, net(virtual_adversarial_view(net, x, logits, radius=0.1, xi=1e-3, iterations=3)))
    random = divergence(logits, net(x + 0.1 * nn.functional.normalize(torch.randn_like(x), dim=1)))
    assert found.mean() > 2 * random.mean()


def test_the_loss_is_the_divergence_at_the_view_and_its_gradient_that_of_the_view_alone():
    net, x = model(), torch.randn(6, 3, dtype=torch.float64)
    logits = net(x)
    torch.manual_seed(1)
    view = virtual_adversarial_view(net, x, logits, radius=0.7)
    expected = divergence(logits.detach(), net(view))
    torch.manual_seed(1)
    found = virtual_adversarial_loss(net, x, logits, radius=0.7)
    assert torch.equal(found, expected)
    slopes = [torch.autograd.grad(loss.mean(), list(net.parameters())) for loss in (found, expected)]
    for a, b in zip(*slopes, strict=True):
        assert torch.equal(a, b)


def test_images_have_one_direction_each():
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, 3))
    x = torch.randn(4, 2, 3, 3)
    view = virtual_adversarial_view(net, x, net(x), radius=torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert (view - x).flatten(1).norm(dim=1).tolist() == pytest.approx([0.0, 1.0, 2.0, 3.0], rel=1e-5)


def test_gradients_too_small_to_be_squared_have_a_direction():
    net = nn.Linear(3, 2)
    nn.init.normal_(net.weight, std=1e-16)
    x = torch.randn(4, 3)
    view = virtual_adversarial_view(net, x, net(x), radius=1.0, xi=1e-3)
    # The divergence is the square of this and less than any float32 beside 1: a direction or none, but never NaN.
    lengths = (view - x).norm(dim=1)
    assert bool(((lengths < 1e-6) | ((lengths - 1).abs() < 1e-5)).all())


def test_a_model_that_does_not_change_leaves_the_input_where_it_is():
    net = nn.Linear(3, 2)
    nn.init.zeros_(net.weight)
    x = torch.randn(4, 3)
    assert torch.equal(virtual_adversarial_view(net, x, net(x), radius=1.0), x)
    assert virtual_adversarial_loss(net, x, net(x), radius=1.0).tolist() == [0.0] * 4


def test_without_gradients_it_evaluates():
    net, x = model(), torch.randn(4, 3, dtype=torch.float64)
    with torch.no_grad():
        assert bool((virtual_adversarial_loss(net, x, net(x), radius=1.0) > 0).all())


class TestStatistics:
    def test_both_passes_leave_them_alone_and_use_the_batchs(self):
        net, x = model(norm=True), torch.randn(8, 3, dtype=torch.float64)
        logits = net(x)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with untracked_statistics(net):
            assert torch.equal(net(x), logits)  # those of the batch
        virtual_adversarial_loss(net, x, logits, radius=0.5).mean().backward()
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name]), name
        net(x)
        assert not torch.equal(net[1].running_mean, before["1.running_mean"])  # switched on again

    def test_evaluation_mode_stays_one(self):
        net, x = model(norm=True).eval(), torch.randn(8, 3, dtype=torch.float64)
        with untracked_statistics(net):
            inside = net(x)
        assert torch.equal(inside, net(x))

    def test_they_are_tracked_again_after_an_error(self):
        net = model(norm=True)
        with pytest.raises(ZeroDivisionError), untracked_statistics(net):
            raise ZeroDivisionError
        assert net[1].track_running_stats

    @pytest.mark.parametrize("world", [1, 2])
    def test_those_of_all_ranks_are_among_them(self, monkeypatch, world):
        monkeypatch.setattr("contrastive.norms.world_size", lambda: world)
        monkeypatch.setattr("contrastive.norms.sum_over_ranks", lambda value: value)  # the other rank has no rows
        net = global_batch_norms(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        with untracked_statistics(net):
            net(torch.randn(4, 2) + 100)
        assert torch.equal(net[1].running_mean, torch.zeros(2))
        net(torch.randn(4, 2) + 100)
        assert not torch.equal(net[1].running_mean, torch.zeros(2))

    def test_norms_without_statistics_stay_so(self):
        norm = nn.BatchNorm1d(2, track_running_stats=False)
        with untracked_statistics(norm):
            norm(torch.randn(4, 2))
        assert not norm.track_running_stats


def test_refusals():
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    for options in ({"xi": 0.0}, {"xi": math.nan}, {"iterations": 0}):
        with refused("virtual_adversarial_view", "expected both positive"):
            virtual_adversarial_view(net, x, net(x), radius=1.0, **options)
    with refused("virtual_adversarial_view", "radius has shape (3,)", "expected [4] or a number"):
        virtual_adversarial_view(net, x, net(x), radius=torch.ones(3))
