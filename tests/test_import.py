"""What an import costs, what it must not bring, and what it says when another `contrastive` stands in the way."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = [
    "pytorch_lightning",
    "lightning",
    "timm",
    "faiss",
    "matplotlib",
    "sklearn",
    "torchvision",
    "kornia",
    "jinja2",
    "rich",
    "pytorch_metric_learning",
    "jsonargparse",
    "scipy",
    "PIL",
]


def python(script, *arguments, cwd=ROOT, options=()):
    return subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", script, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_an_import_is_light_and_fast():
    script = (
        "import sys, time, torch\n"
        "before = set(sys.modules)\n"
        "start = time.process_time()\n"
        "import contrastive, miners\n"
        "seconds = time.process_time() - start\n"
        "print(seconds, *sorted({name.split('.')[0] for name in set(sys.modules) - before}))\n"
    )
    seconds = []
    for _ in range(5):  # of processor time, which a busy machine raises too: the smallest of five is the cost
        run = python(script)
        assert run.returncode == 0, run.stderr
        first, *brought = run.stdout.split()
        assert {"contrastive", "miners"} <= set(brought)
        assert not set(brought) & set(HEAVY)
        seconds.append(float(first))
        if min(seconds) < 0.3:
            return
    pytest.fail(f"importing contrastive and miners took {min(seconds):.2f} s of processor time, expected under 0.3")


def foreign(folder):
    """Another project's package of the same name, whose own import fails."""
    package = folder / "contrastive"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('not meant to run here')\n")
    return package / "__init__.py"


def test_another_contrastive_makes_miners_say_so(tmp_path):
    found = foreign(tmp_path)
    run = python("import sys; sys.path.insert(0, sys.argv[1]); import miners", tmp_path)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: kpair needs its own module `contrastive`, but Python finds {found}")
    assert "uninstall or rename" in last
    assert "not meant to run here" not in run.stderr


def test_no_contrastive_at_all(tmp_path):
    (tmp_path / "miners").symlink_to(ROOT / "miners")
    isolated = ("-I", "-S")  # without site-packages, where this very project may be installed
    run = python("import sys; sys.path.insert(0, sys.argv[1]); import miners", tmp_path, options=isolated)
    assert run.returncode == 1
    assert "ImportError: kpair needs its own module `contrastive`, but Python finds nothing importable" in run.stderr


def test_the_command_ends_with_one_sentence(tmp_path):
    found = foreign(tmp_path)
    run = python(
        "import sys, runpy; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2], run_name='__main__')",
        tmp_path,
        ROOT / "miners" / "_launcher.py",
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("kpair: error: kpair needs its own module `contrastive`")
    assert str(found) in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
