"""The page of a run: what it says, that it escapes, that it needs nothing else, how it looks in a browser."""

import base64
import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from chromium import Browser, find_chromium
from PIL import Image

from contrastive import report as module
from contrastive.report import HardNegatives, Neighbours, Report, write_report

RTL_OVERRIDE = "\u202e"
HOSTILE = f"<script>alert(1)</script>\"' onerror=x {RTL_OVERRIDE}abc\n\u05d0\u05d1 & <b>"
SECTIONS = [
    *("figures", "bound", "curves", "neighbours", "hard-negatives", "similarities", "cost", "settings", "environment"),
]
# The page writes a narrow space before the percent sign, and the typographic dash and minus.
PLAIN = str.maketrans({"\u202f": " ", "\u2013": "-", "\u2212": "-"})


def images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def neighbours(q=12, k=10, size=(3, 32, 32), names=("Bag", HOSTILE)):
    correct = torch.arange(q * k).reshape(q, k) % 3 != 0
    return Neighbours(
        queries=images(q, *size),
        neighbours=images(q, k, *size, seed=1),
        scores=torch.linspace(0.99, -0.5, q * k).reshape(q, k),
        query_labels=[names[i % 2] for i in range(q)],
        neighbour_labels=[[names[(i + j) % 2] for j in range(k)] for i in range(q)],
        correct=correct,
    )


def hard_negatives(a=4, k=8, size=(3, 32, 32)):
    weights = torch.full((a, k), 1.5)
    weights[0, -1] = 0.0
    same = torch.zeros(a, k, dtype=torch.bool)
    same[-1, :2] = True
    return HardNegatives(
        anchors=images(a, *size),
        positives=images(a, *size, seed=1),
        positive_scores=torch.full((a,), 8.25),
        negatives=images(a, k, *size, seed=2),
        scores=torch.linspace(9, 2, a * k).reshape(a, k),
        weights=weights,
        shares=torch.full((a, k), 0.1),
        same_class=same,
    )


def history():
    rows = [{"step": step, "loss": 5.0 - step / 1000, "lr": 1e-3, "grad_norm": 2.0} for step in range(10, 1001, 10)]
    for row in rows[9::10]:
        row |= {"held_out_bound": 3.0, "held_out_recall@1": 0.7, "held_out_recall@5": 0.9}
    rows[3]["loss"] = float("nan")
    return rows


def similarities():
    draw = np.random.default_rng(0)
    return {
        "encoder": (draw.uniform(0.5, 1, 500), draw.uniform(-1, 0.7, 5000)),
        "untrained": (draw.uniform(0.8, 1, 500), draw.uniform(0.7, 1, 5000)),
    }


def full(**changes):
    shared = {"r_precision": 0.4, "map@r": 0.2, "knn": 0.8, "instance_recall@1": None, "linear": 0.85}
    report = Report(
        title=f"fashion-mnist, convnet {HOSTILE}",
        figures={
            "encoder": {"recall@1": 0.789, "recall@10": 0.95, **shared, "alignment": 0.2, "uniformity": -2.5},
            "untrained": {"recall@1": 0.71, "recall@10": 0.96, **shared, "alignment": 0.1, "uniformity": -0.5},
            "pixels": {
                "recall@1": 0.76,
                "recall@10": 0.95,
                **shared,
                "knn": 0.7,
                "alignment": None,
                "uniformity": None,
            },
        },
        intervals={"recall@1": (0.781, 0.797)},
        notes=["12 queries without a relevant item are excluded.", f"3 unreadable images skipped: {HOSTILE}"],
        bound={"value": 4.2, "cap": 5.545, "status": "bound", "reason": "uniform weights", "interval": [4.1, 4.3]},
        history=history(),
        neighbours=neighbours(),
        hard_negatives=hard_negatives(),
        similarities=similarities(),
        cost={"seconds": 252.4, "images_per_second": 4062.3, "peak_mb": 812.0, "loading_share": 0.034},
        config={"data": {"name": HOSTILE, "crop": (0.6, 1.0), "root": Path("a/b")}, "seed": 0, "resume": None},
        environment={
            "torch": "2.15.0",
            "commit": "0" * 40,
            "command": f"kpair train --title '{HOSTILE}'",
            "os": HOSTILE,
        },
    )
    return replace(report, **changes)


def light(**changes):
    """A report without pictures and plots, which is written in milliseconds."""
    return full(**{"history": [], "similarities": {}, "neighbours": None, "hard_negatives": None, **changes})


def bare():
    return Report(
        title="",
        figures={},
        intervals={},
        notes=[],
        bound={},
        history=[],
        neighbours=None,
        hard_negatives=None,
        similarities={},
        cost={},
        config={},
        environment={},
    )


