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

from contrastive.checkpoints import check_state
from contrastive.errors import InputError
from contrastive.files import save_tensors, sha256_of, write_text

__all__ = [
    "MLP",
    "ConvNet",
    "ImageEncoder",
    "Recipe",
    "StridedConvNet",
    "Timm",
    "build",
    "glorot_uniform_",
    "load_encoder",
    "load_recipe",
    "load_weights",
    "save_encoder",
    "truncated_normal_",
]

WEIGHTS, RECIPE = "encoder.safetensors", "encoder.json"
_CHECKSUM = "weights_sha256"  # in the JSON: safetensors itself loads a flipped bit in silence


class MLP(nn.Module):
    r"""Creates a multi-layer perceptron; images are flattened.

    Also the projector: features to the space in which the critic scores.

    .. math::
        h_0 = x, \qquad h_l = [h_{l-1}] + \mathrm{ReLU}(W_l h_{l-1} + b_l), \qquad
        g(x) = [h_L] + W_{L+1} h_L + b_{L+1}

    with the terms in brackets where there are skips.

    Arguments:
        dim: width of the input.
        hidden: units of each hidden layer (ReLU); none makes it linear.
        out: width of the output.
        batch_norm: whether hidden layers are batch-normalised before the ReLU.
        skips: whether a connection skips every layer, the last one too; all widths must be `dim` then.
        std: standard deviation of the truncated normal that the weights start from, biases at zero
            (`truncated_normal_`); None for torch's own start.

    Raises:
        ValueError: for a width below 1, and skips between different widths.

    Example:
        >>> MLP(64, hidden=(32,), out=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 8])
        >>> x = torch.rand(2, 8)
        >>> nearly = MLP(8, hidden=(8, 8), out=8, batch_norm=False, skips=True, std=1e-6)
        >>> torch.allclose(nearly(x), x, atol=1e-3)
        True

    References:
        | Deep Residual Learning for Image Recognition (He et al., 2016)
        | https://arxiv.org/abs/1512.03385
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (512, 256),
        out: int = 128,
        batch_norm: bool = True,
        skips: bool = False,
        std: float | None = None,
    ) -> None:
        super().__init__()
        if min((*hidden, out)) < 1:
            raise ValueError(f"MLP: hidden is {list(hidden)} and out {out}, expected widths of at least 1")
        if skips and {*hidden, out} != {dim}:
            raise ValueError(f"MLP: hidden is {list(hidden)} and out {out}, expected {dim} everywhere with skips")
        layers: list[nn.Module] = []
        for width in hidden:
            layer: list[nn.Module] = [nn.Linear(dim, width, bias=not batch_norm)]
            layer += [nn.BatchNorm1d(width)] if batch_norm else []
            layer += [nn.ReLU()]
            layers += [_Skipped(*layer)] if skips else layer
            dim = width
        last = nn.Linear(dim, out)
        self.layers = nn.Sequential(*layers, _Skipped(last) if skips else last)
        self.out_dim = out
        if std is not None:
            truncated_normal_(self, std)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n out"]:
        """Flattens and maps every row."""
        return cast(Tensor, self.layers(x.flatten(1)))


class _Skipped(nn.Sequential):
    """Layers with a connection around them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]  # torch's


