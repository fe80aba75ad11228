"""Views: what makes two positives of one image, drawn anew for every image of a batch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["RandomView"]


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
