"""The command `kpair`: the one place where names become functions."""

import errno
import os
import sys
from collections.abc import Callable

from contrastive import launch
from contrastive.cli.doctor import doctor
from contrastive.cli.evaluate import evaluate
from contrastive.cli.mine import mine
from contrastive.cli.train import train
from contrastive.errors import InputError
from contrastive.options import nearest

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Arguments:
        arguments: the words after `kpair`; None takes them from the command line.

    Returns:
        The exit status: 0, 2 for what the user can mend (one sentence on standard error: input, a full disk, too little
        memory), 130 for Ctrl-C, 143 for SIGTERM.
    """
    words = sys.argv[1:] if arguments is None else arguments
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": train,
        "evaluate": evaluate,
        "mine": mine,
        "doctor": doctor,
    }
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_HELP)
        elif words[0] == "--version":
            from importlib.metadata import version

            print(f"kpair {version('kpair')}")
        elif words[0] not in commands:
            raise InputError(
                f"unknown command {words[0]!r}{nearest(words[0], commands)}; there are {', '.join(commands)}"
            )
        else:
            commands[words[0]](words[1:])
    except InputError as error:
        if launch.first() or not isinstance(error, launch.RefusedByAll):
            print(f"kpair: error: {_who(error)}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"kpair: interrupted{_what_goes_on(words)}", file=sys.stderr)
        return 130
    except SystemExit as ending:
        if ending.code == 143:
            print(f"kpair: terminated{_what_goes_on(words)}", file=sys.stderr)
        raise
    except Exception as error:
        if launch.of_another_rank(error):
            print(f"kpair: {_who(error)}stopped, for another rank has gone", file=sys.stderr)
            return 1
        if (what := _of_the_machine(error, words[0])) is None:
            if launch.launched():
                print(f"kpair: {_who(error)}failed, as follows", file=sys.stderr)
            raise
        print(f"kpair: error: {_who(error)}{what}", file=sys.stderr)
        return 2
    return 0


def _who(error: BaseException) -> str:
    """The rank that an error is of, where it is not everybody's."""
    alone = not launch.launched() or isinstance(error, launch.RefusedByAll)
    return "" if alone else f"rank {os.environ['RANK']}: "


def _what_goes_on(words: list[str]) -> str:
    """Whether there is something to go on with: an evaluation keeps it where it was asked to."""
    kept = words[0] in ("train", "mine") or any(word.startswith("--resume") for word in words)
    return "; what was under way goes on with --resume auto" if kept else ""


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
# As torch says it of CUDA, of the CPU on Windows, and of the CPU elsewhere.
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
_LESS_MEMORY = {
    "train": "a smaller --batch-size, --chunk, --limit, --image-size or encoder takes less, and --resume auto goes on "
    "from the last checkpoint",
    "evaluate": "a smaller --k, --sample or --report-queries takes less; a .npy file is read a part at a time",
    "mine": "a smaller --k takes less; a .npy file is read a part at a time",
}


def _of_the_machine(error: Exception, command: str) -> str | None:
    """What the machine lacks, in one sentence; None for a defect, which keeps its traceback."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{error.filename or 'a file'} cannot be written ({error.strerror})"
    text = str(error)
    no_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if no_memory or any(words in text for words in _NO_MEMORY):
        first = text.strip().splitlines()[0] if text.strip() else "no more to be had"
        return f"out of memory ({first}): {_LESS_MEMORY.get(command, 'close other programs')}"
    return None


_HELP = """usage: kpair COMMAND [options]

Contrastive learning as metric learning: train with hard-negative miners, evaluate retrieval.

commands:
  train      train an encoder on images without labels, evaluate it, write a report
  evaluate   evaluate a run, or a file of embeddings
  mine       find the hardest negatives of every row of a file of embeddings
  doctor     print what this machine computes with, and what stands in the way

kpair COMMAND --help shows the options of a command; kpair --version the version."""
