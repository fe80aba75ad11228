"""Training images, and further ones of the training set held out to choose by: test images choose nothing."""

import torch

from contrastive.data import ImageData, ImageSplit
from contrastive.errors import InputError

__all__ = ["HELD_OUT", "with_held_out"]

HELD_OUT = 5000


def with_held_out(data: ImageData, images: int, held_out: int = HELD_OUT) -> tuple[ImageSplit, ImageSplit]:
    """Takes both from the training images, of a fixed random order, the same for every seed.

    Arguments:
        data: any data set.
        images: how many to train on; the same ones whatever is held out.
        held_out: how many more to hold out.

    Raises:
        InputError: for more than there are.
    """
    if images + held_out > len(data.train):
        raise InputError(f"{data.name}: {images} images and {held_out} held out, but there are {len(data.train)}")
    # The order of `contrastive.data.limit`; that keeps a whole set as it is, and CIFAR-10's files are sorted by class.
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(7))
    return data.train.subset(order[:images]), data.train.subset(order[images : images + held_out])
