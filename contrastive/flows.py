r"""Invertible encoders: no information is lost, whatever they are trained for.

>>> flow = RealNVP(8, couplings=3, hidden=(16,), std=0.1).double()
>>> x = torch.rand(5, 8, dtype=torch.float64)
>>> bool((flow.inverse(flow(x)) - x).abs().max() < 1e-12)
True
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

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
        for network, permutation in zip(self.networks, self.permutations, strict=True):
            kept, moved = x.chunk(2, 1)
            shift, scale = self._parts(network(kept))
            moved = moved + shift if scale is None else torch.addcmul(shift, moved, scale)
            x = torch.cat([kept, moved], 1)[:, permutation]
        return x

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
            kept, moved = z[:, permutation.argsort()].chunk(2, 1)
            shift, scale = self._parts(network(kept))
            moved = moved - shift if scale is None else (moved - shift) / scale
            z = torch.cat([kept, moved], 1)
        return z

    def _parts(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.affine:
            return values, None
        shift, raw = values.chunk(2, 1)
        return shift, _SMALLEST_SCALE + F.softplus(raw)

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"RealNVP: got rows of shape {tuple(x.shape)}, expected [n, {self.dim}]")
        return x
