"""``kpair doctor``: what this machine computes with, and what stands in the way."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from contrastive.errors import InputError
from contrastive.options import parse

__all__ = ["doctor"]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KMP_DUPLICATE_LIB_OK", "OPENBLAS_CORETYPE")


def doctor(words: list[str]) -> None:
    """Prints versions, FAISS' flavour, GPUs, threads, the path of matrix products, and problems in words.

    Arguments:
        words: of the command line, after the command.

    Raises:
        InputError: for options that do not exist, or a file that cannot be written.
    """
    options = parse(
        words,
        prog="kpair doctor",
        description="Prints what this machine computes with (torch, FAISS, GPUs, threads, matrix products) and what "
        "stands in the way.",
        parts={},
        add_options=_add_options,
    )
    facts = {"versions": _versions(), "faiss": _faiss_facts(), "torch": _torch_facts(), "threads": _threads()}
    problems = _problems(facts)
    width = max(len(name) for group in facts.values() for name in group)
    for title, group in facts.items():
        print(title)
        for name, value in group.items():
            print(f"  {name:{width}}  {_in_words(value)}")
    for problem in problems:
        print(f"problem: {problem}")
    if not problems:
        print("no problems found")
    if options["json"] is not None:
        from contrastive.runs import write_json

        try:
            write_json(Path(options["json"]), {**facts, "problems": problems})
        except OSError as error:
            raise InputError(f"--json: {options['json']} cannot be written: {error}") from error


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--json", type=str | None, default=None, metavar="FILE", help="write all of it as JSON as well")


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("kpair", "torch", "numpy", "scikit-learn", "safetensors", "pyarrow", "timm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _faiss_facts() -> dict[str, Any]:
    """By the module itself; distributions are listed, since two of them overwrite each other's files."""
    from contrastive import _faiss

    distributions = sorted(set(metadata.packages_distributions().get("faiss", [])))
    facts: dict[str, Any] = {
        "distributions": [f"{name} {metadata.version(name)}" for name in distributions],
        "usable": _faiss.available(),
    }
    if facts["usable"]:
        facts |= _faiss.flavour()
    facts["auto chooses"] = "faiss" if _faiss.safe_by_default() else "torch"
    return facts


def _torch_facts() -> dict[str, Any]:
    import torch

    from contrastive import gemm

    cuda = torch.cuda.is_available()
    return {
        "GPUs": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "MPS": torch.backends.mps.is_available(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "float32 products": "oneDNN, exact" if gemm.exact() else "MKL or OpenBLAS (oneDNN is not there, or not exact)",
    }


def _threads() -> dict[str, Any]:
    import torch

    from contrastive import _faiss

    facts: dict[str, Any] = {
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": torch.get_num_threads(),
        "faiss": _faiss.threads(),
    }
    return facts | {name: os.environ[name] for name in _THREADS if name in os.environ}


def _problems(facts: dict[str, dict[str, Any]]) -> list[str]:
    problems = []
    distributions = facts["faiss"]["distributions"]
    if len(distributions) > 1:
        problems.append(
            f"{' and '.join(distributions)} install the same module faiss over each other: pip uninstall all of them, "
            "then install the one that is wanted"
        )
    if distributions and not facts["faiss"]["usable"]:
        problems.append(f"{distributions[0]} is installed, but cannot be imported or answers wrongly: torch searches")
    if facts["faiss"].get("flavour") == "GPU" and facts["faiss"]["GPUs"] == 0:
        problems.append("this FAISS is built for GPUs and finds none: it searches on the CPU")
    if facts["torch"]["GPUs"] and facts["faiss"].get("flavour") == "CPU":
        problems.append("torch has a GPU and this FAISS has none: backend='torch' searches on the GPU")
    if sys.platform == "darwin" and facts["faiss"]["usable"]:
        problems.append("on macOS torch and FAISS each bring an OpenMP: torch searches unless FAISS is asked for")
    threads = facts["threads"]
    if threads["torch"] > threads["processors"]:
        problems.append(
            f"torch uses {threads['torch']} threads on {threads['processors']} processors: set OMP_NUM_THREADS"
        )
    if "KMP_DUPLICATE_LIB_OK" in threads:
        problems.append("KMP_DUPLICATE_LIB_OK is set: two OpenMP runtimes in one process may compute wrongly")
    return problems


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not installed" if value is None else str(value)
