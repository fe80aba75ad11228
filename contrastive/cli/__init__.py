"""The command `kpair`: the one place where names become functions."""

import sys
from collections.abc import Callable

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
        The exit status: 0, 2 for input that the user can mend (one sentence on standard error), 130 for Ctrl-C.
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
        print(f"kpair: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kpair: interrupted; what was under way goes on with --resume auto", file=sys.stderr)
        return 130
    return 0


_HELP = """usage: kpair COMMAND [options]

Contrastive learning as metric learning: train with hard-negative miners, evaluate retrieval.

commands:
  train      train an encoder on images without labels, evaluate it, write a report
  evaluate   evaluate a run, or a file of embeddings
  mine       find the hardest negatives of every row of a file of embeddings
  doctor     print what this machine computes with, and what stands in the way

kpair COMMAND --help shows the options of a command; kpair --version the version."""
