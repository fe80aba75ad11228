"""Flows: the inverse is exact, the Jacobian is what the couplings say, the start is what the paper says."""

import math

import pytest
import torch

from contrastive.encoders import MLP
from contrastive.flows import RealNVP
from contrastive.geometry import jacobian_condition_numbers


def scrambled(flow, std):
    """As after training: weights far from the start."""
    for p in flow.requires_grad_(False).parameters():
        torch.nn.init.normal_(p, std=std)
    return flow


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dim", [2, 8, 392])
def test_inverse_is_exact(affine, dim):
    flow = scrambled(RealNVP(dim, affine=affine, hidden=(32, 32)).double(), 0.02)
    x = torch.rand(16, dim, dtype=torch.float64)
    z = flow(x)
    assert float((flow.inverse(z) - x).abs().max()) < 1e-9
    assert float((flow(flow.inverse(x)) - x).abs().max()) < 1e-9
    assert float((z - x).abs().max()) > 1e-3


@pytest.mark.parametrize("affine", [False, True])
def test_determinant_of_the_jacobian(affine):
    """Additive couplings keep volumes; the others multiply them by their scales."""
    flow = scrambled(RealNVP(6, couplings=4, affine=affine, hidden=(8,)).double(), 0.5)
    x = torch.randn(6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda row: flow(row[None])[0], x)
    expected, row = 0.0, x[None]
    for network, permutation in zip(flow.networks, flow.permutations, strict=True):
        kept, moved = row.chunk(2, 1)
        values = network(kept)
        shift, scale = values[:, :3], torch.ones(1, 3)
        if affine:
            scale = 1e-7 + torch.nn.functional.softplus(values[:, 3:])
        expected += float(scale.log().sum())
        row = torch.cat([kept, moved * scale + shift], 1)[:, permutation]
    assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(expected, abs=1e-9)


def test_it_starts_as_a_permutation():
    flow = RealNVP(392)
    assert len(flow.networks) == 30
    assert sum(p.numel() for p in flow.parameters()) == 30 * (2 * 196 * 512 + 512**2 + 512 + 512 + 196)
    flow.requires_grad_(False)
    x = torch.rand(8, 392)
    order = torch.arange(392)
    for permutation in flow.permutations:
        order = order[permutation]
    assert torch.allclose(flow(x), x[:, order], atol=1e-5)


