r"""Invertible encoders: no information is lost, whatever they are trained for.

>>> flow = RealNVP(8, couplings=3, hidden=(16,), std=0.1).double()
>>> x = torch.rand(5, 8, dtype=torch.float64)
>>> bool((flow.inverse(flow(x)) - x).abs().max() < 1e-12)
True
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from contrastive import _handwritten
from contrastive._handwritten import writable
from contrastive.encoders import MLP

__all__ = ["RealNVP"]

# Below it a coupling that scales has no inverse in float32; softplus alone tends to 0.
_SMALLEST_SCALE = 1e-7


class RealNVP(nn.Module):
    r"""Creates a stack of coupling layers, each followed by a fixed random permutation P of the columns.

    .. math::
        [a, b] \mapsto P\, [a,\; b \odot \sigma(a) + t(a)], \qquad
        \sigma = 10^{-7} + \operatorname{softplus}(r)

    with a the first half of the columns and :math:`[t, r]` an MLP of a; additive couplings have :math:`\sigma = 1`. At
    the start weights are tiny, so additive couplings begin as permutations, and the others scale by log 2.

    Arguments:
        dim: width of the input and of the features, even.
        couplings: number of layers.
        hidden: units of each layer of the MLPs.
        affine: whether couplings scale, too.
        std: of the truncated normal that the weights start from, biases at zero; permutations and weights are drawn
            from torch's global generator.

    Raises:
        ValueError: for an odd width or one below 2, and fewer than 1 coupling.

    Example:
        >>> RealNVP(6, couplings=2, hidden=(4,))(torch.zeros(3, 6)).shape
        torch.Size([3, 6])

    References:
        | NICE: Non-linear Independent Components Estimation (Dinh et al., 2015)
        | https://arxiv.org/abs/1410.8516
        | Density Estimation Using Real NVP (Dinh et al., 2017)
        | https://arxiv.org/abs/1605.08803
    """

    def __init__(
        self,
        dim: int,
        *,
        couplings: int = 30,
        hidden: Sequence[int] = (512, 512),
        affine: bool = False,
        std: float = 1e-4,
    ) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"RealNVP: dim is {dim}, expected an even number of at least 2")
        if couplings < 1:
            raise ValueError(f"RealNVP: couplings is {couplings}, expected at least 1")
        half = dim // 2
        self.networks = nn.ModuleList(
            MLP(half, hidden=hidden, out=half * (1 + affine), batch_norm=False, std=std) for _ in range(couplings)
        )
        self.permutations: Tensor
        self.register_buffer("permutations", torch.stack([torch.randperm(dim) for _ in range(couplings)]))
        self.affine = affine
        self.dim = self.out_dim = dim

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n dim"]:
        """Flattens and maps every row.

        Raises:
            ValueError: for rows of another width.
        """
        x = self._checked(x.flatten(1))
        # Between two of them stands a ReLU. What somebody put in their place is not known here.
        linear: list[Any] = [layer for network in self.networks for layer in cast(MLP, network).layers[::2]]
        if (
            not writable(x, autocast=True)
            or any(type(layer) is not nn.Linear for layer in linear)
            or x.dtype != linear[0].weight.dtype
        ):
            return self._plain(x)
        weights = [p for layer in linear for p in (layer.weight, layer.bias)]
        device = x.device.type
        rounds = torch.is_autocast_enabled(device)
        kind = torch.get_autocast_dtype(device) if rounds else x.dtype
        again = torch.autocast(device, kind, enabled=rounds)  # as a decorator: the replay is later, outside of it
        with torch.autocast(device, enabled=False):
            return _handwritten.apply(partial(self._value, kind), self._slopes, again(self._replayed), x, *weights)

    def _plain(self, x: Tensor) -> Tensor:
        for network, permutation in zip(self.networks, self.permutations, strict=True):
            x = self._coupled(x, network, permutation)
        return x

    def _coupled(self, x: Tensor, network: Callable[[Tensor], Tensor], permutation: Tensor) -> Tensor:
        kept, moved = x.chunk(2, 1)
        shift, scale = self._parts(network(kept).to(x.dtype))  # autocast's are narrower
        moved = moved + shift if scale is None else torch.addcmul(shift, moved, scale)
        return torch.cat([kept, moved], 1).index_select(1, permutation)  # nine times as fast as [:, permutation]

    def inverse(self, z: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        """Maps features back to the flattened input: exactly, but for rounding.

        Arguments:
            z: what the encoder returned.

        Returns:
            The input. Rounding grows with the scales that are undone: in float64 and at the start it is below 1e-12.

        Raises:
            ValueError: for rows of another width.
        """
        z = self._checked(z)
        for network, permutation in zip(reversed(self.networks), self.permutations.flip(0), strict=True):
            kept, moved = z.index_select(1, permutation.argsort()).chunk(2, 1)
            shift, scale = self._parts(network(kept).to(z.dtype))
            moved = moved - shift if scale is None else (moved - shift) / scale
            z = torch.cat([kept, moved], 1)
        return z

    def _parts(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.affine:
            return values, None
        shift, raw = values.chunk(2, 1)
        return shift, _SMALLEST_SCALE + F.softplus(raw)

    # The gradient written out: additions in place, no node a layer, and within autocast weights are rounded once for
    # the way there and back. The products are all that is left.

    def _by_coupling(self, weights: Sequence[Tensor]) -> Iterator[tuple[list[tuple[Tensor, Tensor]], Tensor]]:
        """Of every coupling, weight and bias of each layer, and the permutation."""
        layers = list(zip(weights[::2], weights[1::2], strict=True))
        each = len(layers) // len(self.networks)
        for i, permutation in enumerate(self.permutations):
            yield layers[i * each : (i + 1) * each], permutation

    def _replayed(self, x: Tensor, *weights: Tensor) -> Tensor:
        for layers, permutation in self._by_coupling(weights):
            x = self._coupled(x, partial(_mapped, layers), permutation)
        return x

    def _value(self, kind: torch.dtype, x: Tensor, *weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Networks are computed in `kind`, all else in the type of x."""
        kept: list[Tensor] = []
        for layers, permutation in self._by_coupling([weight.to(kind) for weight in weights]):
            still, moved = x.chunk(2, 1)
            unit = still.to(kind)
            kept.append(unit)
            for weight, bias in layers[:-1]:
                unit = torch.addmm(bias, unit, weight.T).relu_()
                kept.append(unit)
            values = torch.addmm(layers[-1][1], unit, layers[-1][0].T).to(x.dtype)
            if self.affine:
                shift, scale = self._parts(values)
                kept += [moved, values]
                moved = torch.addcmul(shift, moved, cast(Tensor, scale))
            else:
                moved = values.add_(moved)
            kept += [weight for weight, _ in layers]
            x = torch.cat([still, moved], 1).index_select(1, permutation)
        return x, kept

    def _slopes(self, slope: Tensor, inputs: Sequence[Tensor], kept: Sequence[Tensor]) -> list[Tensor]:
        slopes: list[Tensor] = []  # from the last weight to the first, then of x
        left, back, full = list(kept), self.permutations.argsort(1), slope.dtype
        for place, (layers, _) in reversed(list(enumerate(self._by_coupling(inputs[1:])))):
            still, moves = slope.index_select(1, back[place]).chunk(2, 1)
            backward = [left.pop() for _ in layers]
            of_unit = moves
            if self.affine:
                values, moved = left.pop(), left.pop()
                raw = values.chunk(2, 1)[1]
                of_unit = torch.cat([moves, moves * moved * raw.sigmoid()], 1)
                moves = moves * (_SMALLEST_SCALE + F.softplus(raw))
            of_unit = of_unit.to(backward[0].dtype)
            for weight in backward[:-1]:
                unit = left.pop()
                slopes += [of_unit.sum(0, dtype=full), (of_unit.T @ unit).to(full)]
                of_unit = of_unit @ weight
                torch.ops.aten.threshold_backward.grad_input(of_unit, unit, 0, grad_input=of_unit)
            slopes += [of_unit.sum(0, dtype=full), (of_unit.T @ left.pop()).to(full)]
            slope = torch.cat([still + of_unit @ backward[-1], moves], 1)
        return [slope, *reversed(slopes)]

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"RealNVP: got rows of shape {tuple(x.shape)}, expected [n, {self.dim}]")
        return x


def _mapped(layers: Sequence[tuple[Tensor, Tensor]], unit: Tensor) -> Tensor:
    for weight, bias in layers[:-1]:
        unit = F.linear(unit, weight, bias).relu()
    return F.linear(unit, *layers[-1])
