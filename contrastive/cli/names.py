"""Where names become functions: data sets, encoders, projectors, critics, miners."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import miners
from contrastive import critics, data
from contrastive.data import ImageData
from contrastive.encoders import MLP, ConvNet, ImageEncoder, Recipe, Timm, build
from contrastive.errors import InputError
from contrastive.options import Part, nearest
from contrastive.scores import WeighsNegatives
from contrastive.views import RandomView
from contrastive.wrappers import in_evaluation_mode

__all__ = ["PARTS", "Setup", "load_data", "miner_of", "set_up"]

# By name, ``(root, *, download)``; digits are embedded and folders have a path instead.
DATA: dict[str, Callable[..., ImageData]] = {
    "mnist": data.mnist,
    "fashion-mnist": data.fashion_mnist,
    "cifar10": data.cifar10,
    "stl10": data.stl10,
    "omniglot": data.omniglot,
}

PARTS = {
    "encoder": Part(
        {"convnet": ConvNet, "mlp": MLP, "timm:": Timm}, "convnet", filled=frozenset({"channels", "dim", "name"})
    ),
    "projector": Part(
        {"mlp": MLP, "linear": None, "none": None},
        "mlp",
        filled=frozenset({"dim"}),
        overridden={"hidden": (list[int], [256, 256]), "out": (int, 128)},
    ),
    "critic": Part(
        {
            "cosine": critics.Cosine,
            "inner-product": critics.InnerProduct,
            "negative-squared-distance": critics.NegativeSquaredDistance,
            "bilinear": critics.Bilinear,
            "separable": critics.Separable,
            "concat": critics.Concat,
        },
        "cosine",
        filled=frozenset({"dim_x", "dim_y", "temperature"}),
    ),
    "miner": Part(
        {
            "none": None,
            "topk": miners.topk,
            "hardest": miners.hardest,
            "semihard": miners.semihard,
            "hcl": miners.hcl,
            "debiased": miners.debiased,
            "ring": miners.ring,
            "multi-similarity": miners.multi_similarity,
            "distance-weighted": miners.distance_weighted,
            "margin": miners.margin,
            "random-subset": miners.random_subset,
        },
        "none",
        filled=frozenset({"fallback", "temperature", "dim"}),
    ),
    # Whether a mirrored image keeps its meaning is known of the data: None asks it.
    "view": Part(
        {"random": RandomView}, "random", filled=frozenset({"channels"}), overridden={"mirror": (bool | None, None)}
    ),
}


@dataclass(frozen=True)
class Setup:
    """What a configuration stands for.

    Arguments:
        data: the images.
        recipe: what rebuilds encoder and projector.
        encoder: images to features, untrained.
        projector: features to the space of the critic, untrained.
        critic: scores pairs of projections.
        miner: weighs negatives; None: uniform.
        view: draws a random view of every image.
    """

    data: ImageData
    recipe: Recipe
    encoder: ImageEncoder
    projector: nn.Module
    critic: nn.Module
    miner: WeighsNegatives | None
    view: Callable[[Tensor], Tensor]


def set_up(config: Mapping[str, Any]) -> Setup:
    """Resolves every name of a configuration; nothing is written.

    Arguments:
        config: all options.

    Raises:
        InputError: for data that cannot be read and for options that do not fit each other.
    """
    images = load_data(config)
    channels, height, width = images.train.images.shape[1:]
    mean, std = data.channel_statistics(images.train.images)
    options = _options(config, "encoder")
    name = config["encoder"]["name"]
    arguments: dict[str, Any] = {"convnet": {"channels": channels}, "mlp": {"dim": channels * height * width}}.get(
        name, {"name": name.removeprefix("timm:"), "channels": channels}
    )
    kind = PARTS["encoder"].resolve("encoder", name)
    assert kind is not None
    projector: dict[str, Any] | None = {
        "mlp": _options(config, "projector"),
        "linear": {"hidden": [], "out": 128},
        "none": None,
    }[config["projector"]["name"]]
    recipe = Recipe(kind.__name__, {**arguments, **options}, projector, mean, std)
    try:
        encoder, head = build(recipe, seed=config["seed"])
        with torch.random.fork_rng():
            torch.manual_seed(config["seed"])
            dim = encoder.out_dim if projector is None else projector["out"]
            critic = _critic(config, dim)
        view_options = _options(config, "view")
        if view_options["mirror"] is None:
            view_options["mirror"] = images.mirrored
        view = RandomView(channels, **view_options)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    _try_once(encoder, head, critic, images)
    return Setup(images, recipe, encoder, head, critic, miner_of(config, dim), view)


def _options(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {k: v for k, v in config[part].items() if k != "name"}


def load_data(config: Mapping[str, Any]) -> ImageData:
    """The images that a configuration names.

    Arguments:
        config: all options.

    Raises:
        InputError: for an unknown name, or data that cannot be read.
    """
    name = config["data"]
    if name == "digits":
        images = data.digits()
    elif name.startswith("folder:") and name != "folder:":
        images = data.folder(Path(name.removeprefix("folder:")), size=config["image_size"], corrupt=config["corrupt"])
    elif name in DATA:
        root = config["data_root"]
        images = DATA[name](None if root is None else Path(root), download=config["download"])
    else:
        known = ["digits", *DATA]
        raise InputError(
            f"--data: unknown data set {name!r}{nearest(name, known)}; there are {', '.join(known)}, folder:PATH"
        )
    return data.limit(images, config["limit"])


def _critic(config: Mapping[str, Any], dim: int) -> nn.Module:
    name, temperature = config["critic"]["name"], config["temperature"]
    kind = PARTS["critic"].resolve("critic", name)
    assert kind is not None
    options = _options(config, "critic")
    if name in ("cosine", "inner-product", "negative-squared-distance"):
        if temperature is not None:
            options["temperature"] = temperature
        return cast(nn.Module, kind(**options))
    if temperature is not None:
        raise InputError(f"--temperature: the critic {name} has none, its parameters learn their scale")
    return cast(nn.Module, kind(dim, **options))


def miner_of(config: Mapping[str, Any], dim: int = 128) -> WeighsNegatives | None:
    """The miner that a configuration names.

    Arguments:
        config: all options.
        dim: of the projections; any, for a check of the options alone.

    Raises:
        InputError: for options that the miner refuses.
    """
    kind = PARTS["miner"].resolve("miner", config["miner"]["name"])
    if kind is None:
        return None
    options = _options(config, "miner")
    cosine = config["critic"]["name"] == "cosine"
    learnable = bool(config["critic"].get("learnable"))
    temperature = config["temperature"] or critics.Cosine().temperature
    if "min_score" in options and options["min_score"] is None and cosine and not learnable:
        options["min_score"] = -1 / temperature
    if kind is miners.distance_weighted:
        if not cosine or learnable:
            raise InputError(
                "--miner: distance-weighted reads distances off cosines at a temperature it knows, "
                "expected the critic cosine, and not learnable"
            )
        options |= {"temperature": temperature, "dim": dim}
    try:
        return cast(WeighsNegatives, kind(**options))
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error


def _try_once(encoder: nn.Module, projector: nn.Module, critic: nn.Module, images: ImageData) -> None:
    """Modules that cannot take these images, or each other's output, say so before anything is written."""
    height, width = images.train.images.shape[2:]
    try:
        with torch.no_grad(), in_evaluation_mode(encoder), in_evaluation_mode(projector):
            z = projector(encoder(images.train.images[:2]))
            critic(z, z)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--encoder: it cannot take images of {height} x {width} pixels: {reason}") from error
