"""What series of runs share: lines that say which code ran, figures that can be read, pages that a phone shows."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from chromium import Browser, find_chromium
from rich.progress import TimeRemainingColumn

from benchmarks import curves, lines, pages, series
from benchmarks.under_way import UnderWay, kept
from contrastive.errors import InputError


def row(arm, seed, heights):
    told = {"iteration": list(range(len(heights))), "bound": heights, "accuracy": heights}
    return {"config": {"arm": arm}, "seed": seed, "curves": told}


NATS = curves.Panel("bound", "bound", "I_EST, nats", {}, ("arm",))


def axes_of(rows, *panels):
    return curves.figure(panels, rows).axes


def test_what_starts_far_below_does_not_flatten_the_rest():
    """As I_NWJ does: one seed at -400, the other at 0, both at 2 nats in the end."""
    rows = [row("nwj", 0, [-400.0, 1.0, 2.1]), row("nwj", 1, [0.0, 1.0, 1.9]), row("nce", 0, [-1.0, 2.0, 3.0])]
    (ax,) = axes_of(rows, NATS)
    low, high = ax.get_ylim()
    assert low == curves.LOWEST_NATS
    assert 3.0 < high < 3.5
    band = ax.collections[0].get_paths()  # of nwj: from its second point on
    assert min(path.vertices[:, 0].min() for path in band) == 1
    (ax,) = axes_of([row("nce", 0, [-1.0, 2.0])], NATS)
    assert ax.get_ylim()[0] > curves.LOWEST_NATS  # nothing is cut off where nothing is far below
    (ax,) = axes_of([row("nwj", 0, [-400.0, -300.0])], NATS)
    assert ax.get_ylim()[0] < -400  # nothing would be left


def test_lines_of_one_curve_are_named_as_they_lie():
    rows = [row("first", 0, [[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]])]
    (ax,) = axes_of(rows, curves.Panel("spread", "bound", "log10", {}, parts=("low", "middle", "high")))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["high", "middle", "low"]
    heights = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    assert heights == {"high": [2.0, 3.0], "middle": [1.0, 2.0], "low": [0.0, 1.0]}


def test_an_arm_has_one_colour_in_every_panel():
    rows = [row("first", 0, [0.0, 1.0]), row("second", 0, [1.0, 2.0])]
    accuracy = curves.Panel("accuracy", "accuracy", "accuracy", {}, ("arm",))
    del rows[0]["curves"]["accuracy"]  # the second stands alone there
    found = [{line.get_label(): line.get_color() for line in ax.lines} for ax in axes_of(rows, NATS, accuracy)]
    assert found == [{"first": "C0", "second": "C1"}, {"second": "C1"}]


@pytest.mark.parametrize("write", ["a series", "a single run"])
def test_a_line_names_the_commit_that_ran(tmp_path, monkeypatch, write):
    """While it runs, others may check out what they will."""
    there = ["1111111"]
    monkeypatch.setattr(lines, "_git", lambda *words: there[0] if words[0] == "rev-parse" else "")
    lines.commit.cache_clear()

    def work(*_):
        there[0] = "2222222"
        return {}

    if write == "a series":
        found = series.attempt(series.Run("t", {}, 0, work), lambda share: None)
    else:
        lines.run(tmp_path / "lines.jsonl", "t", {}, 0, work)
        (found,) = lines.read(tmp_path / "lines.jsonl")
    lines.commit.cache_clear()
    assert (found["status"], found["commit"]) == ("ok", "1111111")


def test_code_that_was_changed_is_no_commit(monkeypatch):
    changes = ["-a\n+b"]
    monkeypatch.setattr(lines, "_git", lambda *words: "1111111" if words[0] == "rev-parse" else changes[0])
    found = []
    for told in ("-a\n+b", "-a\n+c", ""):
        changes[0] = told
        lines.commit.cache_clear()
        found.append(lines.commit())
    lines.commit.cache_clear()
    assert [name.partition("-changed-")[0] for name in found] == ["1111111"] * 3
    assert len(set(found)) == 3
    assert found[2] == "1111111"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        MemoryError(),
        torch.OutOfMemoryError("of an accelerator"),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        InputError("cannot be written"),
    ],
)
def test_what_the_machine_did_not_let_happen_is_tried_again(error, tmp_path):
    """A full disk is no finding: there is no line, and what the run had reached stays."""
    path = tmp_path / "lines.jsonl"
    if isinstance(error, InputError):
        error.__cause__ = OSError(28, "No space left on device")
    full = [True]

    def work(keep):
        keep.write({"reached": 1})
        if full[0]:
            raise error
        return {"found": keep.read()["reached"]}

    run = series.Run("t", {}, 0, lambda tick: kept(path, "t", work))
    with pytest.raises(type(error)):
        series.perform([run], path, quiet=True)
    assert lines.read(path) == []
    assert len(list(tmp_path.glob("*.under-way.ckpt"))) == 1
    with pytest.raises(type(error)):
        lines.run(path, "t", {}, 0, lambda: work(UnderWay(tmp_path / "x.ckpt", "t")))
    assert lines.read(path) == []
    full[0] = False
    assert [row["found"] for row in series.perform([run], path, quiet=True)] == [1]
    assert not list(tmp_path.glob("lines*.under-way.ckpt"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_leaves_no_half_a_line(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    lines.append(path, {"a": 1})
    opened = Path.open

    def full(self, mode="r", *rest, **options):
        """Half of what is written arrives."""
        if self == path and mode == "a":
            with opened(path, "a") as file:
                file.write('{"a": ')
            return opened(Path("/dev/full"), "a")
        return opened(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        lines.append(path, {"a": 2})
    monkeypatch.undo()
    assert lines.read(path) == [{"a": 1}]


def test_the_bar_counts_by_what_runs_cost(tmp_path, monkeypatch):
    """So that the time left is of what is left: a run of three seconds is three of one."""
    bars = []

    class Bar(series.Progress):
        def __init__(self, *columns, **named):
            super().__init__(*columns, **named)
            bars.append(self)

    monkeypatch.setattr(series, "Progress", Bar)
    seen = []

    def work(tick):
        tick(0.5)
        (task,) = bars[-1].tasks
        seen.append((task.description, task.completed, task.total))
        return {}

    asked = [series.Run("t", {"arm": cost}, 0, work, cost=cost, told=f"arm {cost:g}") for cost in (1.0, 3.0, 2.0)]
    series.perform(asked[:1], tmp_path / "lines.jsonl")
    assert seen == [("t, seed 0: arm 1", 0.5, 1.0)]
    series.perform(asked, tmp_path / "lines.jsonl")  # of what is missing alone
    assert seen[1:] == [("t, seed 0: arm 3", 1.5, 5.0), ("t, seed 0: arm 2", 4.0, 5.0)]
    assert any(isinstance(column, TimeRemainingColumn) for column in bars[-1].columns)
    assert bars[-1].finished


def test_a_missing_file_is_a_finding(tmp_path):
    """It would be missing again."""

    def work(tick):
        raise FileNotFoundError(2, "No such file", "some.csv")

    (row,) = series.perform([series.Run("t", {}, 0, work)], tmp_path / "lines.jsonl", quiet=True)
    assert (row["status"], "some.csv" in row["error"]) == ("failed", True)


def test_what_another_process_is_at_is_left_to_it(tmp_path):
    path = tmp_path / "lines.jsonl"
    asked = [series.Run("t", {"arm": arm}, 0, lambda tick, arm=arm: {"found": arm}) for arm in ("first", "second")]
    with lines.lock(path, asked[0].key):  # as a process at work on it holds it
        assert [row["found"] for row in series.perform(asked, path, quiet=True)] == ["second"]
    assert [row["found"] for row in series.perform(asked, path, quiet=True)] == ["second", "first"]
    assert len(series.perform(asked, path, quiet=True)) == len(lines.read(path)) == 2
    assert not any(Path(lines.lock(path, run.key).lock_file).exists() for run in asked)  # nothing is left behind


def test_what_another_process_died_of_is_done_in_its_place(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    asked = [series.Run("t", {"arm": arm}, 0, lambda tick: {}, cost=arm) for arm in (3, 1, 2)]

    @contextmanager
    def others(count, where):
        assert (count, where) == (1, path)
        with lines.lock(path, asked[0].key):
            yield

    monkeypatch.setattr(series, "_others", others)
    found = series.perform(asked, path, quiet=True, processes=2)
    assert [row["config"]["arm"] for row in found] == [2, 1, 3]  # the longest first, but for the one that was taken


def test_several_processes_do_every_run_once(tmp_path):
    """A run takes part in the next one's time: both processes are needed, or the first would wait in vain."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys, time\n"
        "from benchmarks import series\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def work(arm, tick):\n"
        "    (folder / f'{arm}.begun').touch()\n"
        "    end = time.monotonic() + 60\n"
        "    while len(list(folder.glob('*.begun'))) < 2 and time.monotonic() < end:\n"
        "        time.sleep(0.01)\n"
        "    return {'process': os.getpid(), 'together': len(list(folder.glob('*.begun'))) >= 2}\n"
        "options = series.parsed(series.parser('t', seeds={'quick': 1}), {'quick': 1}, sys.argv[2:])\n"
        "asked = [series.Run('t', {'arm': arm}, 0, lambda tick, arm=arm: work(arm, tick)) for arm in range(4)]\n"
        "series.perform(asked, folder / 'lines.jsonl', quiet=True, processes=options.processes)\n"
    )
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, str(program), str(tmp_path), "--processes", "2"],
        check=True,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    rows = lines.read(tmp_path / "lines.jsonl")
    assert sorted(row["config"]["arm"] for row in rows) == [0, 1, 2, 3]
    assert len({row["process"] for row in rows}) == 2
    assert all(row["together"] for row in rows)


@pytest.mark.chromium
def test_a_phone_shows_figures_and_tables_at_a_size_that_can_be_read(tmp_path):
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on the PATH; CHROMIUM may name one")
    drawn = curves.figure([NATS] * 3, [row("nce", 0, [0.0, 1.0])])
    head = ["claim", "what", "difference", "95 % interval", "pairs"]
    words = ["1", "the inverse stays exact: error below the tolerance", "-0.0010", "-0.0010 to -0.0010", "6"]
    body = [pages.image(drawn, tmp_path / "t.png", "three panels"), pages.table([head, words])]
    page = pages.write(tmp_path / "t.html", "t", "t", "t", body)
    measure = (
        "document.body.append([...document.querySelectorAll('img, table')]"
        ".map(e => ' width ' + Math.round(e.getBoundingClientRect().width)).join())"
    )
    with Browser(program) as browser:
        phone, desk = (browser.visit(page, width=width, script=measure) for width in (390, 1280))
    for visit in (phone, desk):
        assert visit.overflowing == []
        assert visit.scroll_width == visit.client_width
        assert visit.broken_images == 0
        assert visit.messages == []
    assert "width 720, width 720" in phone.text
    assert "width 1100" in desk.text
