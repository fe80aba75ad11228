"""What holds of every data set, and what is said of one that cannot be read."""

import pytest
import torch

from contrastive.data import ImageData
from contrastive.errors import InputError


def check(loaded: ImageData):
    """What holds of every data set."""
    assert loaded.train.images.shape[1:] == loaded.test.images.shape[1:]
    for split in (loaded.train, loaded.test):
        assert split.images.dtype == torch.uint8
        assert split.images.shape[1] in (1, 3)
        assert len(split) == len(split.images) > 0
        if split.labels is None:
            assert loaded.classes == ()
        else:
            assert split.labels.dtype == torch.int64
            assert split.labels.shape == (len(split),)
            assert 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(loaded.classes)
        if split.names is not None:
            assert len(split.names) == len(split)
    assert len(set(loaded.classes)) == len(loaded.classes)
    if loaded.train.names is not None:
        assert not set(loaded.train.names) & set(loaded.test.names)
    return loaded


def message(call, *parts):
    """The one sentence of the InputError; it must hold the parts and no line break."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text
    return text
