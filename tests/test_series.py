"""What series of runs share: lines that say which code ran, figures that can be read, pages that a phone shows."""

import subprocess

import pytest
from chromium import Browser, find_chromium

from benchmarks import curves, lines, pages, series


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
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, there[0] + "\n"))
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
