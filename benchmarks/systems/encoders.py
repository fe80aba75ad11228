"""The encoders of small images that several systems share: what differs between them should be the method."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from contrastive.encoders import Timm

__all__ = ["Bfloat16", "pooled", "standardised", "strided"]


def standardised(images: Tensor) -> Tensor:
    """Pixels in [0, 1] to about zero mean and unit deviation, the same for every data set."""
    return 4 * (images - 0.5)


def strided(channels: int, widths: Sequence[int]) -> nn.Sequential:
    """The convolutions of Deep InfoMax: 4 x 4 of stride 2, batch-normalised; each halves the map.

    Arguments:
        channels: of the images.
        widths: channels of each map; they are the submodules ``map1``, ``map2``, ...
    """
    blocks = {
        f"map{number}": nn.Sequential(
            nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
        )
        for number, (before, after) in enumerate(pairwise((channels, *widths)), 1)
    }
    return nn.Sequential(OrderedDict(blocks)).to(memory_format=torch.channels_last)


def pooled(channels: int, widths: Sequence[int] | None, *, bfloat16: bool = True) -> tuple[nn.Module, int]:
    """Images to one vector each: `strided`, averaged over places; and its width.

    Arguments:
        channels: of the images.
        widths: of `strided`; None for a ResNet-18 of small images: its first convolution is 3 x 3 and skips no pixel,
            and nothing is pooled after it (SimCLR's and MoCo's on CIFAR-10).
        bfloat16: whether it computes in it.
    """
    if widths is None:
        resnet = Timm("resnet18", channels)
        resnet.model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        resnet.model.maxpool = nn.Identity()
        return Bfloat16(resnet, enabled=bfloat16), resnet.out_dim
    encoder = nn.Sequential(strided(channels, widths), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Bfloat16(encoder, enabled=bfloat16), widths[-1]


class Bfloat16(nn.Module):
    """Runs an encoder in bfloat16 and hands on float32: half of the time where a processor has the units (AMX).

    Arguments:
        encoder: images to a tensor, or to several by name.
        enabled: False leaves it in float32.
    """

    def __init__(self, encoder: nn.Module, *, enabled: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self.enabled = enabled

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Maps every image."""
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.enabled):
            found = self.encoder(images)
        if isinstance(found, Tensor):
            return found.float()
        return {name: each.float() for name, each in found.items()}
