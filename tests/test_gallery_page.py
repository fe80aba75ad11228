"""The page of a retrieval: what it says, that it escapes, and that it can be sorted, filtered and reached by keys."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import Browser, find_chromium
from PIL import Image

from contrastive import _faiss, gallery_page, thumbnails
from contrastive.assessment import Assessment
from contrastive.cli import main
from contrastive.errors import InputError
from contrastive.gallery_page import Items, metrics_of_page, write_gallery_page

RTL_OVERRIDE = "\u202e"
NAMES = [
    "<script>document.title='owned'</script>",
    "\"' onerror=alert(1) <img src=x onerror=alert(1)>",
    f"{RTL_OVERRIDE}gnp.exe",
    "two\nlines\u2028and more",
    "</script><!--<script>",
    "\u05d0\u05d1\u05d2 &amp; {{ 7*7 }}",
]


def rows(n=60, classes=6, d=8, noise=1.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return torch.randn(classes, d, generator=draw)[labels] + noise * torch.randn(n, d, generator=draw), labels


def write(path, embeddings, words=None, *, names=None, files=None, **options):
    labels = words if words is not None else [str(i) for i in range(len(embeddings))]
    assessment = Assessment("test", embeddings, labels, metrics=metrics_of_page(len(embeddings) - 1))
    result = assessment.result(assessment.parts())
    items = Items(labels=words, names=names, files=files)
    write_gallery_page(path, assessment, result, title="test", queries=items, **options)
    return assessment, result, path.read_text(encoding="utf-8")


def data_of(source):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)[1])


class Tags(HTMLParser):
    """The elements of a page, as a parser of HTML finds them."""

    def __init__(self, source):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.text += text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page whose classes and names are hostile: path, assessment, result, source."""
    path = tmp_path_factory.mktemp("hostile") / "page.html"
    embeddings, labels = rows(noise=1.2)
    names = [f"{NAMES[(i + 1) % 6]}{i}" for i in range(60)]
    return path, *write(path, embeddings, [NAMES[i] for i in labels], names=names)


# --- what it says -----------------------------------------------------------------------------------------------------


def test_worst_first_with_neighbours_scores_and_ranks(hostile):
    _, assessment, result, source = hostile
    data = data_of(source)
    assert len(data["queries"]) == 60
    similarity = torch.nn.functional.normalize(assessment.search.queries, dim=1)
    similarity = (similarity @ similarity.T).fill_diagonal_(-2)
    labels = torch.arange(60) % 6
    ranks = []
    for row, item, first, rr, ap, near in data["queries"]:
        order = similarity[row].argsort(descending=True)[:59]
        right = labels[order] == labels[row]
        assert first == int(right.nonzero()[0]) + 1
        assert rr == pytest.approx(1 / first, abs=1e-4)
        assert data["row"][item] == row
        assert [data["row"][found] for found, _, _ in near] == order[:10].tolist()
        assert [score for _, score, _ in near] == pytest.approx(similarity[row, order[:10]].tolist(), abs=1e-3)
        assert [hit for _, _, hit in near] == right[:10].int().tolist()
        assert ap == pytest.approx(float(result.per_query["map@r"][row]), abs=1e-4)
        ranks.append((rr, ap))
    assert ranks == sorted(ranks)


def test_confusion_counts_the_nearest_neighbours(hostile):
    _, assessment, _, source = hostile
    ids, _, _ = assessment.neighbours(torch.arange(60), 1)
    labels = torch.arange(60) % 6
    shown = {(a["data-true"], a["data-taken"]): int(a["data-count"]) for _, a in Tags(source).found if "data-true" in a}
    texts = data_of(source)["labels"]
    for true in range(6):
        for taken in range(6):
            count = int(((labels == true) & (labels[ids[:, 0]] == taken)).sum())
            key = tuple(str(texts.index(gallery_page._shown(NAMES[i]))) for i in (true, taken))
            assert shown.get(key, 0) == count


