"""Taps: what an encoder makes on its way, by name; feature maps, and places of them as rows."""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Maps", "Taps", "groups_of", "random_place", "rows_of", "tap"]

Maps = Mapping[str, Tensor]


class Taps(nn.Module):
    r"""Wraps an encoder so that it returns feature maps by name: the outputs of some of its submodules.

    Every map is ``[n, c, h, w]``; a feature vector is a map of one place, ``[n, c, 1, 1]``. Nothing is computed twice,
    and the encoder needs no code for it.

    Arguments:
        encoder: any module of images.
        taps: name of a tap to the path of a submodule, ``{"local": "layers.3"}``; the path ``""`` is the encoder's own
            output.

    Raises:
        ValueError: for a path that the encoder does not have; the message lists those it has.

    Example:
        >>> encoder = nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.Flatten(), nn.Linear(64, 8))
        >>> maps = Taps(encoder, {"local": "0", "global": ""})(torch.zeros(2, 1, 8, 8))
        >>> {name: tuple(each.shape) for name, each in maps.items()}
        {'local': (2, 4, 4, 4), 'global': (2, 8, 1, 1)}
    """

    def __init__(self, encoder: nn.Module, taps: Mapping[str, str]) -> None:
        super().__init__()
        paths = [path for path, _ in encoder.named_modules()]
        for name, path in taps.items():
            if path not in paths:
                there = ", ".join(repr(each) for each in paths)
                raise ValueError(f"Taps: {name!r} is to be the submodule {path!r}; the encoder has {there}")
        self.encoder = encoder
        self.paths = dict(taps)

    def forward(self, images: Float[Tensor, "n ..."]) -> dict[str, Tensor]:
        """Maps every image; the taps in the order they were named in.

        Raises:
            ValueError: for a tap that is neither rows ``[n, c]`` nor maps ``[n, c, h, w]``, or that the encoder did not
                reach.
        """
        found: dict[str, Tensor] = {}
        hooks = [
            self.encoder.get_submodule(path).register_forward_hook(partial(_keep, found, name))
            for name, path in self.paths.items()
        ]
        try:
            self.encoder(images)
        finally:
            for hook in hooks:
                hook.remove()
        missing = [name for name in self.paths if name not in found]
        if missing:
            raise ValueError(f"Taps: the encoder did not run the submodule of {missing[0]!r}")
        return {name: found[name] for name in self.paths}


def _keep(found: dict[str, Tensor], name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
    if output.ndim not in (2, 4):
        shape = tuple(output.shape)
        raise ValueError(f"Taps: {name!r} has shape {shape}, expected rows [n, c] or maps [n, c, h, w]")
    found[name] = output if output.ndim == 4 else output[:, :, None, None]


def tap(maps: Maps, name: str) -> Tensor:
    """The map of a name.

    Arguments:
        maps: of `Taps`, or made by hand.
        name: of the tap.

    Raises:
        ValueError: for a tap that does not exist; the message lists those that do.

    Example:
        >>> tap({"local": torch.zeros(1, 2, 3, 3)}, "global")
        Traceback (most recent call last):
        ValueError: no tap 'global'; there are 'local'
    """
    if name not in maps:
        raise ValueError(f"no tap {name!r}; there are {', '.join(repr(each) for each in maps)}")
    return maps[name]


def rows_of(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "rows c"]:
    """The places of all maps as rows: those of the first image, row by row, then those of the second.

    Example:
        >>> rows_of(torch.zeros(2, 5, 3, 3)).shape
        torch.Size([18, 5])
    """
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)


def groups_of(maps: Float[Tensor, "n c h w"]) -> Int[Tensor, " rows"]:
    """The number of the image that each of `rows_of` is a place of.

    Example:
        >>> groups_of(torch.zeros(2, 5, 1, 3))
        tensor([0, 0, 0, 1, 1, 1])
    """
    return torch.arange(len(maps), device=maps.device).repeat_interleave(maps.shape[2] * maps.shape[3])


def random_place(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 1 1"]:
    """One place of every map, drawn uniformly.

    Example:
        >>> random_place(torch.zeros(2, 5, 3, 3)).shape
        torch.Size([2, 5, 1, 1])
    """
    places = maps.flatten(2)
    chosen = torch.randint(places.shape[2], (len(maps),), device=maps.device)
    return places[torch.arange(len(maps), device=maps.device), :, chosen][:, :, None, None]
