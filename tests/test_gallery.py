"""Galleries that are kept: the same answers as `search`, after adding, saving and mapping."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import refused
from safetensors.torch import load_file, save_file

from contrastive import _faiss, neighbours, vectors
from contrastive.errors import InputError
from contrastive.gallery import Gallery
from contrastive.retrieval import search

METRICS = ["cosine", "inner_product", "euclidean"]

needs_faiss = pytest.mark.skipif(not _faiss.available(), reason="faiss is not installed")
backends = pytest.mark.parametrize("backend", ["torch", pytest.param("faiss", marks=needs_faiss)])
metrics = pytest.mark.parametrize("metric", METRICS)


@backends
@metrics
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_whatever_way_it_grew_it_answers_as_search_does(backend, metric, seed, named):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(-2, 3, (15, 3), generator=generator).float()
    y = torch.cat([y, -y])  # of mean 0: distances are exact
    x = torch.randint(-2, 3, (7, 3), generator=generator).float()
    ids = torch.randperm(100, generator=generator)[:30] if named else None
    gallery = Gallery(y[:8], ids=ids[:8] if named else None, metric=metric, backend=backend)
    for part in (slice(8, 9), slice(9, 30)):
        gallery.add(y[part], ids=ids[part] if named else None)
    assert len(gallery) == 30
    expected = search(x, y, 11, metric=metric, backend=backend, gallery_ids=ids)
    for _ in range(2):
        found = gallery.search(x, 11)
        assert torch.equal(found.ids, expected.ids)
        torch.testing.assert_close(found.scores, expected.scores)
    names = torch.arange(30) if ids is None else ids
    alone = search(y[:5], y, 11, metric=metric, backend=backend, gallery_ids=ids, exclude_self=names[:5])
    assert torch.equal(gallery.search(y[:5], 11, exclude_self=names[:5]).ids, alone.ids)


@pytest.mark.parametrize("backend", ["torch", *(pytest.param(b, marks=needs_faiss) for b in ("faiss", "IVF8,Flat"))])
@metrics
def test_saved_mapped_added_to_and_saved_again(tmp_path, backend, metric):
    y, x, ids = torch.randn(600, 6) + 3, torch.randn(9, 6) + 3, torch.randperm(2000)[:600]
    gallery = Gallery(y[:500], ids=ids[:500], metric=metric, backend=backend, nprobe=8)
    path = tmp_path / "gallery.safetensors"
    gallery.save(path)
    mapped = Gallery.load(path)
    expected = search(x, y[:500], 20, metric=metric, gallery_ids=ids[:500])
    for one in (gallery, mapped):
        found = one.search(x, 20)
        assert torch.equal(found.ids, expected.ids)
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=1e-4)
    mapped.add(y[500:], ids=ids[500:])
    mapped.save(path)  # over the file that it is mapped from
    again = Gallery.load(path)
    expected = search(x, y, 20, metric=metric, gallery_ids=ids)
    for one in (mapped, again):
        assert torch.equal(one.search(x, 20).ids, expected.ids)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    # Others read its rows.
    rows, _ = vectors.read(path)
    assert torch.equal(rows[torch.argsort(again.ids)], y[torch.argsort(ids)])


def test_a_mapped_gallery_is_read_by_blocks(tmp_path, monkeypatch):
    y, x = torch.randn(100, 4), torch.randn(5, 4)
    Gallery(y, metric="euclidean", backend="torch").save(tmp_path / "g.safetensors")
    expected = search(x, y, 7, metric="euclidean", backend="torch")
    monkeypatch.setattr(neighbours, "GALLERY_KEPT", 0)
    monkeypatch.setattr(neighbours, "GALLERY_BLOCK", 64)
    told = []
    gallery = Gallery.load(tmp_path / "g.safetensors")
    ranking = gallery.search(x, 7, on_progress=lambda *step: told.append(step))
    assert torch.equal(ranking.ids, expected.ids)
    assert told[-1] == (7, 7)


@needs_faiss
def test_an_index_that_finds_less_fills_up():
    y = torch.randn(300, 4)
    gallery = Gallery(y, ids=torch.arange(300).flip(0), backend="IVF32,Flat", nprobe=1)
    found = gallery.search(y, 50)
    missing = found.ids < 0
    assert bool(missing.any())
    assert bool((found.scores[missing] == -torch.inf).all())
    assert bool((found.ids[:, 0] == torch.arange(300).flip(0)).all())


def test_the_largest_id_is_one():
    gallery = Gallery(torch.eye(2), ids=torch.tensor([5, 2**63 - 1]))
    assert gallery.search(torch.eye(2), 2).ids.tolist() == [[5, 2**63 - 1], [2**63 - 1, 5]]


def test_ids_are_integers():
    gallery = Gallery(torch.eye(2), ids=torch.tensor([5, 7]))
    for ids in (torch.tensor([15.7]), torch.tensor([True])):
        with refused("Gallery.add", "gallery_ids have dtype"):
            gallery.add(torch.ones(1, 2), ids=ids)
    assert len(gallery) == 2


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    y = torch.randn(5, 3)
    gallery, named = Gallery(y), Gallery(y, ids=torch.tensor([4, 8, 15, 16, 23]))
    for call, message in [
        (lambda: gallery.add(torch.randn(2, 4)), r"Gallery.add: rows have shape \(2, 4\) and the gallery \(5, 3\)"),
        (lambda: gallery.add(torch.full((1, 3), torch.nan)), "Gallery.add: rows holds NaN or infinity in 1 row"),
        (lambda: gallery.add(y, ids=torch.arange(5)), "Gallery.add: ids are given, and the gallery has none"),
        (lambda: named.add(y), "Gallery.add: ids are missing"),
        (lambda: named.add(y[:1], ids=torch.tensor([15])), "Gallery.add: gallery_ids hold 15 more than once"),
        (lambda: named.add(y[:1], ids=torch.tensor([-3])), "Gallery.add: gallery_ids hold -3"),
        (lambda: gallery.search(y, 6), "Gallery.search: k is 6, expected 1 to 5"),
        (lambda: gallery.search(y, 0), "Gallery.search: k is 0"),
        (lambda: gallery.search(y, 5, exclude_self=torch.arange(5)), "expected 1 to 4, .* without the query itself"),
        (lambda: named.search(y, 1, exclude_self=torch.arange(5)), "exclude_self holds id 0"),
        (lambda: gallery.search(y[:, :2], 1), "expected the same width"),
        (lambda: gallery.search(y[:0], 1), r"queries has shape \(0, 3\)"),
        (lambda: gallery.save(tmp_path / "x.bin"), "expected a name that ends in .safetensors"),
        (lambda: gallery.save(tmp_path / "no" / "x.safetensors"), "cannot be written"),
        (lambda: Gallery(y, backend="scann"), "Gallery: backend is 'scann'"),
        (lambda: Gallery(y[:0]), r"Gallery: rows has shape \(0, 3\)"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
    assert len(gallery) == len(named) == 5
    assert torch.equal(gallery.search(y, 2).ids, search(y, y, 2).ids)
    assert list(tmp_path.iterdir()) == []


@needs_faiss
def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "g.safetensors"
    Gallery(torch.randn(300, 4), backend="IVF4,Flat").save(path)
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"Gallery.load: .* cannot be read"):
            Gallery.load(path)
    save_file({"embeddings": torch.randn(3, 2)}, path)
    with pytest.raises(InputError, match="is no gallery"):
        Gallery.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        Gallery.load(tmp_path / "nope.safetensors")
    path.write_bytes(content.replace(b"IwFl", b"XXXX"))  # the kind of the index
    with pytest.raises(InputError, match="its index is damaged"):
        Gallery.load(path)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_in_half_precision_stay_as_they_are(tmp_path, metric):
    x, y, more = torch.randn(9, 8), torch.randn(50, 8).half(), torch.randn(10, 8).half()
    gallery, wide = Gallery(y, metric=metric), Gallery(y.float(), metric=metric)
    for one, rows in ((gallery, more), (wide, more.float())):
        one.add(rows)
    gallery.save(tmp_path / "half.safetensors")
    assert load_file(tmp_path / "half.safetensors")["embeddings"].dtype == torch.float16
    expected = wide.search(x, 5)  # queries are not rounded to the gallery's precision
    for found in (gallery.search(x, 5), Gallery.load(tmp_path / "half.safetensors").search(x, 5)):
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.scores, expected.scores)
    gallery.add(x)
    assert torch.equal(gallery.search(x, 1).ids.flatten(), torch.arange(60, 69)) or metric == "inner_product"
    assert gallery.search(x.double(), 5).scores.dtype == torch.float32