def truncated_normal_(module: nn.Module, std: float) -> None:
    r"""Starts all linear and convolutional layers from a truncated normal, biases at zero.

    .. math::
        w \sim N(0, \sigma^2) \text{ given } |w| < 2 \sigma, \qquad b = 0

    Arguments:
        module: changed in place.
        std: :math:`\sigma`, before truncation.

    Raises:
        ValueError: for a deviation that is not positive.

    Example:
        >>> layer = nn.Linear(100, 100)
        >>> truncated_normal_(layer, 1e-4)
        >>> bool(layer.weight.abs().max() <= 2e-4), float(layer.bias.detach().abs().max())
        (True, 0.0)
    """
    if not 0 < std < float("inf"):
        raise ValueError(f"truncated_normal_: std is {std}, expected a positive number")
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def glorot_uniform_(module: nn.Module) -> None:
    r"""Starts all linear and convolutional layers as TensorFlow does, which papers mean when they say nothing.

    .. math::
        w \sim U(-a, a), \quad a = \sqrt{6 / (\mathrm{fan}_{in} + \mathrm{fan}_{out})}, \qquad b = 0

    Arguments:
        module: changed in place.

    Example:
        >>> layer = nn.Linear(3, 3)
        >>> glorot_uniform_(layer)
        >>> bool(layer.weight.abs().max() <= 1), float(layer.bias.detach().abs().max())
        (True, 0.0)

    References:
        | Understanding the Difficulty of Training Deep Feedforward Neural Networks (Glorot and Bengio, 2010)
        | https://proceedings.mlr.press/v9/glorot10a.html
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


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


class StridedConvNet(nn.Module):
    r"""Creates a convolutional encoder without pooling in between: 5 x 5 convolutions of stride 2.

    The last of them is normalised over channels and positions together, with a scale per channel, averaged over
    positions and mapped linearly. Padding is TensorFlow's ``"same"``: where it is odd, the extra row is below and the
    extra column right.

    Arguments:
        channels: of the images.
        widths: channels of each convolution, each followed by a ReLU.
        out: width of the features.

    Raises:
        ValueError: for no convolution, and widths below 1.

    Example:
        >>> StridedConvNet(1)(torch.zeros(2, 1, 14, 28)).shape
        torch.Size([2, 100])

    References:
        | On Mutual Information Maximization for Representation Learning (Tschannen et al., 2020)
        | https://arxiv.org/abs/1907.13625
        | Layer Normalization (Ba et al., 2016)
        | https://arxiv.org/abs/1607.06450
    """

    def __init__(self, channels: int, *, widths: Sequence[int] = (64, 128), out: int = 100) -> None:
        super().__init__()
        if not widths or min((*widths, out)) < 1:
            raise ValueError(
                f"StridedConvNet: widths are {list(widths)} and out {out}, expected at least one, each at least 1"
            )
        self.convolutions = nn.ModuleList()
        for width in widths:
            self.convolutions.append(nn.Conv2d(channels, width, 5, stride=2))
            channels = width
        self.norm = nn.GroupNorm(1, channels)  # one group is the layer norm over channels and positions
        self.last = nn.Linear(channels, out)
        self.to(memory_format=torch.channels_last)
        self.out_dim = out

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out"]:
        """Maps every image to a feature vector."""
        x = x.contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            x = convolution(nn.functional.pad(x, _same_padding(x.shape[2], x.shape[3]))).relu()
        return cast(Tensor, self.last(self.norm(x).mean((2, 3))))


def _same_padding(height: int, width: int) -> tuple[int, int, int, int]:
    """Left, right, top, bottom of a 5 x 5 kernel with stride 2."""
    of_size = [5 - (2 - size % 2) for size in (width, height)]
    (left, right), (top, bottom) = ((total // 2, total - total // 2) for total in of_size)
    return left, right, top, bottom


class Timm(nn.Module):
    """Creates any backbone of timm, without its classifier.

    Arguments:
        name: a model of ``timm.list_models()``, such as ``resnet18``, or one of a hub or folder: ``hf-hub:OWNER/NAME``,
            ``local-dir:PATH``.
        channels: of the images; timm adapts the first layer.
        pretrained: whether timm loads its weights (from its cache, or the network).

    Raises:
        InputError: for a name that timm does not know (with the nearest ones), and when the weights
            cannot be had.
    """

    def __init__(self, name: str, channels: int, *, pretrained: bool = False) -> None:
        super().__init__()
        import timm  # half a second: only for those who use it

        # After the dot stands the tag of the weights.
        if not name.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(name.split(".")[0]):
            near = ", ".join(get_close_matches(name, timm.list_models(), n=3)) or "see timm.list_models()"
            raise InputError(f"timm has no model {name!r}; nearest: {near}")
        try:
            self.model = timm.create_model(name, pretrained=pretrained, in_chans=channels, num_classes=0)
        except (OSError, RuntimeError) as error:
            if not pretrained and ":" not in name:
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
    classes = {"MLP": MLP, "ConvNet": ConvNet, "StridedConvNet": StridedConvNet, "Timm": Timm}
    if recipe.encoder not in classes:
        raise InputError(f"no encoder {recipe.encoder!r}; there are {', '.join(classes)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = classes[recipe.encoder](**recipe.arguments)
        encoder = ImageEncoder(backbone, recipe.mean, recipe.std)
        projector = nn.Identity() if recipe.projector is None else MLP(encoder.out_dim, **recipe.projector)
    return encoder, projector


def save_encoder(folder: Path, recipe: Recipe, encoder: nn.Module, projector: nn.Module, critic: nn.Module) -> None:
    """Writes the weights as safetensors and, beside them, the JSON that rebuilds the modules and holds their checksum.

    Arguments:
        folder: an existing run folder.
        recipe: what the modules were built from.
        encoder: its weights are saved.
        projector: likewise.
        critic: likewise, for whoever evaluates the bound again.
    """
    modules = nn.ModuleDict({"encoder": encoder, "projector": projector, "critic": critic})
    save_tensors(folder / WEIGHTS, modules.state_dict())
    digest = sha256_of(folder / WEIGHTS)
    text = json.dumps({"kpair": version("kpair"), _CHECKSUM: digest, **asdict(recipe)}, indent=2)
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
    fields = _read_json(run)
    fields.pop("kpair", None)
    fields.pop(_CHECKSUM, None)
    try:
        return Recipe(**fields)
    except TypeError as error:
        raise InputError(f"{Path(run) / RECIPE} cannot be read: {error}") from error


def _read_json(run: str | Path) -> dict[str, Any]:
    path = Path(run) / RECIPE
    if not path.is_file():
        raise InputError(f"{run} holds no trained encoder: {RECIPE} is missing (is the run finished?)")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} cannot be read: it holds a {type(fields).__name__}, expected names and values")
    return fields


def load_weights(run: str | Path, *, encoder: nn.Module, projector: nn.Module, critic: nn.Module | None = None) -> None:
    """Loads trained weights into modules that were built for them.

    Arguments:
        run: the folder that `kpair train` wrote.
        encoder: changed in place.
        projector: likewise.
        critic: likewise; None leaves its weights in the file.

    Raises:
        InputError: when the file is missing, unreadable, damaged (by its checksum, where the run has one), or of
            another architecture; the modules are left as they were.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(run) / WEIGHTS
    try:
        expected = _read_json(run).get(_CHECKSUM)
        if expected is not None and sha256_of(path) != expected:
            raise InputError(f"{path} is damaged: its checksum is not the one in {RECIPE}")
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    modules = nn.ModuleDict({"encoder": encoder, "projector": projector})
    if critic is not None:
        modules["critic"] = critic
    wanted = {k: v for k, v in state.items() if k.split(".")[0] in modules}
    check_state(modules, wanted, source=path)
    modules.load_state_dict(wanted)