def test_many_classes_are_a_list_of_confusions(tmp_path):
    embeddings, labels = rows(200, 50, noise=1.5)
    _, _, source = write(tmp_path / "p.html", embeddings, [f"c{i}" for i in labels])
    assert 'class="pairs"' in source
    assert 'table class="classes"' not in source
    assert source.count("data-true=") == gallery_page.PAIRS


def test_curve_has_the_figures_and_intervals_of_the_result(hostile):
    _, _, result, source = hostile
    for k in (1, 5, 10, 50):
        low, high = result.interval[f"recall@{k}"]
        value = 100 * result.mean[f"recall@{k}"]
        row = f"<td>{value:.1f}\u202f%</td><td>{100 * low:.1f}\u2013{100 * high:.1f}\u202f%</td>"
        assert f'<tr><th scope="row">{k}</th>{row}' in source
    assert "recall@100" not in source


def test_only_so_many_queries(tmp_path):
    embeddings, labels = rows(noise=1.2)
    _, result, source = write(tmp_path / "p.html", embeddings, [str(int(i)) for i in labels], shown=7, neighbours=3)
    data = data_of(source)
    worst = result.per_query["mrr@59"].sort().values[:7]
    assert [query[3] for query in data["queries"]] == pytest.approx(worst.tolist(), abs=1e-4)
    assert all(len(query[5]) == 3 for query in data["queries"])
    assert "The 7 worst of 60 queries" in " ".join(source.split())


def test_large_evaluations_are_sampled_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_page, "SAMPLE", 20)
    embeddings, labels = rows()
    _, _, source = write(tmp_path / "p.html", embeddings, [str(int(i)) for i in labels])
    assert source.count("20 of 60 queries, drawn at random") == 2
    counts = [int(a["data-count"]) for _, a in Tags(source).found if "data-true" in a]
    assert sum(counts) == 20


# --- hostile names ----------------------------------------------------------------------------------------------------


