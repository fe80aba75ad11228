"""What the experiments share: one line a run in a file, the interval over seeds, tables of markdown."""

import errno
import hashlib
import json
import os
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from filelock import FileLock
from scipy import stats

__all__ = ["append", "commit", "half_width", "is_of_the_machine", "lock", "markdown", "provenance", "read", "run"]

_OF_THE_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE
}  # fmt: skip


def lock(path: Path, what: str = "") -> FileLock:
    """A lock between processes of this machine that fill the same lines; it dies with its process.

    Arguments:
        path: of the lines.
        what: is locked; the lines themselves if nothing is said.
    """
    name = hashlib.sha256(f"{path.resolve()} {what}".encode()).hexdigest()[:16]
    return FileLock(Path(gettempdir()) / f"kpair-{name}.lock")


def read(path: Path) -> list[dict[str, Any]]:
    """All runs so far, failed ones too.

    Arguments:
        path: of the lines; it need not exist yet.
    """
    if not path.exists():
        return []
    with lock(path):
        text = path.read_text()
    return [json.loads(line) for line in text.splitlines()]


def append(path: Path, line: dict[str, Any]) -> None:
    """Writes the line of a run behind the others.

    Arguments:
        path: of the lines.
        line: what a run found.
    """
    with lock(path):
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError:  # a full disk: half a line would spoil the file
            if path.exists():
                os.truncate(path, before)
            raise


@cache
def commit() -> str:
    """The commit that was checked out when it was first asked for, shortened: later ones are not what runs.

    Python files of it that were changed since are told by a hash of the changes.
    """
    changes = _git("diff", "HEAD", "--", ":(top,glob)**/*.py")
    changed = f"-changed-{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else ""
    return _git("rev-parse", "--short", "HEAD") + changed


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


def is_of_the_machine(error: BaseException | None) -> bool:
    """Whether the disk or the memory was full, or failed, and not the run, which is worth another try.

    Arguments:
        error: what was raised.
    """
    while error is not None:
        # torch's own are RuntimeErrors: an accelerator's, and the processor's.
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            return True
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            return True
        error = error.__cause__
    return False


def run(
    path: Path,
    experiment: str,
    config: dict[str, Any],
    seed: int,
    work: Callable[[], dict[str, Any]],
    *,
    packages: Sequence[str] = ("torch", "kpair"),
) -> None:
    """Runs `work` unless its line is there, and appends the line; a failed run stays, unless the machine failed.

    Arguments:
        path: of the lines.
        experiment: its name.
        config: what was chosen; together with the seed it names the run.
        seed: of everything.
        work: does it, and returns the figures.
        packages: whose versions the line holds.
    """
    for row in read(path):
        if (row["experiment"], row["config"], row["seed"]) == (experiment, config, seed):
            return
    line: dict[str, Any] = {"experiment": experiment, "config": config, "seed": seed}
    by, start = commit(), time.perf_counter()
    try:
        line |= {"status": "ok", **work()}
    except Exception as error:
        if is_of_the_machine(error):
            raise
        line |= {"status": "failed", "error": traceback.format_exc().splitlines()[-1]}
    line |= {"seconds": round(time.perf_counter() - start, 1), "commit": by}
    line["versions"] = {name: version(name) for name in packages}
    append(path, line)
    print(json.dumps({k: line[k] for k in line if k not in ("commit", "versions")}), flush=True)


def half_width(values: Sequence[float], count: int | None = None) -> float:
    """Half the width of the 95 % t-interval of a mean.

    Arguments:
        values: at least two.
        count: of how many values with the same deviation; None for those that are there.
    """
    count = len(values) if count is None else count
    return float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(values) / count**0.5


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a markdown table; a bar within a cell is escaped.

    Arguments:
        rows: the first is the head.
    """
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def provenance(rows: Sequence[dict[str, Any]]) -> str:
    """How many runs stand behind a page, and where they come from.

    Arguments:
        rows: lines of a series.
    """
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    seconds = sum(row["cpu_seconds"] for row in rows)
    processors = "; ".join(sorted({row["hardware"]["processor"] for row in rows}))
    return f"{len(rows)} runs, {seconds / 60:.0f} CPU minutes, commits {commits}, {processors}."
