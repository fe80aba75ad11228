"""Galleries that several ranks hold: the same answers whoever holds what, to the last bit."""

import json
import math
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from ranks import run_ranks

from contrastive import _faiss, launch, neighbours
from contrastive.cli import main
from contrastive.errors import InputError
from contrastive.neighbours import unit_rows
from contrastive.retrieval import Shard, evaluate_retrieval, search

METRICS = ("cosine", "inner_product", "euclidean")
BACKENDS = ("auto", "torch", "faiss") if _faiss.available() else ("auto", "torch")
NAMES = ("recall", "precision@3", "ndcg@5", "knn@5", "r_precision", "map@r", "mrr")

# Who holds which of 60 rows: uneven, tiny (fewer than k), empty, and one that is all.
SHARDS = {
    1: [[range(60)]],
    2: [[range(57), range(57, 60)], [range(0), range(60)], [range(0, 60, 2), range(1, 60, 2)]],
    3: [[range(30), range(30, 58), range(58, 60)], [range(1, 60), range(0), range(1)]],
}


def data():
    """Sixty rows of six classes, some of them equal: ties within shards and across them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 6
    rows = torch.randn(6, 8, generator=generator)[labels] + torch.randn(60, 8, generator=generator)
    rows[40:50] = rows[:10]
    rows[55:60] = rows[20]
    return rows, labels


def many():
    """Rows in which a matrix product rounds otherwise for a few rows than for many, some of them almost equal."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60 * 50, 300, generator=generator)
    rows[::100] = rows[0] + 1e-7 * torch.randn(30, 300, generator=generator)
    rows[100::200] = rows[100]
    return rows


def in_plain_words(x, y, metric, k):
    """The ranking by scores that are summed in float64 and rounded to float32, equal scores by row."""
    if metric == "euclidean":
        step = 2.0 ** (math.frexp(float(y.abs().max()))[1] - 8)
        centre = ((y.double().mean(0) / step).round() * step).float()
        x, y = x - centre, y - centre
    if metric == "cosine":
        x, y = unit_rows(x), unit_rows(y)
    found = []
    for query in x.double():
        scores = -(y - query).square().sum(1) if metric == "euclidean" else y.double() @ query
        scores = scores.float().tolist()
        found.append(sorted(range(len(y)), key=lambda i, scores=scores: (-scores[i], i))[:k])
    return found


def answers(rows, labels, ids, mapped=None):
    """All that is asked of a rank that holds these rows."""
    found = {}
    shard = Shard(rows if mapped is None else mapped, ids=ids)
    names = [f"class {label}" for label in labels.tolist()]
    queries = data()[0][:5] + 0.1
    for metric in METRICS:
        result = evaluate_retrieval(shard, labels, ks=(1, 5), metrics=NAMES, metric=metric)
        by_name = evaluate_retrieval(shard, names, ks=(1, 5), metrics=NAMES, metric=metric)
        assert by_name.mean == result.mean
        found[metric] = (result.mean, result.per_query, result.interval, result.tied)
        own = search(shard, shard, 7, metric=metric, exclude_self=True)
        some = search(shard, shard, 7, metric=metric, exclude_self=ids)
        assert torch.equal(own.ids, some.ids)
        everywhere = search(queries, shard, 59, metric=metric)
        found[f"{metric} search"] = (ids, own.ids, own.scores, everywhere.ids, everywhere.scores)
    relevant = [[(int(i) + 6) % 60, (int(i) + 12) % 60] for i in ids]
    found["lists"] = evaluate_retrieval(shard, relevant=relevant, ks=(3,), metrics=("coverage",)).per_query
    found["sample"] = evaluate_retrieval(shard, labels, ks=(1,), sample=10).per_query
    return found


def of_rank(rank, world, shards, folder):
    rows, labels = data()
    found = []
    for number, parts in enumerate(shards):
        own = torch.tensor(list(parts[rank]), dtype=torch.int64)
        path = f"{folder}/{world}-{number}-{rank}.npy"
        np.save(path, rows[own].numpy())
        mapped = np.load(path, mmap_mode="c") if len(own) else None
        neighbours.GALLERY_KEPT, neighbours.GALLERY_BLOCK = (0, 8 * 11) if number % 2 == 0 else (2**28, 2**25)
        found.append(answers(rows[own], labels[own], own, mapped))
        neighbours.GALLERY_KEPT, neighbours.GALLERY_BLOCK = 2**28, 2**25
        theirs = (50 * own[:, None] + torch.arange(50)).flatten()
        shard, queries = Shard(many()[theirs], ids=theirs), many()[::50]
        for metric in METRICS:
            for by in BACKENDS if number == 0 else BACKENDS[:1]:
                # Whoever searches finds the same.
                ranking = search(queries, shard, 10, metric=metric, backend=by)
                found[-1].setdefault(f"{metric} many", []).append((ranking.ids, ranking.scores))
    return found


