"""Views: what makes positives of one image or video: drawn anew for every image of a batch, or cut out of it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["RandomView", "halves", "lab", "mirrored", "patch_grid", "same_moments"]


class RandomView(nn.Module):
    r"""Creates a random view of every image of a batch: one warp, mirroring, light, erasing.

    Whole batches at once, with parameters drawn **per image** (kornia): torchvision's transforms on a batch would
    draw once for all, and every negative would share the anchor's augmentation.

    Arguments:
        channels: of the images; saturation and hue apply to 3.
        zoom: largest magnification of each axis; a zoom of 1.7 shows 35 % of the image.
        shift: largest translation, as a share of the side.
        rotation: largest angle, in degrees.
        mirror: whether half of the views are mirrored left to right.
        contrast: views are multiplied by a number in [1 - contrast, 1 + contrast].
        brightness: and a number in [-brightness, brightness] is added.
        saturation: likewise, for colour.
        hue: largest turn of the hue, as a share of the circle.
        grey: probability that a colour view loses its colour.
        erase: largest share of the view that is blanked, in half of the views; 0 blanks nothing.

    Raises:
        ValueError: for a zoom below 1 and for shares outside [0, 1].

    Example:
        >>> view = RandomView(1)
        >>> batch = torch.rand(1, 1, 8, 8).expand(2, 1, 8, 8)
        >>> first, second = view(batch)   # one image twice: two different views
        >>> bool((first == second).all())
        False
    """

    def __init__(
        self,
        channels: int,
        *,
        zoom: float = 1.7,
        shift: float = 0.08,
        rotation: float = 15.0,
        mirror: bool = True,
        contrast: float = 0.4,
        brightness: float = 0.1,
        saturation: float = 0.4,
        hue: float = 0.1,
        grey: float = 0.2,
        erase: float = 0.06,
    ) -> None:
        super().__init__()
        if not zoom >= 1:
            raise ValueError(f"RandomView: zoom is {zoom}, expected at least 1")
        for name, value in (("shift", shift), ("contrast", contrast), ("brightness", brightness), ("grey", grey)):
            if not 0 <= value <= 1:
                raise ValueError(f"RandomView: {name} is {value}, expected a number in [0, 1]")
        if not (0 <= saturation <= 1 and 0 <= hue <= 0.5 and 0 <= erase < 1 and 0 <= rotation <= 180):
            raise ValueError(
                f"RandomView: saturation is {saturation}, hue {hue}, erase {erase}, rotation {rotation}; "
                "expected at most 1, 0.5, less than 1, and 180 degrees, none negative"
            )
        import kornia.augmentation as K  # 0.2 s: only for those who train

        steps: list[nn.Module] = [K.RandomAffine(rotation, (shift, shift), (1.0, zoom, 1.0, zoom), p=1.0)]
        if mirror:
            steps += [K.RandomHorizontalFlip()]
        if channels == 3:
            # Nothing is clipped in between: a later step may bring a value back.
            steps += [K.RandomSaturation((1 - saturation, 1 + saturation), p=1.0)] if saturation else []
            steps += [K.RandomHue((-hue, hue), p=0.8)] if hue else []
            steps += [K.RandomGrayscale(p=grey)] if grey else []
        if contrast:
            steps += [K.RandomContrast((1 - contrast, 1 + contrast), clip_output=False, p=1.0)]
        if brightness:
            steps += [K.RandomBrightness((1 - brightness, 1 + brightness), clip_output=False, p=1.0)]
        if erase:
            steps += [K.RandomErasing((min(0.002, erase), erase), (0.5, 2.0), p=0.5)]
        self.steps = nn.ModuleList(steps)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Draws one view of every image; images are floats in [0, 1], views may leave that range a little."""
        for step in self.steps:
            images = step(images)
        return images


def halves(images: Float[Tensor, "n c h w"], *, across: str = "rows") -> tuple[Tensor, Tensor]:
    """Cuts every image in two.

    Arguments:
        images: of an even size in that direction.
        across: ``"rows"``: upper and lower half; ``"columns"``: left and right half.

    Raises:
        ValueError: for another direction, and for a size that is odd: the halves would be of unequal length.

    Example:
        >>> [tuple(half.shape) for half in halves(torch.zeros(2, 1, 28, 28), across="columns")]
        [(2, 1, 28, 14), (2, 1, 28, 14)]
    """
    if across not in ("rows", "columns"):
        raise ValueError(f"halves: across is {across!r}, expected 'rows' or 'columns'")
    dim = 2 if across == "rows" else 3
    if images.shape[dim] % 2:
        raise ValueError(f"halves: images have {images.shape[dim]} {across}, expected an even number")
    first, second = images.chunk(2, dim)
    return first, second


