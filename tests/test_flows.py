"""Flows: the inverse is exact, the Jacobian is what the couplings say, the start is what the paper says."""

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
