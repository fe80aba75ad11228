"""docs/reliability.md: a line for every row, and every test that it names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def functions_of(path):
    return {
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    }


def test_every_row_has_a_line_and_every_test_is_there():
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", TEXT, re.M)
    assert [int(row) for row, _ in rows][:33] == list(range(1, 34))
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) >= 33
    for path, test in named:
        assert test in functions_of(ROOT / path), f"{path}::{test}"


def test_it_is_in_the_index():
    assert "\nreliability\n" in (ROOT / "docs" / "index.md").read_text()