def test_names_are_never_markup(hostile):
    tags = Tags(hostile[3]).found
    assert sum(tag == "script" for tag, _ in tags) == 2
    assert not any(tag in ("iframe", "object", "embed", "base", "form", "img") for tag, _ in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    source = hostile[3]
    for character in (RTL_OVERRIDE, "\u2028"):
        assert character not in source
    raw = re.search(r'id="data">(.*?)</script>', source, re.DOTALL)[1]
    assert raw.isascii()
    assert not set("<>&") & set(raw)
    # They are all there, to be read.
    words = json.dumps(data_of(source))
    for word in ("owned", "u202egnp.exe", "two", "{{ 7*7 }}"):
        assert word in words


def test_the_policy_names_the_one_script_and_no_address(hostile):
    source = hostile[3]
    policy = next(a["content"] for tag, a in Tags(source).found if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy)
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert not re.search(r"https?://|@import|url\(|\bfetch\b|XMLHttpRequest|innerHTML|eval\(", source)


def test_a_name_never_leaves_the_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    Image.new("RGB", (8, 8)).save(inside / "a.png")
    bad = [
        *("../secret.png", "x/../../secret.png", str(tmp_path / "secret.png"), "..\\secret.png", "a\0b", "", "z" * 999),
        *("none.png", "a.png/../../secret.png", "a.png/", "."),
    ]
    found = thumbnails.files_of_rows("--images", inside, len(bad) + 1, ["a.png", *bad])
    pictures = thumbnails.of_files(found)
    assert [uri is not None for uri in pictures.uris] == [True, *(name == "a.png/" for name in bad)]
    assert pictures.missing == len(bad) - 1
    with pytest.raises(InputError, match="none of the 1 names is a file"):
        thumbnails.files_of_rows("--images", inside, 1, ["../secret.png"])


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Sixty images of 20 x 20 pixels."""
    where = tmp_path / "images"
    where.mkdir()
    for i in range(60):
        Image.new("RGB", (20, 20), (4 * i, 0, 255 - 4 * i)).save(where / f"{i:02}.png")
    return where


def test_missing_and_broken_files_are_placeholders_and_counted(tmp_path, folder):
    (folder / "03.png").unlink()
    (folder / "04.png").write_bytes(b"no image")
    (folder / "05.png").write_bytes((folder / "06.png").read_bytes()[:60])
    files = thumbnails.files_of_rows("--images", folder, 60, [f"{i:02}.png" for i in range(60)])
    embeddings, labels = rows()
    _, _, source = write(tmp_path / "p.html", embeddings, [str(int(i)) for i in labels], files=files)
    data = data_of(source)
    of_row = dict(zip(data["row"], data["image"], strict=True))
    assert [row for row in range(60) if of_row[row] is None] == [3, 4, 5]
    assert "1 have no file in the folder of images and 2 files cannot be read" in source


def test_pictures_have_a_limit_and_the_worst_queries_come_first(folder, monkeypatch):
    files = thumbnails.files_of_rows("--images", folder, 60, None)
    whole = thumbnails.of_files(files)
    assert whole.left_out == 0
    limit = sum(len(uri) for uri in whole.uris[:10]) + 5
    monkeypatch.setattr(thumbnails, "_CHUNK", 7)
    some = thumbnails.of_files(files, limit=limit)
    assert some.uris == whole.uris[:10] + [None] * 50
    assert some.left_out == 50


def test_images_in_memory(tmp_path):
    images = torch.randint(0, 256, (3, 3, 100, 80), dtype=torch.uint8)
    assert all(uri.startswith("data:image/") for uri in thumbnails.of_images(images).uris)
    assert thumbnails.of_images(images[:, :1, :28, :28]).side == 28
    assert thumbnails.of_images(images, limit=1).left_out == 2


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def x(tmp_path, monkeypatch, folder):
    """A file of embeddings beside its images."""
    monkeypatch.chdir(tmp_path)
    embeddings, labels = rows()
    np.savez("x.npz", embeddings=embeddings.numpy(), labels=labels.numpy())
    return embeddings, labels


def run(capsys, *words, status=0):
    assert main(["evaluate", *words]) == status
    return capsys.readouterr()


def test_command(x, capsys, tmp_path):
    run(capsys, "x.npz", "--json", "plain.json")
    run(capsys, "x.npz", "--json", "out.json", "--report", "page.html", "--images", "images")
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads((tmp_path / "plain.json").read_text())
    data = data_of((tmp_path / "page.html").read_text())
    assert all(data["image"])
    assert set(data["name"]) == {f"{i:02}.png" for i in range(60)}
    # Embeddings alone.
    run(capsys, "x.npz", "--report", "page.html", "--report-queries", "5")
    data = data_of((tmp_path / "page.html").read_text())
    assert len(data["queries"]) == 5
    assert not any(data["image"])
    # Names within the file, or in one of their own; a line of text may hold anything but a line break.
    np.savez("x.npz", embeddings=x[0].numpy(), labels=x[1].numpy(), names=[f"{59 - i:02}.png" for i in range(60)])
    run(capsys, "x.npz", "--report", "page.html", "--images", "images")
    data = data_of((tmp_path / "page.html").read_text())
    assert data["name"][data["row"].index(0)] == "59.png"
    (tmp_path / "names.txt").write_text("\u2028<b>.png\n" + "".join(f"{i:02}.png\n" for i in range(1, 60)))
    run(capsys, "x.npz", "--report", "page.html", "--images", "images", "--names", "names.txt")
    data = data_of((tmp_path / "page.html").read_text())
    assert data["name"][data["row"].index(0)] == "\\u2028<b>.png"
    assert data["image"][data["row"].index(0)] is None


def test_command_with_a_gallery_and_without_labels(x, capsys, tmp_path):
    np.save("q.npy", x[0][:20].numpy())
    np.save("g.npy", (x[0] + 0.1).numpy())
    run(capsys, "q.npy", "--gallery", "g.npy", "--json", "plain.json")
    run(
        capsys,
        *("q.npy", "--gallery", "g.npy", "--json", "out.json", "--report", "page.html"),
        *("--gallery-images", "images"),
    )
    plain, found = (json.loads((tmp_path / name).read_text()) for name in ("plain.json", "out.json"))
    assert found["figures"] == pytest.approx(plain["figures"])
    source = (tmp_path / "page.html").read_text()
    data = data_of(source)
    assert 'id="classes"' not in source
    assert all(data["image"][item] is None for _, item, *_ in data["queries"])
    assert all(data["image"][item] for *_, near in data["queries"] for item, _, _ in near)


@pytest.mark.parametrize(
    "kind", ["several labels", "lists", "distance", "approximate", "one item", "collapsed", "resumed"]
)
def test_every_kind_of_evaluation_has_a_page(x, capsys, tmp_path, kind):
    embeddings, labels = x
    np.save("e.npy", embeddings.numpy())
    words = ["x.npz"]
    if kind == "several labels":
        np.save("l.npy", torch.nn.functional.one_hot(labels).numpy())
        words = ["e.npy", "--labels", "l.npy"]
    elif kind == "lists":
        np.save("q.npy", embeddings[:2].numpy())
        (tmp_path / "r.json").write_text("[[6, 12], [1]]")
        words = ["q.npy", "--gallery", "e.npy", "--relevant", "r.json", "--metrics", "map"]
    elif kind == "distance":
        words += ["--metric", "euclidean"]
    elif kind == "approximate":
        pytest.importorskip("faiss")
        words += ["--backend", "IVF8,Flat", "--nprobe", "1", "--k", "1,5"]
    elif kind == "one item":
        np.savez("g.npz", embeddings=embeddings[:1].numpy(), labels=labels[:1].numpy())
        words += ["--gallery", "g.npz"]
    elif kind == "collapsed":
        np.savez("x.npz", embeddings=np.ones((60, 4), dtype=np.float32), labels=labels.numpy())
    else:
        words += ["--json", "out.json", "--resume", "auto"]
    run(capsys, *words, "--report", "page.html")
    source = (tmp_path / "page.html").read_text()
    data = data_of(source)
    assert len(data["queries"]) == {"lists": 2, "one item": 10}.get(kind, 60)
    if kind != "approximate":  # such an index may find nothing
        assert all(near for *_, near in data["queries"])
    assert ('id="classes"' in source) == (kind not in ("several labels", "lists"))
    if kind == "several labels":
        assert set(data["labels"]) == {"0", "1", "2", "3", "4", "5"}
    if kind == "distance":
        assert "minus the squared distance" in source
        assert all(score <= 0 for *_, near in data["queries"] for _, score, _ in near)


BAD = {
    "no folder": (["--images", "nowhere"], "--images: nowhere does not exist"),
    "a file": (["--images", "x.npz"], "--images: x.npz is a file, expected a folder of images"),
    "another number": (["--images", "fewer"], "fewer holds 1 images for 60 rows"),
    "an empty folder": (["--images", "empty"], "empty holds 0 images for 60 rows"),
    "too few names": (["--images", "images", "--names", "few.txt"], "few.txt holds 1 names for 60 rows"),
    "no names": (["--images", "images", "--names", "nowhere.txt"], "nowhere.txt cannot be read"),
    "other names": (["--images", "images", "--names", "other.txt"], "none of the 60 names is a file in images"),
    "gallery": (["--gallery-images", "images"], "--gallery-images needs --gallery FILE"),
    "queries": (["--report-queries", "0"], "--report-queries is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(x, capsys, tmp_path, case, folder):
    (tmp_path / "fewer").mkdir()
    (tmp_path / "empty").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "fewer" / "a.png")
    (tmp_path / "few.txt").write_text("a.png\n")
    (tmp_path / "other.txt").write_text("../images/01.png\n" * 60)
    words, message = BAD[case]
    before = sorted(tmp_path.iterdir())
    error = run(capsys, "x.npz", "--json", "out.json", "--report", "page.html", *words, status=2)
    assert error.out == ""
    (line,) = error.err.splitlines()
    assert line.startswith("kpair: error: ")
    assert message in line
    assert sorted(tmp_path.iterdir()) == before


def test_options_of_a_page_need_one_and_a_place(x, capsys, tmp_path):
    assert "--images needs --report FILE" in run(capsys, "x.npz", "--images", "images", status=2).err
    assert "nowhere is no folder" in run(capsys, "x.npz", "--report", "nowhere/p.html", status=2).err
    assert "images is a folder" in run(capsys, "x.npz", "--report", "images", status=2).err
    same = run(capsys, "x.npz", "--report", "p", "--json", "p", status=2).err
    assert "--report and --json are the same file" in same


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on the PATH; CHROMIUM may name one")
    with Browser(path) as running:
        yield running


STATE = """console.log(JSON.stringify({
  status: document.getElementById('status').textContent,
  rows: [...document.querySelectorAll('#queries-body tr')].map(r => [...r.children].map(c => c.innerText.trim())),
  sorted: [...document.querySelectorAll('th[aria-sort]')].map(h => [h.innerText.trim(), h.getAttribute('aria-sort')]),
  focus: (e => e.id || e.getAttribute('aria-label') || e.innerText)(document.activeElement),
  pressed: document.querySelectorAll('[aria-pressed=true]').length,
  title: document.title,
  elements: document.querySelectorAll('#queries-body *').length,
}))"""


def state(browser, page, *actions, width=1280):
    visit = browser.visit(page, width=width, actions=[*actions, ("run", STATE)])
    assert visit.requests == []
    (message,) = visit.messages
    return json.loads(message)


@pytest.mark.chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 820, 400, 320])
def test_in_a_browser(browser, hostile, width, dark):
    visit = browser.visit(hostile[0], width=width, dark=dark)
    assert visit.client_width == visit.inner_width == width
    assert visit.overflowing == []
    assert visit.scroll_width == width
    assert visit.messages == []
    assert visit.requests == []
    assert visit.broken_images == 0
    for words in ("Worst queries", "Which class is taken for which", "Queries 1 to 50 of 60."):
        assert words in visit.text


SCROLLED = """console.log(JSON.stringify(
  [...document.querySelectorAll('#figures .scroll')].filter(e => e.scrollWidth > e.clientWidth).length))"""
# Whether the head of the table is seen, and what stands before the cells of its first row.
HEADINGS = """console.log(JSON.stringify([
  document.querySelector('.figures thead').getBoundingClientRect().height > 1,
  [...document.querySelector('.figures tbody tr').cells].map(c => getComputedStyle(c, '::before').content)
    .filter(text => text !== 'none').map(text => JSON.parse(text).trim()),
]))"""


@pytest.mark.chromium
@pytest.mark.skipif(not _faiss.available(), reason="faiss is not installed")
@pytest.mark.parametrize("width", [1280, 1000, 390, 320])
def test_all_of_the_figures_is_seen_without_scrolling(browser, tmp_path, width):
    embeddings, labels = rows()
    words = [f"class {label}" for label in labels.tolist()]
    names = [*metrics_of_page(59), "precision@10", "coverage@10"]
    assessment = Assessment("test", embeddings, words, metrics=names, backend="HNSW8")
    result = assessment.result(assessment.parts())
    write_gallery_page(tmp_path / "p.html", assessment, result, title="test", queries=Items(labels=words))
    visit = browser.visit(tmp_path / "p.html", width=width, actions=[("run", SCROLLED)])
    assert visit.messages == ["0"]
    assert visit.scroll_width == width
    found = f"{100 * result.index_recall:.1f}\u202f%"
    assert visit.text.count(found) >= len(names)
    (headings,) = browser.visit(tmp_path / "p.html", width=width, actions=[("run", HEADINGS)]).messages
    shown = ["over queries", "over classes", "neighbours found"]
    assert json.loads(headings) == ([False, shown] if width < 500 else [True, []])


@pytest.mark.chromium
def test_hostile_names_are_text_in_the_browser(browser, hostile):
    visit = browser.visit(hostile[0], width=1280)
    for words in (
        "<script>document.title='owned'</script>",
        "\\u202egnp.exe",
        "two\\nlines\\u2028and more",
        "{{ 7*7 }}",
    ):
        assert words in visit.text
    assert state(browser, hostile[0])["title"].startswith("test")


@pytest.mark.chromium
def test_sorting_by_clicking(browser, hostile):
    path, _, _, source = hostile
    at_first = state(browser, path)
    assert at_first["sorted"] == [["1 / rank▲", "ascending"]]
    assert [int(row[2]) for row in at_first["rows"]] == sorted((int(row[2]) for row in at_first["rows"]), reverse=True)
    by_row = state(browser, path, ("click", "[data-key=row]"))
    assert [re.search(r"row (\d+)", row[0])[1] for row in by_row["rows"]] == [str(i) for i in range(50)]
    assert by_row["sorted"] == [["Query▲", "ascending"]]
    back = state(browser, path, ("click", "[data-key=row]"), ("click", "[data-key=row]"))
    assert [re.search(r"row (\d+)", row[0])[1] for row in back["rows"]] == [str(i) for i in range(59, 9, -1)]
    assert back["sorted"] == [["Query▼", "descending"]]
    first = state(browser, path, ("click", "[data-key=first]"), ("click", "[data-key=first]"))
    ranks = [int(row[2]) for row in first["rows"]]
    assert ranks == sorted(ranks)
    precision = [float(row[4]) for row in state(browser, path, ("click", "[data-key=precision]"))["rows"]]
    assert precision == sorted(precision)
    assert precision[0] == pytest.approx(min(query[4] for query in data_of(source)["queries"]), abs=0.006)
    labels = [row[1] for row in state(browser, path, ("click", "[data-key=label]"))["rows"]]
    assert sorted(map(labels.index, set(labels))) == [0, 10, 20, 30, 40]  # the classes stand together


@pytest.mark.chromium
def test_filters(browser, hostile):
    path, _, _, source = hostile
    choose = """const select = document.getElementById('by-label');
      select.selectedIndex = 2; select.dispatchEvent(new Event('change'));"""
    chosen = state(browser, path, ("run", choose))
    assert chosen["status"] == "Queries 1 to 10 of 10."
    assert len({row[1] for row in chosen["rows"]}) == 1
    wrong = state(browser, path, ("click", "#only-wrong"))
    queries = data_of(source)["queries"]
    count = sum(query[2] > 1 for query in queries)
    assert 0 < count < 50
    assert wrong["status"] == f"Queries 1 to {count} of {count}."
    assert all(int(row[2]) > 1 for row in wrong["rows"])
    assert state(browser, path, ("click", "#only-wrong"), ("click", "#clear"))["status"] == "Queries 1 to 50 of 60."
    assert state(browser, path, ("click", "#next"))["status"] == "Queries 51 to 60 of 60."
    below = state(browser, path, ("click", "#next-below"))
    assert below["focus"] == "h-queries"
    assert len(below["rows"]) == 10


@pytest.mark.chromium
def test_a_cell_of_the_classes_shows_its_queries(browser, hostile):
    path, _, _, source = hostile
    cells = [a for _, a in Tags(source).found if "data-true" in a and a["data-true"] != a["data-taken"]]
    cell = max(cells, key=lambda a: int(a["data-count"]))
    selector = f"[data-true='{cell['data-true']}'][data-taken='{cell['data-taken']}']"
    shown = state(browser, path, ("click", selector))
    assert len(shown["rows"]) == int(cell["data-count"])
    assert shown["status"].startswith(f"Queries 1 to {cell['data-count']} of {cell['data-count']}: of ")
    assert shown["focus"] == "h-queries"
    assert shown["pressed"] == 1
    again = state(browser, path, ("click", selector), ("click", selector))
    assert again["status"] == "Queries 1 to 50 of 60."
    assert again["pressed"] == 0


@pytest.mark.chromium
def test_by_keys_alone(browser, hostile):
    path = hostile[0]
    focus = ("run", "document.querySelector('[data-key=row]').focus()")
    for key in ("Enter", " "):
        assert state(browser, path, focus, ("key", key))["sorted"] == [["Query▲", "ascending"]]
    assert state(browser, path, focus, ("key", "Tab"), ("key", "Enter"))["sorted"] == [["Class▲", "ascending"]]
    # The first stop is the link over everything; the table of classes is one stop, arrows move in it.
    assert state(browser, path, ("key", "Tab"))["focus"] == "Skip to the queries"
    table = ("run", "document.querySelector('[data-true][tabindex=\"0\"]').focus()")
    start = state(browser, path, table)["focus"]
    assert start.endswith(": show them")
    moved = state(browser, path, table, ("key", "ArrowDown"), ("key", "ArrowRight"))["focus"]
    assert moved.endswith(": show them")
    assert moved != start
    left = state(browser, path, table, ("key", "ArrowRight"), ("key", "Tab"))["focus"]
    assert not left.endswith(": show them")
    chosen = state(browser, path, table, ("key", "ArrowRight"), ("key", "Enter"))
    assert chosen["focus"] == "h-queries"
    assert chosen["pressed"] == 1


@pytest.mark.chromium
def test_a_screen_reader_finds_names_and_roles(browser, hostile):
    script = """
      const nameless = [...document.querySelectorAll('button, select, input')].filter(e => !e.hidden &&
        !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length)));
      if (nameless.length) console.log('nameless', nameless[0].outerHTML);
      const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
      if (new Set(ids).size !== ids.length) console.log('ids');
      for (const name of ['aria-labelledby', 'aria-controls'])
        for (const e of document.querySelectorAll('[' + name + ']'))
          if (!document.getElementById(e.getAttribute(name))) console.log(name, e.getAttribute(name));
      if ([...document.querySelectorAll('table')].some(t => !t.caption)) console.log('caption');
      if ([...document.querySelectorAll('th')].some(t => !t.scope)) console.log('scope');
      if ([...document.querySelectorAll('svg[role=img]')].some(s => !s.getAttribute('aria-label'))) console.log('svg');
    """
    assert browser.visit(hostile[0], width=400, script=script).messages == []


@pytest.mark.chromium
def test_a_thousand_queries_are_not_slow(browser, tmp_path, folder):
    """With ten pictures each: the page is there, sorted and filtered within fractions of a second."""
    embeddings, labels = rows(1500, 15, noise=1.5)
    files = [folder / f"{i % 60:02}.png" for i in range(1500)]
    _, _, source = write(tmp_path / "p.html", embeddings, [f"c{i}" for i in labels], files=files)
    assert len(data_of(source)["queries"]) == 1000
    assert len(source) < 4_000_000
    script = """(() => {
      const steps = ['[data-key=precision]', '[data-key=label]', '#only-wrong', '#next', '[data-true]'];
      const times = steps.map(selector => {
        const start = performance.now();
        document.querySelector(selector).click();
        document.body.getBoundingClientRect();
        return performance.now() - start;
      });
      const loaded = performance.getEntriesByType('navigation')[0].loadEventEnd;
      console.log(JSON.stringify({times, loaded, elements: document.querySelectorAll('*').length}));
    })()"""
    visit = browser.visit(tmp_path / "p.html", width=1280, script=script)
    found = json.loads(visit.messages[0])
    # Generous: 0.06 to 0.33 s a click and 0.56 s to load were measured on two cores that had other work.
    assert max(found["times"]) < 1000
    assert found["loaded"] < 5000
    assert found["elements"] < 15_000


@pytest.mark.chromium
def test_pictures_and_placeholders_in_a_browser(browser, tmp_path, folder):
    files = [folder / f"{i:02}.png" if i % 7 else None for i in range(60)]
    embeddings, labels = rows()
    write(tmp_path / "p.html", embeddings, [str(int(i)) for i in labels], files=files)
    for width in (1280, 400):
        script = "console.log(document.images.length, document.querySelectorAll('.empty').length)"
        visit = browser.visit(tmp_path / "p.html", width=width, actions=[("run", script)])
        images, empty = map(int, visit.messages[0].split())
        assert images + empty == 50 * 11
        assert min(images, empty) > 50
        assert visit.broken_images == 0
        assert visit.overflowing == []


def test_the_file_is_whole_or_absent(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fails)
    embeddings, labels = rows()
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "p.html", embeddings, [str(int(i)) for i in labels])
    assert list(tmp_path.iterdir()) == []
