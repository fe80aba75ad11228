"""AMDIM's encoder: residual blocks without padding, so that a place of a map has seen known pixels and no others."""

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ReceptiveNet"]

# Kernel and stride of the convolutions that widen the view, by image size (the released code's three encoders).
_LAYOUTS = {
    32: ((3, 1), ((4, 2), (2, 2)), ((3, 1),), ((3, 1), (3, 1))),
    64: ((3, 1), ((4, 2), (4, 2), (2, 2)), ((3, 1),), ((3, 1), (3, 1))),
}


class ReceptiveNet(nn.Module):
    r"""Creates the encoder of AMDIM, whose maps see overlapping squares of known size.

    Nothing is padded: a place of the map ``f7`` (7 x 7) sees a square of 8 pixels of a 32-pixel image at a stride of 4,
    of ``f5`` one of 16, and ``f1`` sees all. Where paddings are, every place knows where the border is, and what it is
    to be told from is given away. `fields` holds the size and stride of each tap.

    Residual blocks start as average pooling: the last layer of their branch is zero.

    Arguments:
        channels: of the images.
        size: height and width of the images: 32 or 64.
        width: channels of the first layer; doubled twice.
        out: width of ``f1``.
        depth: residual layers a block; all but the first see one pixel.

    Raises:
        ValueError: for another size, and widths below 1.

    Example:
        >>> import torch
        >>> encoder = ReceptiveNet(3, width=4, out=16, depth=1)
        >>> from contrastive.taps import Taps
        >>> maps = Taps(encoder, {name: name for name in encoder.fields})(torch.zeros(2, 3, 32, 32))
        >>> {name: tuple(each.shape[1:]) for name, each in maps.items()}
        {'f7': (16, 7, 7), 'f5': (16, 5, 5), 'f1': (16, 1, 1)}
        >>> encoder.fields
        {'f7': (8, 4), 'f5': (16, 4), 'f1': (32, 4)}

    References:
        | Learning Representations by Maximizing Mutual Information Across Views (Bachman et al., 2019)
        | https://arxiv.org/abs/1906.00910
    """

    def __init__(self, channels: int, *, size: int = 32, width: int = 32, out: int = 128, depth: int = 2) -> None:
        super().__init__()
        if size not in _LAYOUTS:
            raise ValueError(f"ReceptiveNet: size is {size} pixels, expected one of {', '.join(map(str, _LAYOUTS))}")
        if min(channels, width, out, depth) < 1:
            raise ValueError(
                f"ReceptiveNet: channels is {channels}, width {width}, out {out} and depth {depth}, expected at least 1"
            )
        stem, to_f7, to_f5, to_f1 = _LAYOUTS[size]
        widths = [width * min(2**number, 4) for number in range(1, len(to_f7) + 1)]
        local = widths[-1]
        self.f7 = nn.Sequential(nn.Conv2d(channels, width, *stem), nn.ReLU(), _Residual(width, width, 1, 1))
        before = width
        for (kernel, stride), after in zip(to_f7, widths, strict=True):
            self.f7.append(_block(before, after, kernel, stride, depth))
            before = after
        self.f5 = nn.Sequential(*(_block(local, local, kernel, stride, depth) for kernel, stride in to_f5))
        self.f1 = nn.Sequential(
            _block(local, local, *to_f1[0], depth), _Residual(local, out, *to_f1[1]), nn.BatchNorm2d(out)
        )
        self.out_dim, self.local_dim, self.size = out, local, size
        self.fields = dict(zip(("f7", "f5", "f1"), _fields((stem, *to_f7), to_f5, to_f1), strict=True))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out 1 1"]:
        """Maps every image; the maps on the way are taps.

        Raises:
            ValueError: for images of another size.
        """
        if images.ndim != 4 or tuple(images.shape[2:]) != (self.size, self.size):
            seen = ", ".join(f"{name} {field}" for name, (field, _) in self.fields.items())
            raise ValueError(
                f"ReceptiveNet: got images of shape {tuple(images.shape)}, expected {self.size} x {self.size} pixels: "
                f"its maps see {seen} pixels and nothing is padded"
            )
        return cast(Tensor, self.f1(self.f5(self.f7(images))))


def _fields(*stages: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Size and stride of what a place has seen, after each stage."""
    size, stride, found = 1, 1, []
    for stage in stages:
        for kernel, step in stage:
            size, stride = size + (kernel - 1) * stride, stride * step
        found.append((size, stride))
    return found


def _block(before: int, after: int, kernel: int, stride: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        _Residual(before, after, kernel, stride), *(_Residual(after, after, 1, 1) for _ in range(depth - 1))
    )


class _Residual(nn.Module):
    """A convolution and a 1 x 1 one that starts at zero, around average pooling with new channels of zeros."""

    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        mix = nn.Conv2d(after, after, 1, bias=False)
        nn.init.zeros_(mix.weight)
        self.branch = nn.Sequential(nn.Conv2d(before, after, kernel, stride, bias=False), nn.ReLU(), mix)
        self.pool = nn.AvgPool2d(kernel, stride) if kernel > 1 else nn.Identity()
        self.new = after - before

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.branch(x)) + nn.functional.pad(self.pool(x), (0, 0, 0, 0, 0, self.new))
