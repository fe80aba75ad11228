"""Training images, and further ones of the training set held out to choose by: test images choose nothing."""

import torch

from contrastive.data import ImageData, ImageSplit, limit

__all__ = ["HELD_OUT", "with_held_out"]

HELD_OUT = 5000


def with_held_out(data: ImageData, images: int, held_out: int = HELD_OUT) -> tuple[ImageSplit, ImageSplit]:
    """Takes both from the training images, of a fixed random order, the same for every seed.

    Arguments:
        data: any data set.
        images: how many to train on; the same ones whatever is held out.
        held_out: how many more to hold out.
    """
    chosen = limit(data, images + held_out).train
    rows = torch.arange(len(chosen)).split([len(chosen) - held_out, held_out])
    return chosen.subset(rows[0]), chosen.subset(rows[1])
