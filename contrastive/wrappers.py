"""Wrappers: what systems put around an encoder. A slow copy, a head, a masked context, modes for a while, no leaks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = [
    "ResidualHead",
    "RowContext",
    "in_evaluation_mode",
    "in_shuffled_parts",
    "momentum_copy",
    "refuse_batch_norm",
]


def momentum_copy(module: nn.Module, decay: float) -> AveragedModel:
    r"""Makes a copy that follows slowly: torch's `AveragedModel` with exponential weights.

    .. math::
        \theta' \leftarrow m\, \theta' + (1 - m)\, \theta

    ``copy.update_parameters(module)`` after each step of the optimiser moves it; the first call copies. Its weights
    take no gradient, and all of it is in its state dict. In training mode its batch norms normalise by the keys they
    are given; their running statistics are the module's, copied at every update.

    Arguments:
        module: what is copied.
        decay: m, in [0, 1).

    Raises:
        ValueError: for a decay outside [0, 1).

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> copy = momentum_copy(layer, 0.99)
        >>> copy.update_parameters(layer)
        >>> torch.equal(copy(torch.ones(1, 2)), layer(torch.ones(1, 2)))
        True

    References:
        | Momentum Contrast for Unsupervised Visual Representation Learning (He et al., 2020)
        | https://arxiv.org/abs/1911.05722
    """
    if not 0 <= decay < 1:
        raise ValueError(f"momentum_copy: decay is {decay}, expected a number in [0, 1)")
    copy = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]  # torch's
    copy.requires_grad_(False)
    return copy


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode for a while; afterwards every part of it is in the mode that it was in.

    Arguments:
        module: some parts may be frozen in evaluation mode while the others train.

    Example:
        >>> module = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout())
        >>> with in_evaluation_mode(module):
        ...     module[1].training
        False
        >>> [part.training for part in module]
        [False, True]
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        module.train(modes[0][1])  # a layer may do more there than to note it
        for part, mode in modes:
            part.training = mode


_LEAK = (
    "the statistics of a batch tell its members of each other and leak what is to be predicted. Use GroupNorm or "
    "LayerNorm, or encode the keys with `in_shuffled_parts`"
)


def refuse_batch_norm(who: str, *modules: nn.Module, reason: str = _LEAK) -> None:
    """Refuses batch norms where a system is cheated through them: its message says how.

    In training a batch norm subtracts the mean of the batch. Where a positive is in the same batch as its query, or a
    patch in the same batch as its neighbours, that mean tells the one of the other, and the loss falls without anything
    worth knowing being learnt (CPC: Henaff et al., 2020; MoCo: He et al., 2020, which shuffles).

    Arguments:
        who: the system.
        modules: what must hold none.
        reason: why, and what to use in its place, for the message; that of a leak where nothing else is said.

    Raises:
        ValueError: names the first batch norm.

    Example:
        >>> refuse_batch_norm("CPC", nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    """
    for module in modules:
        for path, layer in module.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                raise ValueError(f"{who}: {path or 'the module'} is a {type(layer).__name__}; {reason}")


def in_shuffled_parts(
    encode: Callable[[Tensor], Tensor], images: Float[Tensor, "n ..."], parts: int
) -> Float[Tensor, "n ..."]:
    """Encodes a batch in parts of random members, each with batch statistics of its own: MoCo's shuffled batch norms.

    On several devices the shuffle exchanges samples between them; on one it is this.

    Arguments:
        encode: the key encoder.
        images: a batch.
        parts: how many; at least two images go into each.

    Returns:
        What `encode` makes of the images, in their order.

    Raises:
        ValueError: for fewer than two images a part.

    Example:
        >>> in_shuffled_parts(lambda part: 2 * part, torch.arange(4.0)[:, None], 2).flatten()
        tensor([0., 2., 4., 6.])
    """
    if parts < 1 or len(images) < 2 * parts:
        raise ValueError(f"in_shuffled_parts: got {len(images)} images in {parts} parts, expected at least 2 in each")
    order = torch.randperm(len(images), device=images.device)
    shuffled = torch.cat([encode(images[rows]) for rows in order.tensor_split(parts)])
    return shuffled[order.argsort()]


class ResidualHead(nn.Module):
    r"""Creates a head for the places of a map: a hidden layer beside a linear one, then a norm (Deep InfoMax, AMDIM).

    .. math::
        h(z) = \mathrm{norm}(W_s z + W_2\, \mathrm{ReLU}(W_1 z))

    with :math:`W_2` zero at the start. All are 1 x 1 convolutions: every place by itself.

    Arguments:
        dim: channels of the map.
        out: of the result, and of the hidden layer.
        norm: makes the norm of a width; ``lambda width: nn.GroupNorm(1, width)`` is a layer norm of a vector.

    Example:
        >>> ResidualHead(4, 8)(torch.zeros(2, 4, 5, 5)).shape
        torch.Size([2, 8, 5, 5])

    References:
        | Learning Deep Representations by Mutual Information Estimation and Maximization (Hjelm et al., 2019)
        | https://arxiv.org/abs/1808.06670
        | Learning Representations by Maximizing Mutual Information Across Views (Bachman et al., 2019)
        | https://arxiv.org/abs/1906.00910
    """

    def __init__(self, dim: int, out: int, *, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        last = nn.Conv2d(out, out, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.branch = nn.Sequential(nn.Conv2d(dim, out, 1, bias=False), nn.ReLU(), last)
        self.shortcut = nn.Conv2d(dim, out, 1)
        self.norm = norm(out)
        self.out_dim = out

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h w"]:
        """Maps every place."""
        return cast(Tensor, self.norm(self.shortcut(maps) + self.branch(maps)))


class RowContext(nn.Module):
    r"""Creates the masked context of CPC: what is known of an image from its upper rows, at every place of a map.

    .. math::
        c_{rs} = g(z_{r' s'} : r' \le r)

    Residual layers of 2 x 3 convolutions that look up and to both sides, never down; no batch norm.

    Arguments:
        dim: channels of the map, and of the context.
        layers: each sees one row and two columns more.

    Raises:
        ValueError: for no layer.

    Example:
        >>> RowContext(4, layers=2)(torch.zeros(1, 4, 7, 7)).shape
        torch.Size([1, 4, 7, 7])

    References:
        | Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018)
        | https://arxiv.org/abs/1807.03748
        | Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016)
        | https://arxiv.org/abs/1606.05328
    """

    def __init__(self, dim: int, *, layers: int = 3) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"RowContext: layers is {layers}, expected at least 1")
        self.layers = nn.ModuleList([nn.Conv2d(dim, dim, (2, 3)) for _ in range(layers)])
        self.out_dim = dim

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Maps every place to its context."""
        for layer in self.layers:
            maps = maps + layer(nn.functional.pad(maps, (1, 1, 1, 0))).relu()
        return maps
