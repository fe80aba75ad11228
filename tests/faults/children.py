"""Processes that may be killed: forked from a server that has torch imported already, so each starts at once."""

import multiprocessing
import os
import resource
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["contrastive.cli.train", "contrastive.training", "miners", "sklearn.datasets"])


def start(function, *arguments, output=None):
    """Starts a function in a process of its own; what it prints goes to the file `output`."""
    process = CONTEXT.Process(target=_child, args=(function, arguments, output))
    process.start()
    return process


def run(function, *arguments, output=None, timeout=120):
    """Runs a function in a process of its own, and returns its exit status (negative: the signal that ended it)."""
    process = start(function, *arguments, output=output)
    return ended(process, timeout)


def ended(process, timeout=120):
    """The exit status of a process; one that hangs is killed and an error."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"still running after {timeout} s")
    return process.exitcode


def with_a_limit(kind, size, function, *arguments):
    """Calls a function under a limit of the system's (`resource.RLIMIT_...`); of memory, beyond what is taken."""
    if kind == resource.RLIMIT_AS:
        size += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(kind, (size, size))
    return function(*arguments)


def _child(function, arguments, output):
    if output is not None:
        with Path(output).open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    sys.exit(function(*arguments))
