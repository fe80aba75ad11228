"""The code blocks of the documentation are tests, each page in a folder of its own."""

import contextlib
import tempfile
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def _into_a_folder(namespace: dict[str, Any]) -> None:
    namespace["_left"] = left = contextlib.ExitStack()
    left.enter_context(contextlib.chdir(left.enter_context(tempfile.TemporaryDirectory())))


def _back(namespace: dict[str, Any]) -> None:
    namespace["_left"].close()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["*.md"], setup=_into_a_folder, teardown=_back
).pytest()

collect_ignore = ["conf.py"]
