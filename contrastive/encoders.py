"""Encoders: images in, one feature vector each out; and the file that brings a trained one back.

Every encoder has an attribute `out_dim`, the width of its features.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from contrastive.errors import InputError
from contrastive.files import save_tensors, write_text

__all__ = [
    "MLP",
    "ConvNet",
    "ImageEncoder",
    "Recipe",
    "Timm",
    "build",
    "load_encoder",
    "load_recipe",
    "load_weights",
    "save_encoder",
]

WEIGHTS, RECIPE = "encoder.safetensors", "encoder.json"


class MLP(nn.Module):
    r"""Creates a multi-layer perceptron; images are flattened.

    Also the projector: features to the space in which the critic scores.

    Arguments:
        dim: width of the input.
        hidden: units of each hidden layer (ReLU); none makes it linear.
        out: width of the output.
        batch_norm: whether hidden layers are batch-normalised before the ReLU.

    Example:
        >>> MLP(64, hidden=(32,), out=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self, dim: int, *, hidden: Sequence[int] = (512, 256), out: int = 128, batch_norm: bool = True
    ) -> None:
        super().__init__()
        if min((*hidden, out)) < 1:
            raise ValueError(f"MLP: hidden is {list(hidden)} and out {out}, expected widths of at least 1")
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(dim, width, bias=not batch_norm)]
            layers += [nn.BatchNorm1d(width)] if batch_norm else []
            layers += [nn.ReLU()]
            dim = width
        self.layers = nn.Sequential(*layers, nn.Linear(dim, out))
        self.out_dim = out

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n out"]:
        """Flattens and maps every row."""
        return cast(Tensor, self.layers(x.flatten(1)))


class ConvNet(nn.Module):
    r"""Creates a small convolutional encoder: 3 x 3 convolutions, halved in between, averaged at the end.

    Arguments:
        channels: of the images.
        widths: channels of each convolution; the last is the width of the features. Between two of them the
            image is halved by a max-pool, so it must be at least ``2 ** (len(widths) - 1)`` pixels a side.

    Example:
        >>> ConvNet(1, widths=(8, 16))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 16])
    """

    def __init__(self, channels: int, *, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"ConvNet: widths are {list(widths)}, expected at least one, each at least 1")
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if i else []
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        # On CPUs and tensor cores alike convolutions of small images are a quarter faster channels-last.
        self.to(memory_format=torch.channels_last)
        self.out_dim = channels

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out"]:
        """Maps every image to a feature vector."""
        return cast(Tensor, self.layers(x.contiguous(memory_format=torch.channels_last)))


class Timm(nn.Module):
    """Creates any backbone of timm, without its classifier.

    Arguments:
        name: a model of ``timm.list_models()``, such as ``resnet18``.
        channels: of the images; timm adapts the first layer.
        pretrained: whether timm loads its weights (from its cache, or the network).

    Raises:
        InputError: for a name that timm does not know (with the nearest ones), and when the weights
            cannot be had.
    """

    def __init__(self, name: str, channels: int, *, pretrained: bool = False) -> None:
        super().__init__()
        import timm  # half a second: only for those who use it

        if not timm.is_model(name.split(".")[0]):  # after the dot stands the tag of the weights
            near = ", ".join(get_close_matches(name, timm.list_models(), n=3)) or "see timm.list_models()"
            raise InputError(f"timm has no model {name!r}; nearest: {near}")
        try:
            self.model = timm.create_model(name, pretrained=pretrained, in_chans=channels, num_classes=0)
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise InputError(f"the weights of timm's {name!r} cannot be loaded: {error}") from error
        # Some models keep a hidden layer of their head, which widens the features.
        self.out_dim = int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out"]:
        """Maps every image to a feature vector."""
        return cast(Tensor, self.model(x))