def lab(images: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 1 h w"], Float[Tensor, "n 2 h w"]]:
    r"""Splits colour images into lightness and colour, two views without a channel in common (CIE L*a*b*).

    Arguments:
        images: red, green, blue in [0, 1]; what lies outside is clipped.

    Returns:
        L scaled to [-1, 1], and a, b divided by 110.

    Example:
        >>> lightness, colour = lab(torch.ones(1, 3, 1, 1))   # white
        >>> float(lightness), float(colour.abs().max()) < 0.01
        (1.0, True)

    References:
        | Contrastive Multiview Coding (Tian et al., 2020)
        | https://arxiv.org/abs/1906.05849
    """
    from kornia.color import rgb_to_lab

    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"lab: images have shape {tuple(images.shape)}, expected [n, 3, h, w]")
    found = rgb_to_lab(images.clamp(0, 1))
    return found[:, :1] / 50 - 1, found[:, 1:] / 110


def mirrored(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Mirrors half of the images left to right, at random: before two views are drawn, both share it (AMDIM)."""
    flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flip, images.flip(3), images)


def patch_grid(images: Float[Tensor, "n c h w"], size: int, stride: int) -> Float[Tensor, "n rows columns c size size"]:
    """Cuts every image into overlapping square patches.

    Arguments:
        images: at least as large as a patch.
        size: of a patch, in pixels.
        stride: from one to the next; half of `size` overlaps by half.

    Raises:
        ValueError: for an image smaller than two patches a side, which leave nothing to predict.

    Example:
        >>> patch_grid(torch.zeros(2, 3, 32, 32), 8, 4).shape
        torch.Size([2, 7, 7, 3, 8, 8])

    References:
        | Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018)
        | https://arxiv.org/abs/1807.03748
    """
    if size < 1 or stride < 1:
        raise ValueError(f"patch_grid: size is {size} and stride {stride}, expected at least 1")
    least = size + stride
    if images.ndim != 4 or min(images.shape[2:]) < least:
        raise ValueError(
            f"patch_grid: images have shape {tuple(images.shape)}, expected at least {least} pixels a side: two "
            f"patches of {size} at a stride of {stride}"
        )
    return images.unfold(2, size, stride).unfold(3, size, stride).permute(0, 2, 3, 1, 4, 5)


def same_moments(
    first: Float[Tensor, "videos frames ..."], second: Float[Tensor, "videos frames ..."], count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws moments of every video, the same ones of two cameras.

    Arguments:
        first: what one camera saw.
        second: what another camera saw at the same times.
        count: different moments a video.

    Returns:
        The frames of both, ``[videos * count, ...]``, and the number of the video of each.

    Raises:
        ValueError: for cameras of unequal length, and more moments than there are.

    Example:
        >>> x, y, videos = same_moments(torch.zeros(2, 5, 1, 8, 8), torch.zeros(2, 5, 1, 8, 8), 3)
        >>> x.shape, videos.tolist()
        (torch.Size([6, 1, 8, 8]), [0, 0, 0, 1, 1, 1])

    References:
        | Time-Contrastive Networks: Self-Supervised Learning from Video (Sermanet et al., 2018)
        | https://arxiv.org/abs/1704.06888
    """
    if first.shape[:2] != second.shape[:2]:
        raise ValueError(
            f"same_moments: got views of unequal length, {tuple(first.shape[:2])} and {tuple(second.shape[:2])} videos "
            "and frames"
        )
    videos, frames = first.shape[:2]
    if not 1 <= count <= frames:
        raise ValueError(f"same_moments: count is {count}, expected 1 to {frames}, the frames of a video")
    chosen = torch.rand(videos, frames, device=first.device).argsort(1)[:, :count].flatten()
    numbers = torch.arange(videos, device=first.device).repeat_interleave(count)
    return first[numbers, chosen], second[numbers, chosen], numbers