def unlabelled():
    """Nothing is known of classes: no labels, no marks, and most figures are undefined."""
    undefined = dict.fromkeys(["recall@1", "recall@10", "map@r", "linear"])
    return full(
        figures={
            "encoder": {**undefined, "instance_recall@1": 0.934},
            "untrained": {**undefined, "instance_recall@1": 0.512},
            "pixels": {**undefined, "instance_recall@1": None},
        },
        intervals={},
        neighbours=replace(neighbours(), query_labels=None, neighbour_labels=None, correct=None),
        hard_negatives=replace(hard_negatives(), same_class=None),
        bound={"value": 4.9, "cap": 5.0, "status": "not a bound", "reason": "stale queue", "interval": None},
    )


class Page(HTMLParser):
    """A strict reader: every element is closed in its order; keeps elements, and the text of each."""

    VOID = frozenset({"meta", "link", "img", "source", "br"})
    INLINE = frozenset({"span", "bdi", "a", "i", "abbr", "code"})

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.source = source
        self.elements = []  # (tag, attributes, path of the tags above)
        self.open = []
        self.texts = []  # (text, path of tags)
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes), f"twice the same attribute: {attributes}"
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in self.VOID:
            self.open.append(tag)
        elif tag == "br":
            self.texts.append((" ", tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        if tag not in self.INLINE:
            self.texts.append((" ", tuple(self.open)))

    def handle_data(self, data):
        self.texts.append((data, tuple(self.open)))

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]

    @property
    def text(self):
        """What the page says, in plain characters, with every white space a single space."""
        text = "".join(text for text, path in self.texts if "style" not in path)
        return " ".join(text.translate(PLAIN).split())


def write(report, folder):
    return Page(write_report(report, folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The three kinds of page, written once: folder and parsed page by name."""
    made = {}
    for name, report in (("full", full()), ("unlabelled", unlabelled()), ("bare", bare())):
        folder = tmp_path_factory.mktemp(name)
        made[name] = folder, write(report, folder)
    return made


@pytest.fixture(params=["full", "unlabelled", "bare"])
def page(request, written):
    return written[request.param][1]


@pytest.fixture
def full_page(written):
    return written["full"][1]


# --- every page ---


def test_sections_in_order_each_with_its_heading(page):
    assert [attributes["id"] for attributes in page.all("section")] == SECTIONS
    assert len(page.all("h1")) == 1
    assert "".join(text for text, path in page.texts if "h1" in path).strip()
    assert len(page.all("h2")) == len(SECTIONS)


def test_ids_are_unique_and_references_resolve(page):
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"][1:] for attributes in page.all("a")]
    named = [attributes["aria-labelledby"] for _, attributes, _ in page.elements if "aria-labelledby" in attributes]
    assert set(SECTIONS) <= set(links)
    assert {*links, *named} <= set(ids)


def test_reaches_for_nothing_outside_the_file(page):
    words = re.sub(r"base64,[\w+/=]+", "", page.source)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", words, re.IGNORECASE)
    sources = [a[name] for _, a, _ in page.elements for name in ("src", "srcset", "data", "poster") if name in a]
    assert all(source.startswith("data:image/") for source in sources)
    assert all(a["href"].startswith(("#", "data:")) for _, a, _ in page.elements if "href" in a)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_runs_nothing_whatever_the_names(page):
    tags = {tag for tag, _, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "b"}
    names = {name for _, attributes, _ in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")}


def test_semantics(page):
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert all("scope" in th for th in page.all("th"))
    assert all("figcaption" in tags for tags in [{tag for tag, _, path in page.elements if "figure" in path}] if tags)


def test_no_value_shows_as_python_writes_it(page):
    assert not re.search(r"\b(None|nan|inf|True|False)\b", page.text)


# --- the result ---


def test_statement_and_verdict(full_page):
    assert "Class recall@1 78.9 %; raw pixels 76.0 %, untrained encoder 71.0 %." in full_page.text
    assert "Better than raw pixels and the untrained encoder: the whole 95 % interval" in full_page.text
    assert "Ahead of every baseline in 1 of 6 figures." in full_page.text


@pytest.mark.parametrize(
    ("value", "interval", "words"),
    [
        (0.789, (0.77, 0.797), "Better than raw pixels and the untrained encoder: the whole"),
        (
            0.789,
            (0.75, 0.83),
            "Ahead of raw pixels and the untrained encoder, but the 95 % interval includes the figure of raw pixels",
        ),
        (0.789, None, "Better than raw pixels and the untrained encoder (no interval was computed)."),
        (0.74, (0.73, 0.75), "Better than the untrained encoder, but not better than raw pixels."),
        (0.71, (0.70, 0.72), "No better than raw pixels and the untrained encoder."),
    ],
)
def test_verdict_says_no_more_than_the_interval_allows(value, interval, words, tmp_path):
    report = light(
        figures={"encoder": {"recall@1": value}, "untrained": {"recall@1": 0.71}, "pixels": {"recall@1": 0.76}},
        intervals={} if interval is None else {"recall@1": interval},
    )
    assert words in write(report, tmp_path).text


def test_headline_without_labels_is_instance_recall(written):
    text = written["unlabelled"][1].text
    assert "Instance recall@1 93.4 %; untrained encoder 51.2 %." in text
    assert "Better than the untrained encoder (no interval was computed)." in text


def row(page, name):
    """The cells of the figure's row, as shown."""
    rows = re.findall(r"<tr>(.*?)</tr>", page.source, re.DOTALL)
    found = [Page(f"<table>{text}</table>").text for text in rows if f"<bdi>{name}</bdi></th>" in text]
    assert len(found) == 1
    return found[0]


def test_table_marks_the_best_in_words_and_ties_alike(full_page):
    assert row(full_page, "recall@1").startswith("recall@1 ★best: 78.9 %95 % interval 78.1-79.7 % 71.0 % 76.0 %")
    assert row(full_page, "recall@10").startswith("recall@10 95.0 % ★best: 96.0 % 95.0 %")
    assert "best:" not in row(full_page, "linear probe"), "all alike"
    assert row(full_page, "k-NN accuracy").count("best:") == 2


def test_table_has_a_dash_for_undefined_and_no_best_for_geometry(full_page):
    assert row(full_page, "instance recall@1").startswith("instance recall@1 - not defined - not defined - not defined")
    assert row(full_page, "alignment").startswith("alignment 0.20 0.10 - not defined")
    assert row(full_page, "uniformity").startswith("uniformity -2.50 -0.50")


def test_unknown_figures_and_columns_are_shown(tmp_path):
    figures = {
        "encoder": {"recall@1": 0.5, "my_figure": 3.25},
        f"<i>{HOSTILE}": {"recall@1": 0.4, "my_figure": float("nan")},
    }
    page = write(light(figures=figures), tmp_path)
    assert row(page, "my figure").startswith("my figure 3.25 - not defined")
    assert not page.all("i")


def test_bound_says_what_it_is(full_page, written):
    assert "4.20 nats ✓ a lower bound" in full_page.text
    assert "at least 4.20 nats" in full_page.text
    assert "cannot exceed 5.54 nats" in full_page.text
    text = written["unlabelled"][1].text
    assert "4.90 nats ✗ not a bound" in text
    assert "must not be read as a bound" in text
    assert "stale queue" in text
    assert "at least" not in text.partition("Bound on mutual information")[2].partition("Curves")[0]


@pytest.mark.parametrize(("value", "words"), [(-0.1, "Not above zero"), (5.4, "all but reached its ceiling")])
def test_bound_at_its_limits(value, words, tmp_path):
    bound = {"value": value, "cap": 5.545, "status": "bound", "reason": None, "interval": None}
    assert words in write(light(bound=bound), tmp_path).text


# --- names ---


def test_hostile_names_arrive_as_text(full_page):
    for path in ("h1", "h3", "li", "dd"):
        texts = [text for text, tags in full_page.texts if path in tags and "<script>alert(1)</script>" in text]
        assert texts, path
        assert all(
            "bdi" in tags for text, tags in full_page.texts if text in texts and path in tags and "pre" not in tags
        )


def test_nothing_turns_the_direction_where_no_element_can_isolate_it(full_page):
    values = [value for _, attributes, _ in full_page.elements for value in attributes.values() if value]
    assert not [value for value in values if RTL_OVERRIDE in value]
    outside = [text for text, tags in full_page.texts if RTL_OVERRIDE in text and "bdi" not in tags]
    assert outside == []


def test_names_that_utf8_cannot_carry(tmp_path):
    page = write(light(title="caf\udce9 \x00\x1b[31m"), tmp_path)
    assert "caf\ufffd \ufffd\ufffd[31m" in page.text


def test_settings_can_be_copied_back(full_page):
    code = [text for text, path in full_page.texts if "code" in path]
    assert yaml.safe_load(code[1]) == {
        "data": {"name": HOSTILE, "crop": [0.6, 1.0], "root": "a/b"},
        "seed": 0,
        "resume": None,
    }
    assert RTL_OVERRIDE not in code[1], "a value that poses as another when it is displayed"


# --- pictures ---


def decoded(source):
    return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))


def test_small_images_are_exact_and_enlarged_pixel_by_pixel(tmp_path):
    for c in (1, 3):
        shown = neighbours(q=1, k=2, size=(c, 28, 20))
        page = write(light(neighbours=shown), tmp_path)
        first = page.all("img")[0]
        assert "pixelated" in first["class"]
        pixels = torch.from_numpy(np.array(decoded(first["src"]))).reshape(28, 20, c)
        assert torch.equal(pixels, shown.queries[0].permute(1, 2, 0))


def test_large_images_are_shrunk(tmp_path):
    page = write(light(neighbours=neighbours(q=1, k=1, size=(3, 300, 150))), tmp_path)
    first = page.all("img")[0]
    assert decoded(first["src"]).size == (64, 128)
    assert "class" not in first


def test_neighbours_are_marked_in_words(full_page):
    alts = [image["alt"] for image in full_page.all("img")]
    shown = [alt for alt in alts if alt.startswith("Neighbour ")]
    assert len(shown) == 120
    assert sum(alt.endswith("(right)") for alt in shown) == 80
    assert sum(alt.endswith("(wrong)") for alt in shown) == 40
    assert "Right: 80 of the 120 neighbours shown." in full_page.text
    assert full_page.source.count('class="frame right"') - 1 == 80  # one in the key
    assert full_page.source.count('class="frame wrong"') - 1 == 40


def test_unlabelled_neighbours_are_not_marked(written):
    page = written["unlabelled"][1]
    assert "nothing is marked as right or wrong" in page.text
    assert "(right)" not in page.source
    assert 'class="frame right"' not in page.source
    assert "same class" not in page.text
    assert "Query 12" in page.text


def test_hard_negatives_show_score_weight_share_and_class(full_page):
    assert "positive s 8.25" in full_page.text
    assert "s 9.00 w 1.5 share 10.0 %" in full_page.text
    assert "w dropped share 10.0 %" in full_page.text
    assert "These 8 carry 80.0 % of its gradient." in full_page.text
    assert "Of the 32 negatives shown, 2 are of the anchor's class" in full_page.text
    assert sum("of the anchor's class" in image["alt"] for image in full_page.all("img")) == 2


def test_absent_places_are_left_out(tmp_path):
    shown, hard = neighbours(q=1, k=4), hard_negatives(a=1, k=4)
    shown.scores[0, 2:] = -torch.inf
    hard.scores[0, 3:] = -torch.inf
    page = write(light(neighbours=shown, hard_negatives=hard), tmp_path)
    assert page.source.count('class="tile"') == 2 + 3


def test_labels_that_do_not_fit_are_refused():
    good = neighbours(q=3, k=2)
    with pytest.raises(ValueError, match="Neighbours: 2 query_labels, expected 3"):
        replace(good, query_labels=["a", "b"])
    with pytest.raises(ValueError, match="Neighbours: neighbour_labels have lengths"):
        replace(good, neighbour_labels=[["a", "b"], ["a"], ["a", "b"]])


# --- plots ---


def test_every_key_of_the_history_is_plotted_and_the_plots_are_files(written):
    folder, page = written["full"]
    assert {path.name for path in (folder / "figures").iterdir()} == {
        *("curve-loss.png", "curve-bound.png", "curve-figures.png", "curve-lr.png", "curve-grad-norm.png"),
        *("similarities-encoder.png", "similarities-untrained.png"),
    }
    alts = " ".join(image["alt"] for image in page.all("img"))
    for key in ("loss", "held-out bound", "held-out recall@1", "held-out recall@5", "lr", "grad norm"):
        assert f"{key} " in alts
    assert "Loss in nats against the step: loss 4.99 \u2192 4 nats at step 1,000." in alts
    inline = [base64.b64decode(image["src"].partition("base64,")[2]) for image in page.all("img")]
    assert all(path.read_bytes() in inline for path in (folder / "figures").iterdir())
    assert len(page.all("source")) == 7, "one dark twin for each plot"


def test_plots_are_not_blank(written):
    folder, _ = written["full"]
    for path in (folder / "figures").iterdir():
        counts = Image.open(path).convert("L").histogram()
        assert sum(counts[:200]) > 0.005 * sum(counts), path.name


def test_drawing_leaves_the_readers_matplotlib_alone(tmp_path):
    code = (
        "import sys, contrastive.report as r; "
        "assert not {'matplotlib', 'jinja2', 'yaml', 'PIL'} & set(sys.modules), 'the import is not cheap'; "
        "from contrastive.report import _curves; "
        "r._series([]); r._draw(lambda axes, theme: axes.plot([1, 2]), r._LIGHT); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(module.__file__).parents[1])


def test_order_of_pairs_against_the_loop():
    draw = np.random.default_rng(0)
    positives, negatives = draw.integers(0, 6, 30) / 5, draw.integers(0, 5, 40) / 5
    loop = np.mean([[1.0 if p > n else 0.5 if p == n else 0.0 for n in negatives] for p in positives])
    assert module._order(positives, negatives) == pytest.approx(loop, abs=1e-12)


def test_similarities_without_pairs(tmp_path):
    nothing = {"encoder": (np.array([]), np.array([0.5])), "pixels": (np.array([np.nan]), np.array([0.5]))}
    text = write(light(similarities=nothing), tmp_path).text
    assert "Encoder: no pairs to compare." in text
    assert "Raw pixels: no pairs to compare." in text


# --- the file ---


def test_missing_pieces_are_said_to_be_missing(written):
    text = written["bare"][1].text
    for words in (
        *("No figure could be computed", "No bound was computed.", "No history was recorded."),
        *("No test images were retrieved.", "No hard negatives were recorded.", "No similarities were recorded."),
        *("No cost was recorded.", "No settings were recorded.", "No environment was recorded."),
    ):
        assert words in text


def test_cost_has_units(full_page):
    text = full_page.text
    assert "Training time 4 min 12 s" in text
    assert "Images per second 4,062" in text
    assert "Peak memory 812 MB" in text
    assert "Share of a step: loading 3.4 %" in text


def test_size(full_page):
    """Noise, which no format compresses: real images take less."""
    assert len(full_page.source.encode()) < 1_500_000


def test_same_report_same_bytes(written, tmp_path):
    folder, page = written["full"]
    assert write(full(), tmp_path).source == page.source
    for path in (folder / "figures").iterdir():
        assert (tmp_path / "figures" / path.name).read_bytes() == path.read_bytes()


def test_a_failure_leaves_the_old_page_and_no_scraps(tmp_path, monkeypatch):
    before = write(light(title="first"), tmp_path).source

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_report(light(title="second"), tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.html"]


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on the PATH; CHROMIUM may name one")
    with Browser(path) as running:
        yield running


@pytest.mark.chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 820, 400, 320])
@pytest.mark.parametrize("kind", ["full", "unlabelled", "bare"])
def test_in_a_browser(browser, written, kind, width, dark):
    folder, _ = written[kind]
    visit = browser.visit(folder / "report.html", width=width, dark=dark)
    assert visit.client_width == visit.inner_width == width
    assert visit.overflowing == []
    assert visit.scroll_width == width
    assert visit.messages == []
    assert visit.requests == []
    assert visit.broken_images == 0
    picture = np.asarray(Image.open(io.BytesIO(visit.screenshot)).convert("L"))
    assert picture.shape == (visit.height, width)
    # Not blank, and the ground is as bright as the reader asked for.
    assert picture.std() > 5
    assert bool(np.median(picture) < 60) == dark
    assert bool(np.median(picture) > 200) != dark
    for heading in ("Figures", "Nearest neighbours", "Environment"):
        assert heading in visit.text


@pytest.mark.chromium
def test_numbers_fit_their_tiles(browser, written):
    """A tile narrower than its numbers runs them into its neighbour's, which the document's width does not show."""
    script = """
      const spilt = [...document.querySelectorAll('.tile')].filter(t => t.scrollWidth > t.clientWidth + 1).length;
      if (spilt) console.error(spilt + ' tiles');
    """
    for width in (1280, 820, 760, 700, 400, 320):
        assert browser.visit(written["full"][0] / "report.html", width=width, script=script).messages == [], width


@pytest.mark.chromium
def test_the_browser_sees_faults(browser, tmp_path):
    """The helper itself: a page with every fault that the other tests look for."""
    path = tmp_path / "faulty.html"
    path.write_text(
        '<!doctype html><body><div style="width:900px">wide</div><div style="overflow:auto"><p style="width:900px">'
        'scrolls</p></div><img src="data:image/png;base64,AAAA" alt="broken"><img src="missing.png" alt="missing">'
        "<script>console.error('heard')</script>"
    )
    visit = browser.visit(path, width=400)
    assert visit.inner_width == 400
    assert visit.scroll_width == 908
    assert visit.overflowing == ["div"]
    assert visit.broken_images == 2
    assert any("heard" in message for message in visit.messages)
    assert any(request.endswith("missing.png") for request in visit.requests)
