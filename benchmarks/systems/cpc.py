"""CPC (van den Oord et al., 2018): from the upper rows of an image's patches, the patches further down.

    python -m benchmarks.systems.cpc --preset quick --data-root DATA

https://arxiv.org/abs/1807.03748
"""

from collections.abc import Callable, Sequence

from kornia.augmentation import RandomCrop
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop, rgb_to_grayscale

from benchmarks.systems.encoders import standardised
from benchmarks.systems.runs import Blocks, Goal, Plan, System, main
from benchmarks.systems.training import Budget, Learner
from contrastive import Bilinear
from contrastive.pairings import in_batch
from contrastive.scores import WeighsNegatives
from contrastive.terms import Term, total
from contrastive.views import RandomView, patch_grid
from contrastive.wrappers import RowContext, refuse_batch_norm


def build(
    shape: tuple[int, int, int],
    *,
    miner: WeighsNegatives | None = None,
    critic: Callable[[int], nn.Module] | None = None,
    patch: int = 8,
    stride: int = 4,
    widths: Sequence[int] = (48, 96, 128),
    layers: int = 3,
    below: Sequence[int] = (2, 3),
    crop: int | None = None,
    grey: bool = False,
) -> Learner:
    """Puts it together.

    Arguments:
        shape: of an image.
        miner: weighs the negatives.
        critic: in the place of a bilinear one for each distance.
        patch: its size in pixels.
        stride: from one patch to the next.
        widths: of the encoder of a patch.
        layers: of the context.
        below: how many rows further down is predicted; patches overlap, so 1 would be a copy.
        crop: side in pixels of the square that is cut out of every image, anywhere while training and in the middle for
            features; None leaves images whole.
        grey: whether colour is taken away.

    Raises:
        ValueError: for images smaller than the crop.
    """
    if crop is not None and min(shape[1:]) < crop:
        raise ValueError(
            f"CPC: got images of {shape[1]} x {shape[2]} pixels, expected at least {crop} a side, the crop"
        )
    channels = 1 if grey else shape[0]
    cut = nn.Identity() if crop is None else RandomCrop((crop, crop))
    view = RandomView(channels, zoom=1.3, rotation=0.0, mirror=False, erase=0.0)
    encoder = patch_encoder(channels, widths)
    context = RowContext(widths[-1], layers=layers)
    refuse_batch_norm("CPC", encoder, context)
    critics = [Bilinear(widths[-1]) if critic is None else critic(widths[-1]) for _ in below]
    terms = nn.ModuleList(
        [
            Term(f"context above {k}", f"patch {k} below", scores, pairing=in_batch, miner=miner, weight=1 / len(below))
            for k, scores in zip(below, critics, strict=True)
        ]
    )

    def grid(images: Tensor) -> Tensor:
        patches = patch_grid(standardised(images), patch, stride)
        if patches.shape[1] <= max(below):
            raise ValueError(
                f"CPC: images of {images.shape[2]} x {images.shape[3]} pixels have {patches.shape[1]} rows of patches, "
                f"expected more than {max(below)}, the largest of below"
            )
        z = encoder(patches.flatten(0, 2))
        return z.view(*patches.shape[:3], -1).permute(0, 3, 1, 2)

    def coloured(images: Tensor) -> Tensor:
        return rgb_to_grayscale(images) if grey else images

    def middle(images: Tensor) -> Tensor:
        return grid(coloured(images if crop is None else center_crop(images, [crop])))

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        z = grid(view(cut(coloured(images))))
        c = context(z)
        above = {f"context above {k}": c[:, :, :-k] for k in below}
        return total(list(terms), above, {f"patch {k} below": z[:, :, k:] for k in below})

    return Learner(
        modules=nn.ModuleList([encoder, context, terms]),
        loss=loss,
        features={
            "context": lambda images: context(middle(images)).mean((2, 3)),
            "patches": lambda images: middle(images).mean((2, 3)),
        },
    )


def patch_encoder(channels: int, widths: Sequence[int]) -> nn.Sequential:
    """Convolutions of one patch, normalised within it.

    Arguments:
        channels: of the images.
        widths: of the convolutions; the first keeps the size, each other one halves it.
    """
    layers: list[nn.Module] = []
    for number, width in enumerate(widths):
        kernel = (3, 1, 1) if number == 0 else (4, 2, 1)
        layers += [nn.Conv2d(channels, width, *kernel), nn.GroupNorm(1, width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


SYSTEM = System(
    "cpc",
    "CPC: Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018)",
    Blocks(
        views="a grid of overlapping patches: upper rows, and a row k further down",
        encoder="one of patches, and a masked context; no batch norm",
        critic="bilinear, one for each k",
        negatives="all other patches of the batch, the own image's too (`in_batch`)",
        objective="K-pair, the mean over k",
        nats="no: patches of the own image know of each other",
    ),
    build,
    plans={
        "smoke": Plan(Budget(batch=16, steps=2, lr=1e-3, images=64, points=1), {"widths": (4, 8), "layers": 1}),
        "quick": Plan(Budget(batch=64, steps=300, lr=1e-3)),
        "paper": Plan(
            # As in Greedy InfoMax's code: 300 epochs of STL-10's images without labels.
            Budget(batch=32, steps=937_500, lr=2e-4, images=100_000, warmup=0, decay=()),
            {
                "crop": 64,
                "grey": True,
                "patch": 16,
                "stride": 8,
                "widths": (64, 128, 256),
                "layers": 4,
                "below": (2, 3, 4, 5, 6),
            },
            dataset="stl10",
        ),
    },
    dataset="mnist",
    goal=Goal("linear probe of the context at least 85 %", lambda row: 100 * row["trained"]["linear"], least=85.0),
)

if __name__ == "__main__":
    main(SYSTEM)
