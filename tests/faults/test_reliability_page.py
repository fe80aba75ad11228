"""docs/reliability.md: a line for every row, with a test of the row's name."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| .* \| `(tests/[\w/]+\.py)::(\w+)` \|$", TEXT, re.M)


def functions_of(path):
    return {
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    }


def test_every_row_has_a_line():
    assert [int(row) for row, _, _ in ROWS] == list(range(1, 34))


@pytest.mark.parametrize(("row", "path", "test"), ROWS, ids=[row for row, _, _ in ROWS])
def test_the_test_of_a_row_has_its_name_and_is_there(row, path, test):
    assert test.startswith(f"test_row{int(row):02}_")
    assert test in functions_of(ROOT / path)


def test_every_other_test_that_the_page_names_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > len(ROWS)
    for path, test in named:
        assert test in functions_of(ROOT / path), f"{path}::{test}"


def test_it_is_in_the_index():
    assert "\nreliability\n" in (ROOT / "docs" / "index.md").read_text()
