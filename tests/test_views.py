"""Random views: drawn per image, reproducible, of the size and kind that came in."""

import pytest
import torch

from contrastive.views import RandomView

SINGLE_STEPS = {
    "warp": {"zoom": 1.7},
    "mirror": {"mirror": True},
    "contrast": {"contrast": 0.4},
    "brightness": {"brightness": 0.1},
    "erase": {"erase": 0.06},
    "saturation": {"saturation": 0.4},
    "hue": {"hue": 0.1},
    "grey": {"grey": 0.2},
}
OFF = {"zoom": 1.0, "mirror": False} | dict.fromkeys(
    ("shift", "rotation", "contrast", "brightness", "saturation", "hue", "grey", "erase"), 0.0
)


@pytest.mark.parametrize("step", SINGLE_STEPS)
def test_each_step_is_drawn_per_image(step):
    """torchvision's transforms draw once for a whole batch; here the same image 32 times gives different views."""
    view = RandomView(3, **OFF | SINGLE_STEPS[step])
    image = torch.rand(1, 3, 16, 16)
    views = view(image.expand(32, 3, 16, 16).contiguous())
    assert views.shape == (32, 3, 16, 16)
    assert len({tuple(v.flatten().tolist()) for v in views}) > 1


def test_two_images_of_one_batch_get_different_views():
    first, second = RandomView(1)(torch.rand(1, 1, 28, 28).expand(2, 1, 28, 28).contiguous())
    assert not torch.equal(first, second)


def test_all_off_is_the_identity():
    images = torch.rand(4, 3, 16, 16)
    assert torch.allclose(RandomView(3, **OFF)(images), images, atol=1e-5)


def test_reproducible_and_input_left_alone():
    view, images = RandomView(3), torch.rand(4, 3, 16, 16)
    before = images.clone()
    torch.manual_seed(3)
    first = view(images)
    torch.manual_seed(3)
    assert torch.equal(first, view(images))
    assert torch.equal(images, before)
    assert not torch.equal(first, view(images))


def test_no_gradient_is_recorded():
    assert not RandomView(1)(torch.rand(2, 1, 8, 8, requires_grad=True)).requires_grad
