"""Imports go downward only; read from the syntax trees, so a lazy import inside a function counts as well."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module of `contrastive` imports from the lines above its own only. A new module gets its place here.
LAYERS = [
    {"errors", "files", "collectives", "chunks", "_handwritten"},
    {"checkpoints", "randomness", "launch", "norms"},
    {"scores", "pictures"},
    {"archives"},
    {"rows", "factors", "gemm", "ranking"},
    {"objectives", "relatives", "critics", "lists", "_tiles", "assignments", "correlation", "codes"},
    {"_strips", "estimators", "arguments", "adversarial"},
    {"_streaming"},
    {"tiled", "_ring"},
    {"bounds", "criterion", "ksg"},
    {"distributed"},
    {"catalogue", "tasks", "pairings"},
    {"estimation", "noise", "mixture"},
    {"data", "encoders", "views", "batches", "vectors", "options", "tables", "thumbnails"}
    | {"taps", "wrappers", "receptive"},
    {"metrics", "relevance", "intervals", "_faiss", "flows", "terms", "priors", "pretrained"},
    {"filtered", "placement"},
    {"neighbours"},
    {"shards"},
    {"assessment", "gallery"},
    {"retrieval"},
    {"geometry", "probing", "interop", "allpairs"},
    {"report", "gallery_page"},
    {"training", "evaluation"},
    {"runs", "testing"},
    {"cli"},
]
NEVER = {module: {"training", "report", "cli"} for module in ("data", "retrieval", "metrics", "geometry")}


def imported(path):
    """The dotted names of the project's own modules that a file imports, wherever the statement stands."""
    package = path.relative_to(ROOT).parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            base += [node.module] if node.module else []
            # `from contrastive import scores` names a module, `from contrastive.scores import negatives` does not.
            names |= {".".join(base), *(".".join([*base, alias.name]) for alias in node.names)}
    return {name for name in names if name.split(".")[0] in {"contrastive", "miners", "benchmarks", "tests"}}


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def module_of(path):
    return path.relative_to(ROOT / "contrastive").parts[0].removesuffix(".py")


def of(package, names):
    return {name.split(".")[1] for name in names if name.startswith(f"{package}.")}


def test_the_reader_of_imports_sees_all_spellings(tmp_path, monkeypatch):
    (tmp_path / "miners").mkdir()
    path = tmp_path / "miners" / "x.py"
    path.write_text(
        "import contrastive.cli as c\nfrom contrastive import report\nfrom . import hard\nfrom .compose import chain\n"
        "def f():\n    from benchmarks.speed import run\n    import torch\n"
    )
    monkeypatch.setattr("test_layering.ROOT", tmp_path)
    assert imported(path) >= {
        "contrastive.cli",
        "contrastive.report",
        "miners.hard",
        "miners.compose",
        "benchmarks.speed",
    }
    assert not any(name.startswith("torch") for name in imported(path))


@pytest.mark.parametrize("path", modules("contrastive"), ids=lambda path: path.stem)
def test_contrastive_but_for_the_command_line_never_imports_miners(path):
    if module_of(path) != "cli":
        assert not {name for name in imported(path) if name.split(".")[0] == "miners"}


@pytest.mark.parametrize("path", modules("miners"), ids=lambda path: path.stem)
def test_miners_import_the_vocabulary_only(path):
    allowed = {"scores", "factors", "ranking"}  # the vocabulary; unit rows and their products; the largest of a row
    if path.stem in {"neighbors", "pool"}:  # they search
        allowed |= {"retrieval", "allpairs", "errors"}
    if path.stem == "queue":
        allowed |= {"collectives"}  # all ranks hold the same queue
    if path.stem == "_launcher":
        allowed |= {"cli"}  # it is installed as `kpair`, above both packages, and starts the command
    names = {name for name in imported(path) if name.split(".")[0] == "contrastive"}
    assert of("contrastive", names) <= allowed
    assert "contrastive" not in names  # the whole package would bring every layer with it


@pytest.mark.parametrize("path", [*modules("contrastive"), *modules("miners")], ids=lambda path: path.stem)
def test_nothing_imports_benchmarks_or_tests(path):
    assert not {name for name in imported(path) if name.split(".")[0] in {"benchmarks", "tests"}}


@pytest.mark.parametrize("path", modules("contrastive"), ids=lambda path: path.stem)
def test_layers(path):
    module = module_of(path)
    if module == "__init__":
        return
    height = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    assert module in height, f"give contrastive/{module}.py a line in LAYERS"
    below = {name for name in height if height[name] < height[module]}
    assert of("contrastive", imported(path)) - below <= {module}


@pytest.mark.parametrize("module", sorted(NEVER))
def test_leaves_stay_leaves(module):
    seen, waiting = set(), {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        path = ROOT / "contrastive" / f"{name}.py"
        if path.exists():
            waiting |= of("contrastive", imported(path)) - seen
    assert not seen & NEVER[module]
