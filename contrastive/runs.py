"""A run folder: claimed for one configuration, filled by training, read by evaluation.

==========================  ====================================================
``config.yaml``             every option, so that ``--config`` repeats the run
``metrics.csv``             loss, learning rate and held-out figures by step
``metrics.json``            the figures; its presence means that the run is finished
``checkpoints/``            the newest two
``encoder.safetensors``     weights of encoder, projector and critic
``encoder.json``            what rebuilds the modules
``embeddings.safetensors``  features, projections and labels of the test images
``report.html``             the page, with its plots in ``figures/``
==========================  ====================================================
"""

import glob
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from contrastive.errors import InputError
from contrastive.files import save_tensors, write_text

if TYPE_CHECKING:
    from contrastive.data import ImageData
    from contrastive.evaluation import Evaluation
    from contrastive.report import HardNegatives

__all__ = [
    "claim",
    "environment",
    "finish",
    "next_folder",
    "peak_mb",
    "read_config",
    "unfinished_folder",
    "what_is_computed",
    "write_json",
]

CONFIG, METRICS = "config.yaml", "metrics.json"
# Where and how a run goes on, not what it computes.
_NOT_THE_RUN = (
    "out", "resume", "progress", "data_root", "download", "checkpoint_every", "tensorboard", "timeout", "skip_steps",
)  # fmt: skip
# These stand in no file: a configuration that named its own folder could be run only once.
_NOT_SAVED = ("out", "resume", "progress")


def next_folder(data: str) -> Path:
    """The first free ``runs/DATA-N``.

    Arguments:
        data: name of the data set.
    """
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in data)
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"


def unfinished_folder(data: str, config: Mapping[str, Any]) -> Path | None:
    """The newest ``runs/DATA-N`` of the same configuration that was not finished; None where there is none.

    Arguments:
        data: name of the data set.
        config: the configuration it must have.
    """
    stem = next_folder(data).name.rsplit("-", 1)[0]
    numbers = (path.name.removeprefix(f"{stem}-") for path in Path("runs").glob(f"{glob.escape(stem)}-*"))
    for n in sorted((int(number) for number in numbers if number.isdecimal()), reverse=True):  # some may be removed
        folder = Path("runs") / f"{stem}-{n}"
        if (folder / CONFIG).is_file() and not (folder / METRICS).exists() and not _differences(folder, config):
            return folder
    return None


def claim(folder: Path, config: Mapping[str, Any], *, resume: bool) -> None:
    """Makes a run folder and writes its configuration, or finds that it is already this run's.

    Arguments:
        folder: made with its parents.
        config: the configuration.
        resume: whether a folder with the same configuration may be continued.

    Raises:
        InputError: when the folder holds something else, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / CONFIG).is_file():
            raise InputError(f"--out: {folder} exists and is not a run: choose another folder")
        if not resume:
            raise InputError(
                f"--out: {folder} holds another run: choose another folder, or continue it with --resume auto"
            )
        if different := _differences(folder, config):
            raise InputError(
                f"--out: {folder} holds a run with other settings ({', '.join(different)}): choose another folder"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        saved = {key: value for key, value in config.items() if key not in _NOT_SAVED}
        write_text(folder / CONFIG, yaml.safe_dump(saved, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be written: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run.

    Arguments:
        folder: a run folder.

    Raises:
        InputError: when there is none.
    """
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{folder} is not a run: its {CONFIG} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder} is not a run: its {CONFIG} holds no options")
    return config


def finish(
    out: Path,
    *,
    title: str,
    config: Mapping[str, Any],
    data: "ImageData",
    measured: "Evaluation",
    history: Sequence[Mapping[str, float]],
    hard_negatives: "HardNegatives | None",
    training: Mapping[str, float],
    cost: Mapping[str, float],
) -> Path:
    """Writes what a finished run holds: embeddings, report, and last of all metrics.json.

    Arguments:
        out: the run folder.
        title: of the report.
        config: every option.
        data: the images, for their counts and labels.
        measured: what evaluation found.
        history: the rows of ``metrics.csv``.
        hard_negatives: for the report.
        training: final loss and steps.
        cost: seconds, images a second, memory.

    Returns:
        The report's path.
    """
    from contrastive.report import Report, write_report

    tensors = {"embeddings": measured.embeddings, "projections": measured.projections}
    if data.test.labels is not None:
        tensors["labels"] = data.test.labels
    save_tensors(out / "embeddings.safetensors", tensors)
    report = Report(
        title=title,
        figures=measured.figures,
        intervals=measured.intervals,
        notes=measured.notes,
        bound=measured.bound,
        history=history,
        neighbours=measured.neighbours,
        hard_negatives=hard_negatives,
        similarities=measured.similarities,
        cost=dict(cost),
        config=dict(config),
        environment=environment(config["seed"]),
    )
    page = write_report(report, out)
    write_json(
        out / METRICS,
        {
            **measured.figures,
            "intervals": measured.intervals,
            "class_intervals": measured.class_intervals,
            "counts": measured.counts,
            "bound": measured.bound,
            "training": training,
            "cost": cost,
            "images": {"train": len(data.train), "test": len(data.test), "skipped": len(data.skipped)},
            "notes": measured.notes,
            "environment": report.environment,
        },
    )
    return page


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all; NaN and infinities become null.

    Arguments:
        path: of the file.
        content: numbers, strings, lists and dicts.
    """
    write_text(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def environment(seed: int) -> dict[str, str]:
    """Versions, hardware and the command: what a reader needs to repeat the figures.

    Arguments:
        seed: of the run.
    """
    packages = (
        "kpair", "torch", "torchvision", "timm", "kornia", "pytorch-lightning", "scikit-learn", "numpy", "faiss-cpu",
        "faiss-gpu",
    )  # fmt: skip
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "command": shlex.join(["kpair", *sys.argv[1:]]),
        "seed": str(seed),
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "threads": str(torch.get_num_threads()),
        "accelerator": device,
    }


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    if sys.platform == "win32":
        return math.nan  # no such count there
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB"
    except (AttributeError, ValueError, OSError):
        return "unknown"


def what_is_computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide a run's result; the others say where and how.

    Arguments:
        config: every option.
    """
    return {key: value for key, value in config.items() if key not in _NOT_THE_RUN}


def _differences(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """The options in which a run folder's configuration is another one."""
    found = read_config(folder)
    wanted = yaml.safe_load(yaml.safe_dump(dict(config)))
    keys = sorted({*what_is_computed(found), *what_is_computed(wanted)})
    return [key for key in keys if found.get(key) != wanted.get(key)]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