def test_couplings_that_scale_start_at_log_2():
    flow = RealNVP(392, affine=True).requires_grad_(False)
    assert sum(p.numel() for p in flow.parameters()) == 30 * (196 * 512 + 512**2 + 512 + 512 + 512 * 392 + 392)
    x, scale = torch.rand(8, 392), torch.ones(392)
    order = torch.arange(392)
    for permutation in flow.permutations:
        scale[196:] *= math.log(2)
        scale, order = scale[permutation], order[permutation]
    torch.testing.assert_close(flow(x), x[:, order] * scale, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("affine", [False, True])
def test_weights_start_from_the_papers_truncated_normal(affine):
    named = dict(RealNVP(392, couplings=3, affine=affine).requires_grad_(False).networks.named_parameters())
    kernels = torch.cat([p.flatten() for name, p in named.items() if name.endswith("weight")])
    assert float(kernels.abs().max()) <= 2e-4
    assert float(kernels.std()) == pytest.approx(0.8796e-4, rel=0.01)  # what a cut at two deviations leaves of 1e-4
    assert not any(p.any() for name, p in named.items() if name.endswith("bias"))


def test_permutations_are_saved_and_seeded():
    torch.manual_seed(1)
    first = RealNVP(10, couplings=2, hidden=(4,))
    other = RealNVP(10, couplings=2, hidden=(4,))
    assert not torch.equal(first.permutations, other.permutations)
    other.load_state_dict(first.state_dict())
    x = torch.rand(3, 10)
    assert torch.equal(first(x), other(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RealNVP(5), "RealNVP: dim is 5, expected an even number"),
        (lambda: RealNVP(4, couplings=0), "RealNVP: couplings is 0"),
        (lambda: RealNVP(4)(torch.zeros(2, 6)), r"RealNVP: got rows of shape \(2, 6\), expected \[n, 4\]"),
        (lambda: RealNVP(4).inverse(torch.zeros(2, 6)), r"expected \[n, 4\]"),
        (lambda: jacobian_condition_numbers(torch.nn.Identity(), torch.zeros(2, 2), chunk=0), "chunk is 0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_condition_numbers_agree_with_autograd():
    net = MLP(5, hidden=(5, 5), out=5, batch_norm=False, skips=True).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    found = jacobian_condition_numbers(net, x, chunk=3)
    for row, value in zip(x, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: net(r[None])[0], row)
        assert float(value) == pytest.approx(float(torch.linalg.cond(jacobian)), rel=1e-9)


class TestGradient:
    """Written out by hand, beside that of the operations of torch."""

    @pytest.mark.parametrize("affine", [False, True])
    @pytest.mark.parametrize("hidden", [(), (5,), (5, 7)])
    def test_it_is_that_of_the_plain_form(self, affine, hidden):
        flow = scrambled(RealNVP(6, couplings=3, hidden=hidden, affine=affine).double(), 0.7).requires_grad_(True)
        x = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
        inputs, upstream = [x, *flow.parameters()], torch.randn(9, 6, dtype=torch.float64)
        fast, plain = flow(x), flow._plain(x)
        assert "Handwritten" in fast.grad_fn.name()
        assert torch.equal(fast, plain)
        found, expected = (torch.autograd.grad(z, inputs, upstream) for z in (fast, plain))
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("affine", [False, True])
    def test_second_derivatives(self, affine):
        flow = scrambled(RealNVP(4, couplings=2, hidden=(5,), affine=affine).double(), 0.7).requires_grad_(True)
        x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

        def twice(z):
            (slope,) = torch.autograd.grad(z.sin().sum(), x, create_graph=True)
            return torch.autograd.grad(slope.square().sum(), [x, *flow.networks[0].parameters()])

        for a, b in zip(twice(flow(x)), twice(flow._plain(x)), strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)

    @pytest.mark.parametrize("affine", [False, True])
    @pytest.mark.parametrize("hidden", [(), (40,), (40, 30)])
    def test_within_autocast_networks_are_rounded_and_additions_are_not(self, affine, hidden):
        flow = scrambled(RealNVP(64, couplings=3, hidden=hidden, affine=affine), 0.2).requires_grad_(True)
        x, upstream = torch.randn(32, 64, requires_grad=True), torch.randn(32, 64)
        inputs = [x, *flow.parameters()]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fast, plain = flow(x), flow._plain(x)
        assert "Handwritten" in fast.grad_fn.name()
        assert fast.dtype == torch.float32
        exact = flow._plain(x)
        found, expected, true = (torch.autograd.grad(z, inputs, upstream) for z in (fast, plain, exact))
        for ours, theirs, right in zip((fast, *found), (plain, *expected), (exact, *true), strict=True):
            largest, wrong = float(right.detach().abs().max()), float((theirs - right).detach().abs().max())
            assert ours.dtype == torch.float32
            assert 1e-6 * largest < float((ours - right).detach().abs().max()) < max(1.5 * wrong, 0.01 * largest)
            assert float((ours - theirs).detach().abs().max()) < 0.03 * largest

    def test_second_derivatives_within_autocast(self):
        flow = scrambled(RealNVP(16, couplings=2, hidden=(8,)), 0.3).requires_grad_(True)
        x = torch.randn(8, 16, requires_grad=True)

        def twice(how):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                z = how(x)
            (slope,) = torch.autograd.grad(z.sin().sum(), x, create_graph=True)
            return torch.autograd.grad(slope.square().sum(), x)[0]

        # What is differentiated once more is computed again, within autocast again: in float32 it is off by 3e-3.
        assert torch.allclose(twice(flow), twice(flow._plain), rtol=1e-5, atol=1e-6)

    def test_where_it_is_not_used(self):
        flow, x = RealNVP(4, couplings=2, hidden=(5,)), torch.randn(3, 4)
        with torch.no_grad():
            assert flow(x).grad_fn is None
        jacobian = torch.func.jacrev(lambda row: flow(row[None])[0])(x[0])
        by_autograd = torch.autograd.functional.jacobian(lambda row: flow(row[None])[0], x[0])
        assert torch.allclose(jacobian, by_autograd, atol=1e-6)
        torch.nn.utils.parametrizations.weight_norm(flow.networks[0].layers[0])
        assert "Handwritten" not in flow(x).grad_fn.name()

    def test_frozen_weights_and_frozen_inputs(self):
        flow, x = RealNVP(4, couplings=2, hidden=(5,)), torch.randn(3, 4)
        flow(x).sum().backward()
        assert all(p.grad is not None for p in flow.parameters())
        flow.requires_grad_(False)
        assert not flow(x).requires_grad
        x.requires_grad_(True)
        flow(x).sum().backward()
        assert x.grad.abs().min() > 0
