"""Encoders that others trained: timm's networks, with their own weights and preprocessing, on images of any size.

timm is imported where it is used: importing this module is cheap.
"""

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from contrastive.encoders import Timm
from contrastive.errors import InputError
from contrastive.pictures import as_utf8, each_file, find_images, printable

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Embedder", "Pictures", "embed_pictures", "load_timm", "of_pixels", "preprocessing", "untrained"]

_CHUNK = 128  # images at a time
_PIXELS = 32  # a side of the images whose pixels are compared


@dataclass(frozen=True)
class Pictures:
    """Images that are looked at once, a few at a time: files, or an array.

    Arguments:
        name: of the data set, for messages.
        files: of the images; or
        images: the images.
        labels: index into `classes`; None: there are none.
        classes: their names.
        names: of the files, within their folder.
    """

    name: str
    files: Sequence[Path] | None = None
    images: UInt8[Tensor, "n c h w"] | None = None
    labels: Int64[Tensor, " n"] | None = None
    classes: Sequence[str] = ()
    names: Sequence[str] | None = None

    @staticmethod
    def of_folder(path: Path) -> "Pictures":
        """All images of a folder, or those of ``test`` (or ``val``) where there is ``train`` beside it.

        Arguments:
            path: of the folder, in one of the layouts of `contrastive.data.folder`.

        Raises:
            InputError: for a folder that is missing or holds no image.
        """
        name = f"folder:{printable(path.name)}"
        try:
            train, test = find_images(name, path.expanduser())
        except OSError as error:
            raise InputError(f"{name}: {printable(str(path))} cannot be read: {error}") from error
        found = train if test is None else test
        labels, classes = None, []
        if found[0][0] is not None:
            classes = sorted({label or "" for label, _ in found})
            number = {label: i for i, label in enumerate(classes)}
            labels = torch.tensor([number[label or ""] for label, _ in found])
        names = [as_utf8(file.relative_to(path.expanduser()).as_posix()) for _, file in found]
        return Pictures(name, [file for _, file in found], None, labels, [as_utf8(label) for label in classes], names)

    def __len__(self) -> int:
        return len(self.files if self.files is not None else cast(Tensor, self.images))

    def spread(self, count: int) -> "Pictures":
        """So many of the images, at equal distances: a folder begins with one class.

        Arguments:
            count: how many at most.
        """
        rows = range(0, len(self), max(1, len(self) // count))[:count]
        if self.files is not None:
            return Pictures(self.name, [self.files[row] for row in rows])
        return Pictures(self.name, images=cast(Tensor, self.images)[list(rows)])

    def chunks(self, use: Callable[["Image.Image"], Any]) -> Iterator[list[Any | str]]:
        """What a function makes of each RGB image, or why it cannot be read, some images at a time.

        Arguments:
            use: is called in several threads.
        """
        from PIL import Image

        for first in range(0, len(self), _CHUNK):
            if self.files is not None:
                yield each_file(list(self.files[first : first + _CHUNK]), use)
            else:
                arrays = cast(Tensor, self.images)[first : first + _CHUNK].permute(0, 2, 3, 1).numpy()
                grey = arrays.shape[3] == 1
                yield [use(Image.fromarray(image[:, :, 0] if grey else image).convert("RGB")) for image in arrays]


@dataclass(frozen=True)
class Embedder:
    """From images to vectors.

    Arguments:
        preprocess: of one RGB image, to what the network takes.
        network: of a batch of these.
    """

    preprocess: Callable[["Image.Image"], Tensor]
    network: Callable[[Tensor], Tensor]


def load_timm(name: str, weights: Path | None = None) -> Timm:
    """A network of timm with trained weights, without its classifier.

    Arguments:
        name: as in `contrastive.encoders.Timm`.
        weights: a file of its weights (.safetensors, .pth), read without running any code; None: timm's own, from its
            cache or the network.

    Raises:
        InputError: for an unknown name, weights that cannot be had or read, or of another network.
    """
    encoder = Timm(name, 3, pretrained=weights is None)
    if weights is None:
        return encoder
    from timm.models import load_state_dict

    try:
        with warnings.catch_warnings(action="ignore"):  # that a pickle is old, before it is refused
            state = load_state_dict(str(weights), weights_only=True)
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # every reader has exceptions of its own
        if isinstance(error.__cause__ or error, pickle.UnpicklingError):
            raise InputError(f"{weights} holds a pickle of other things than tensors, and is not read") from error
        reason = str(error).strip().splitlines()
        raise InputError(f"{weights} cannot be read: {reason[0] if reason else 'is it a file?'}") from error
    network = encoder.model
    heads = network.pretrained_cfg.get("classifier") or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(f"{head}.")}
    wanted = network.state_dict()
    for problem, keys in (
        ("it lacks", wanted.keys() - tensors.keys()),
        ("that network has no", tensors.keys() - wanted.keys()),
        (
            "of another shape:",
            {key for key in wanted.keys() & tensors.keys() if wanted[key].shape != tensors[key].shape},
        ),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(f"{weights} does not fit timm's {name}: {problem} {min(keys)}{more}")
    network.load_state_dict(tensors)
    return encoder


def preprocessing(encoder: Timm) -> Callable[["Image.Image"], Tensor]:
    """What timm says that the weights of a network expect: size, crop, interpolation, mean and deviation.

    Arguments:
        encoder: of `load_timm`.
    """
    from timm.data import create_transform, resolve_model_data_config

    return cast(
        Callable[["Image.Image"], Tensor],
        create_transform(**resolve_model_data_config(encoder.model), is_training=False),
    )


def untrained(name: str, pictures: Pictures, preprocess: Callable[["Image.Image"], Tensor], *, seed: int = 0) -> Timm:
    """The same network with random weights; its batch norms have the statistics of some images.

    Arguments:
        name: as in `load_timm`.
        pictures: of which some serve.
        preprocess: of the trained one.
        seed: of the weights; the caller's random state is left alone.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = Timm(name, 3).eval()
    norms = [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    (tensors, _), *_ = _batches(pictures.spread(_CHUNK), {"": preprocess})
    if len(tensors[""]) > 1:
        for norm in norms:
            norm.train()
            norm.momentum = None  # the statistics of all that it sees
        with torch.no_grad():
            encoder(tensors[""])
    return encoder.eval()


def of_pixels() -> Embedder:
    """The representation that is none: the centre square at 32 x 32 pixels, in [0, 1], flattened."""
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

    return Embedder(Compose([Resize(_PIXELS), CenterCrop(_PIXELS), ToTensor()]), nn.Flatten())


def embed_pictures(
    pictures: Pictures,
    embedders: Mapping[str, Embedder],
    *,
    device: torch.device | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Float[Tensor, "n d"]], dict[int, str]]:
    """Looks at every image once, through all of them.

    Arguments:
        pictures: any number.
        embedders: by name. Modules are put into evaluation mode, and moved.
        device: where modules compute; None: the CPU.
        on_progress: is told how many images are done, and of how many.

    Returns:
        Vectors by name, on the CPU, of the images that can be read; and of each other row the reason.

    Raises:
        InputError: if no image can be read.
    """
    device = torch.device("cpu") if device is None else device
    for embedder in embedders.values():
        if isinstance(embedder.network, nn.Module):
            embedder.network.eval().to(device)
    parts: dict[str, list[Tensor]] = {name: [] for name in embedders}
    failures: dict[int, str] = {}
    done = 0
    for tensors, failed in _batches(pictures, {name: embedder.preprocess for name, embedder in embedders.items()}):
        failures |= {done + row: reason for row, reason in failed.items()}
        for name, images in tensors.items():
            if len(images):
                with torch.no_grad():
                    parts[name].append(embedders[name].network(images.to(device)).float().cpu())
        done = min(done + _CHUNK, len(pictures))
        if on_progress is not None:
            on_progress(done, len(pictures))
    if len(failures) == len(pictures):
        first = f", the first is {failures[0]}" if failures else ""
        raise InputError(f"{pictures.name}: none of the {len(pictures)} images can be read{first}")
    return {name: torch.cat(part) for name, part in parts.items()}, failures


def _batches(
    pictures: Pictures, preprocess: Mapping[str, Callable[["Image.Image"], Tensor]]
) -> Iterator[tuple[dict[str, Tensor], dict[int, str]]]:
    """Images as tensors by name, each kind once; and of those that cannot be read the reason, by place."""
    kinds = list(dict.fromkeys(preprocess.values()))
    for found in pictures.chunks(lambda image: [kind(image) for kind in kinds]):
        failed = {row: image for row, image in enumerate(found) if isinstance(image, str)}
        kept = [image for image in found if not isinstance(image, str)]
        if kept:
            stacked = dict(zip(kinds, map(torch.stack, zip(*kept, strict=True)), strict=True))
            yield {name: stacked[kind] for name, kind in preprocess.items()}, failed
        else:
            yield dict.fromkeys(preprocess, torch.empty(0)), failed
