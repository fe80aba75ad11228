"""The README's code runs, and its two commands are there as the gate runs them."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_code_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})
    assert "bound" in capsys.readouterr().out


def test_the_two_commands():
    text = README.read_text()
    start = "    python -m venv .venv && . .venv/bin/activate && pip install -e "
    assert f'{start}".[faiss]" && kpair train\n' in text
    assert f'{start}".[dev]" && pytest -n 2 --dist worksteal\n' in text


def test_its_links_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