def assert_same(found, expected):
    for name, value in expected.items():
        if name.endswith("search"):
            ids, own_ids, own_scores, everywhere_ids, everywhere_scores = found[name]
            assert torch.equal(own_ids, value[1][ids])  # of one rank, ids are rows
            assert torch.equal(own_scores, value[2][ids])
            assert torch.equal(everywhere_ids, value[3])
            assert torch.equal(everywhere_scores, value[4])
        elif name.endswith("many"):
            assert all(torch.equal(ids, value[0][0]) and torch.equal(s, value[0][1]) for ids, s in found[name])
        elif isinstance(value, dict):
            assert all(torch.equal(found[name][key], value[key]) for key in value)
        else:
            mean, per_query, interval, tied = value
            assert found[name][0] == mean
            assert all(torch.equal(found[name][1][key], per_query[key]) for key in per_query)
            assert found[name][2] == interval
            assert found[name][3] == tied > 0


@pytest.mark.slow
def test_the_same_answers_on_one_two_and_three_ranks(tmp_path):
    (expected,) = of_rank(0, 1, SHARDS[1], tmp_path)
    for world in (2, 3):
        for of_one in run_ranks(of_rank, world, SHARDS[world], tmp_path):
            for found in of_one:
                assert_same(found, expected)


def test_a_single_shard_is_the_whole():
    rows, labels = data()
    found = answers(rows, labels, torch.arange(60))
    for metric in METRICS:
        expected = evaluate_retrieval(rows, labels, ks=(1, 5), metrics=NAMES, metric=metric, backend="torch")
        assert found[metric][0] == pytest.approx(expected.mean, abs=1e-6)
        ranking = search(rows, rows, 7, metric=metric, backend="torch", exclude_self=True)
        assert torch.equal(found[f"{metric} search"][1], ranking.ids)
        torch.testing.assert_close(found[f"{metric} search"][2], ranking.scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_in_half_precision_are_computed_with_in_float32(metric):
    x = torch.randn(40, 8).half()
    half, wide = Shard(x), Shard(x.float())
    assert half.rows.dtype == torch.float16
    assert torch.equal(half[torch.tensor([3, 1])], wide[torch.tensor([3, 1])])
    queries = torch.randn(5, 8)  # not rounded to half
    for of_half, of_wide in ((half, wide), (queries, queries), (queries.half(), queries.half().float())):
        found, expected = search(of_half, half, 7, metric=metric), search(of_wide, wide, 7, metric=metric)
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_those_of_pairs(metric):
    rows = many()
    found = search(rows[:150:50], Shard(rows), 40, metric=metric)
    assert found.ids.tolist() == in_plain_words(rows[:150:50], rows, metric, 40)


def test_merging_as_faiss_does_is_no_help():
    # Of equal scores it prefers the higher rank, so that answers depend on who holds what.
    faiss = pytest.importorskip("faiss")
    scores, ids = np.ones((2, 1, 2), np.float32), np.array([[[0, 1]], [[4, 5]]])
    assert faiss.merge_knn_results(scores, ids, keep_max=True)[1].tolist() == [[4, 5]]
    assert faiss.merge_knn_results(scores, ids[::-1].copy(), keep_max=True)[1].tolist() == [[0, 1]]


def test_padding_of_a_sampler_counts_once():
    rows, labels = data()
    ids = torch.cat([torch.randperm(60), torch.tensor([3, 3, 17])])
    shard = Shard(rows[ids], ids=ids)
    assert len(shard) == 60
    expected = evaluate_retrieval(Shard(rows), labels, metrics=NAMES, ks=(1, 5))
    result = evaluate_retrieval(shard, labels[ids], metrics=NAMES, ks=(1, 5))
    assert result.mean == expected.mean
    ranking = search(shard, shard, 4, exclude_self=True)
    assert torch.equal(ranking.ids, search(rows, rows, 4, exclude_self=True, backend="torch").ids[ids])
    labels = labels[ids]
    labels[-1] += 1
    with pytest.raises(InputError, match="labels of id 17 differ where it occurs again"):
        evaluate_retrieval(shard, labels)
    with pytest.raises(InputError, match="labels of id 17 differ where it occurs again"):
        evaluate_retrieval(shard, [str(label) for label in labels.tolist()])


def test_a_gallery_of_its_own():
    rows, labels = data()
    gallery, queries = Shard(rows, ids=torch.arange(60) * 3), rows[:9] + 0.1
    options = {"ks": (1, 5), "metrics": ("recall", "ndcg")}
    expected = evaluate_retrieval(
        queries, labels[:9], gallery=rows, gallery_labels=labels, **options, backend="torch"
    ).mean
    for asked in (queries, Shard(queries)):
        found = evaluate_retrieval(asked, labels[:9], gallery=gallery, gallery_labels=labels, **options)
        assert found.mean == pytest.approx(expected)
    relevant = [[3 * i, 30] for i in range(9)]
    by_id = evaluate_retrieval(queries, gallery=gallery, relevant=relevant, ks=(1,))
    plain = evaluate_retrieval(queries, gallery=rows, relevant=[[i, 10] for i in range(9)], ks=(1,), backend="torch")
    assert by_id.mean == plain.mean
    assert bool((search(queries, gallery, 3).ids % 3 == 0).all())


@pytest.mark.skipif(not _faiss.available(), reason="faiss is not installed")
def test_other_back_ends():
    rows, labels = data()
    shard = Shard(rows, ids=torch.arange(60))
    expected = evaluate_retrieval(shard, labels, ks=(1, 5)).mean
    assert evaluate_retrieval(shard, labels, ks=(1, 5), backend="faiss").mean == pytest.approx(expected, abs=1e-6)
    result = evaluate_retrieval(shard, labels, ks=(1, 5), backend="IVF2,Flat", nprobe=1)
    assert 0.3 < result.index_recall < 1.0
    # An index that finds fewer than k: no row, and no score.
    ranking = search(rows[:5], shard, 50, backend="IVF2,Flat", nprobe=1)
    missing = ranking.scores == -torch.inf
    assert bool(missing.any())
    assert torch.equal(ranking.ids < 0, missing)


def test_items_of_almost_the_same_score_are_not_tied():
    query = torch.ones(1, 8)
    gallery = query.repeat(4, 1)
    gallery[2:, 0] -= 4e-6  # eight times the last digit of the score, within the error of a product
    options = {"gallery_labels": torch.tensor([0, 1, 1, 1]), "metrics": ("recall",), "ks": (1,)}
    for metric in ("inner_product", "euclidean"):
        result = evaluate_retrieval(query + 1, torch.tensor([0]), gallery=Shard(gallery), **options, metric=metric)
        assert result.mean == {"recall@1": 0.5}


BAD = {
    "NaN": lambda x, ids: (x * torch.nan, ids),
    "width": lambda x, ids: (x[:, :4], ids),
    "dtype": lambda x, ids: (x[:, :4].double(), ids),  # as many bytes
    "ids": lambda x, ids: (x, ids[1:]),
    "negative": lambda x, ids: (x, ids - 10),
    "some ids": lambda x, ids: (x, None),
    "integers": lambda x, ids: (x[:0].long(), ids[:0]),
}


def refusals(rank, world):
    rows, labels = data()
    own, messages = torch.arange(60)[rank::world], {}
    for name, change in BAD.items():
        x, ids = change(rows[own], own) if rank == 1 else (rows[own], own)
        try:
            Shard(x, ids=ids)
        except InputError as error:
            messages[name] = str(error)
    shard = Shard(rows[own], ids=own)
    for name, asked in {
        "labels": lambda: evaluate_retrieval(shard, labels[own][rank:]),
        "k": lambda: search(shard, shard, 60, exclude_self=True),
        "own": lambda: search(shard, shard, 6, exclude_self=np.arange(3)),
        "metric": lambda: search(shard, shard, 6, metric="cosin"),
        "index": lambda: search(shard, shard, 6, backend="IVF50,Flat"),
    }.items():
        try:
            asked()
        except InputError as error:
            messages[name] = str(error)
    return messages


@pytest.mark.slow
def test_what_one_rank_refuses_all_refuse():
    first, second = run_ranks(refusals, 2)
    assert first == second
    assert "rank 1: Shard: rows holds NaN or infinity in 30 rows" in first["NaN"]
    assert "rows are of different widths" in first["width"]
    assert "rows are of different widths" in first["dtype"]
    assert "rank 1: Shard: ids have dtype torch.int64 and shape (29,), expected 30 integers" in first["ids"]
    assert "ids hold -9" in first["negative"]
    assert "ids are given on some ranks, expected all or none" in first["some ids"]
    assert "rows have dtype torch.int64" in first["integers"]
    assert "rank 1: Shard: 29 labels for 30 rows" in first["labels"]
    assert "k is 60, expected 1 to 59" in first["k"]
    assert "exclude_self is of type ndarray, expected True, False or a tensor of ids" in first["own"]
    assert "metric is 'cosin'" in first["metric"]
    assert ("index 'IVF50,Flat'" in first["index"]) or not _faiss.available()


@pytest.mark.slow
def test_the_command_on_two_ranks(tmp_path):
    rows, labels = data()
    np.save(tmp_path / "x.npy", rows.numpy())
    np.save(tmp_path / "l.npy", labels.numpy())
    words = ["evaluate", "x.npy", "--labels", "l.npy", "--k", "1,5", "--json", "out.json"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "kpair"]
    done = subprocess.run([sys.executable, *launch, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("recall@5") == 1
    found = json.loads((tmp_path / "out.json").read_text())["figures"]
    expected = evaluate_retrieval(Shard(rows), labels, ks=(1, 5)).mean
    assert {name: found[name] for name in expected} == expected
    rows[41] = torch.nan
    np.save(tmp_path / "x.npy", rows.numpy())
    (tmp_path / "out.json").unlink()
    done = subprocess.run([sys.executable, *launch, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "kpair evaluate: embeddings holds NaN or infinity in 1 row, the first is row 41" in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_what_the_command_does_in_one_process_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows, labels = data()
    np.savez("x.npz", embeddings=rows.numpy(), labels=labels.numpy())
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "joined", nullcontext)
    for words in (["--report", "p.html"], ["--resume", "auto", "--json", "o.json"]):
        assert main(["evaluate", "x.npz", *words]) == 2
        assert f"{words[0]} goes with one process, not with torchrun" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
