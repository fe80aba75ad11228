"""The command `kpair`, and the check that the module `contrastive` is ours.

This file is installed a second time, as the top-level module `kpair`: it must import nothing of the
two packages before the check, or a foreign `contrastive` would break it with a traceback.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["main", "shadowed"]


def shadowed() -> str | None:
    """Returns a sentence when the module `contrastive` that Python finds is not the one of kpair, else None.

    The file is read, not run: the other project's import may fail for reasons of its own.
    """
    spec = find_spec("contrastive")
    origin = spec.origin if spec is not None else None
    if origin is not None and '__distribution__ = "kpair"' in Path(origin).read_text(
        encoding="utf-8", errors="replace"
    ):
        return None
    found = origin or "nothing importable"
    return (
        f"kpair needs its own module `contrastive`, but Python finds {found}: another project (`contrastive` on the "
        "package index, or a folder of that name on sys.path) hides it; uninstall or rename that one, or install kpair "
        "in an environment of its own"
    )


def main() -> int:
    """Runs the command line; a foreign `contrastive` ends it with one sentence and status 2."""
    message = shadowed()
    if message is not None:
        print(f"kpair: error: {message}", file=sys.stderr)
        return 2
    from contrastive.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