class ImageEncoder(nn.Module):
    r"""Wraps a backbone so that it takes images as they come: uint8, or floats in [0, 1].

    Pixels are scaled to [0, 1] and standardised by the training images' mean and deviation, :math:`(x - \mu) / \sigma`.

    Arguments:
        backbone: standardised images ``[n, c, h, w]`` to features ``[n, out_dim]``.
        mean: :math:`\mu` of each channel.
        std: :math:`\sigma` of each channel.
    """

    def __init__(self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.out_dim = int(cast(int, backbone.out_dim))

    def forward(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n out"]:
        """Maps every image to a feature vector.

        Raises:
            ValueError: for images that are not ``[n, channels, height, width]``.
        """
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ValueError(
                f"ImageEncoder: got images of shape {tuple(images.shape)}, expected [n, {len(self.mean)}, h, w]"
            )
        if not images.is_floating_point():
            images = images.to(self.mean.dtype) / 255
        return cast(Tensor, self.backbone((images - self.mean) / self.std))


@dataclass(frozen=True)
class Recipe:
    """What rebuilds an encoder and its projector without their weights; saved beside them as JSON.

    Arguments:
        encoder: name of a class of this module.
        arguments: its keyword arguments.
        projector: keyword arguments of `MLP`; None for a projector that leaves features alone.
        mean: of the training images' channels, in [0, 1].
        std: likewise.
    """

    encoder: str
    arguments: Mapping[str, Any]
    projector: Mapping[str, Any] | None
    mean: Sequence[float]
    std: Sequence[float]


def build(recipe: Recipe, *, seed: int = 0) -> tuple[ImageEncoder, nn.Module]:
    """Builds an untrained encoder and projector.

    Arguments:
        recipe: what to build.
        seed: of the initial weights; the caller's random state is left alone.

    Returns:
        The encoder and the projector (the identity where the recipe has none).

    Raises:
        InputError: for a class that is not an encoder of this module.
    """
    classes = {"MLP": MLP, "ConvNet": ConvNet, "Timm": Timm}
    if recipe.encoder not in classes:
        raise InputError(f"no encoder {recipe.encoder!r}; there are {', '.join(classes)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = classes[recipe.encoder](**recipe.arguments)
        encoder = ImageEncoder(backbone, recipe.mean, recipe.std)
        projector = nn.Identity() if recipe.projector is None else MLP(encoder.out_dim, **recipe.projector)
    return encoder, projector


def save_encoder(folder: Path, recipe: Recipe, encoder: nn.Module, projector: nn.Module, critic: nn.Module) -> None:
    """Writes the weights as safetensors and, beside them, the JSON that rebuilds the modules.

    Arguments:
        folder: an existing run folder.
        recipe: what the modules were built from.
        encoder: its weights are saved.
        projector: likewise.
        critic: likewise, for whoever evaluates the bound again.
    """
    modules = nn.ModuleDict({"encoder": encoder, "projector": projector, "critic": critic})
    save_tensors(folder / WEIGHTS, modules.state_dict())
    text = json.dumps({"kpair": version("kpair"), **asdict(recipe)}, indent=2)
    write_text(folder / RECIPE, text + "\n")


def load_encoder(run: str | Path, *, projection: bool = False) -> nn.Module:
    """Loads the trained encoder of a run, frozen and in evaluation mode.

    >>> encoder = load_encoder("runs/digits-1")          # doctest: +SKIP
    >>> features = encoder(images)                       # doctest: +SKIP

    It takes images ``[n, channels, height, width]``, uint8 or floats in [0, 1].

    Arguments:
        run: the folder that `kpair train` wrote.
        projection: whether the projector is applied as well: the space of the critic, for instance-level search.

    Returns:
        A module from images to features ``[n, out_dim]``.

    Raises:
        InputError: when the folder holds no encoder, or files that do not fit each other.
    """
    recipe = load_recipe(run)
    # The weights are in the file: nothing is downloaded a second time.
    arguments = {k: False if k == "pretrained" else v for k, v in recipe.arguments.items()}
    encoder, projector = build(replace(recipe, arguments=arguments))
    load_weights(run, encoder=encoder, projector=projector)
    model = nn.Sequential(encoder, projector) if projection else encoder
    return model.eval().requires_grad_(False)


def load_recipe(run: str | Path) -> Recipe:
    """Reads what rebuilds the encoder of a run.

    Arguments:
        run: the folder that `kpair train` wrote.

    Raises:
        InputError: when there is none, or one of another version.
    """
    path = Path(run) / RECIPE
    if not path.is_file():
        raise InputError(f"{run} holds no trained encoder: {RECIPE} is missing (is the run finished?)")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields.pop("kpair", None)
        return Recipe(**fields)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def load_weights(run: str | Path, *, encoder: nn.Module, projector: nn.Module, critic: nn.Module | None = None) -> None:
    """Loads trained weights into modules that were built for them.

    Arguments:
        run: the folder that `kpair train` wrote.
        encoder: changed in place.
        projector: likewise.
        critic: likewise; None leaves its weights in the file.

    Raises:
        InputError: when the file is missing, unreadable, or of another architecture.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(run) / WEIGHTS
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    modules = nn.ModuleDict({"encoder": encoder, "projector": projector})
    if critic is not None:
        modules["critic"] = critic
    try:
        modules.load_state_dict({k: v for k, v in state.items() if k.split(".")[0] in modules})
    except RuntimeError as error:
        raise InputError(f"the weights in {path} do not fit the modules: {error}") from error
