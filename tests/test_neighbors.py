"""Mining the whole data set: against brute force, guards that hold, epochs that are partitions, exact resumes."""

import inspect
import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import AWKWARD, awkward, score_matrix
from torch.utils.data import DataLoader, TensorDataset

from contrastive import InputError, allpairs
from contrastive.codes import Codes
from contrastive.retrieval import search
from miners.neighbors import class_means, hard_class_batches, mine_negatives, neighbour_batches

METRICS = ["cosine", "inner_product", "euclidean"]
metrics = pytest.mark.parametrize("metric", METRICS)


def brute_force(x, k, metric="cosine", labels=None, threshold=None):
    scores = score_matrix(x, metric).float().fill_diagonal_(-torch.inf)
    if labels is not None:
        scores[labels[:, None] == labels] = -torch.inf
    if threshold is not None:
        scores[scores > threshold] = -torch.inf
    values, ids = scores.sort(dim=1, descending=True, stable=True)
    return torch.where(values > -torch.inf, ids, -1)[:, :k], values[:, :k]


def middle(x, metric, share=0.9):
    """A threshold in the middle of a gap between scores, so that rounding decides nothing."""
    values = score_matrix(x, metric)[*torch.triu_indices(len(x), len(x), 1)].sort().values
    place = int(share * len(values))
    place += int(values[place : place + len(values) // 50 + 2].diff().argmax())
    return float((values[place] + values[place + 1]) / 2)


# --- mine_negatives ---------------------------------------------------------------------------------------------------


@metrics
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "guard",
    [{}, {"labels"}, {"threshold"}, {"labels", "threshold"}],
    ids=lambda guard: " and ".join(sorted(guard)) or "none",
)
def test_negatives_equal_brute_force(metric, dtype, guard):
    x = torch.randn(300, 12, dtype=dtype)
    options = {}
    if "labels" in guard:
        options["labels"] = torch.randint(0, 4, (300,))
    if "threshold" in guard:
        options["threshold"] = middle(x, metric)
    for k in (1, 20, 299):
        ids, scores = brute_force(x, k, metric, **options)
        found = mine_negatives(x, k, metric=metric, **options)
        assert torch.equal(found.ids, ids)
        torch.testing.assert_close(found.scores, scores, atol=1e-5, rtol=1e-5)
        assert found.scores.dtype == torch.float32


def test_without_guards_it_is_search():
    x = torch.randn(500, 16)
    expected = search(x, x, 30, backend="torch", exclude_self=True)
    found = mine_negatives(x, 30)
    assert float((found.ids == expected.ids).double().mean()) > 0.999  # neighbours whose scores agree to rounding
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-6, rtol=1e-6)


@metrics
def test_self_is_left_out_by_its_number_and_duplicates_stay(metric):
    x = torch.randn(20, 6).repeat(5, 1)
    found = mine_negatives(x, 4, metric=metric)
    assert not bool((found.ids == torch.arange(100)[:, None]).any())
    if metric != "inner_product":
        assert bool((found.ids % 20 == torch.arange(100)[:, None] % 20).all())
        assert bool((found.ids.diff(dim=1) > 0).all())  # equal scores by id


def test_a_threshold_takes_duplicates_out():
    x = torch.randn(20, 6).repeat(5, 1)
    found = mine_negatives(x, 8, threshold=0.999)
    assert not bool((found.ids % 20 == torch.arange(100)[:, None] % 20).any())


def test_where_there_are_fewer_it_says_so():
    x = torch.randn(9, 4)
    labels = ["a"] * 6 + ["b"] * 2 + ["c"]
    found = mine_negatives(x, 8, labels=labels)
    assert (found.ids >= 0).sum(1).tolist() == [3] * 6 + [7] * 2 + [8]
    assert torch.equal(found.ids == -1, found.scores == -torch.inf)
    nothing = mine_negatives(x, 3, labels=["a"] * 9)
    assert bool((nothing.ids == -1).all())
    assert bool((mine_negatives(x, 3, threshold=-2.0).ids == -1).all())


@metrics
def test_collapsed_embeddings_rank_by_id(metric):
    found = mine_negatives(torch.tensor([[0.3, -0.7, 0.1]]).repeat(25, 1), 5, metric=metric)
    assert found.ids.tolist() == [[j for j in range(25) if j != i][:5] for i in range(25)]


def test_an_item_that_fits_nowhere_does_not_end_the_epoch():
    """Too near to all others, which are far from each other; it comes first in one epoch of six."""
    rows = torch.cat([torch.eye(5), torch.full((1, 5), 5**-0.5)])
    sampler = neighbour_batches(6, 2, lambda: rows, threshold=0.4, every=1)
    for _ in range(12):
        batches = list(sampler)
        items = [item for batch in batches for item in batch]
        assert len(items) == len({*items} - {5}) == 4


def test_items_of_one_label_end_it():
    sampler = neighbour_batches(200, 4, labels=[0] * 190 + list(range(1, 11)))
    batches = list(sampler)
    assert 1 <= len(batches) <= 4
    assert all(sum(item < 190 for item in batch) <= 1 for batch in batches)


def test_labels_sorted_by_class_leave_the_first_blocks_empty():
    x, labels = torch.randn(400, 8), torch.arange(400) // 200
    ids, _ = brute_force(x, 7, labels=labels)
    assert torch.equal(mine_negatives(x, 7, labels=labels).ids, ids)


@metrics
@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_filter_loses_nothing(metric, kind, dtype, monkeypatch):
    monkeypatch.setattr(allpairs, "HEIGHT", 300)
    monkeypatch.setattr(allpairs, "WIDTH", 256)
    monkeypatch.setattr(allpairs, "_FIRST_WIDTH", 64)
    monkeypatch.setattr(allpairs, "faster_dtype", lambda *where: dtype)
    generator = torch.Generator().manual_seed(1)
    x, labels = awkward(kind, generator), torch.randint(0, 5, (700,), generator=generator)
    # The library's own rows (unit, or centred): what the search decides is checked here, not what preparing rounds.
    pairs = allpairs.AllPairs("test", x, metric=metric)
    expected = score_matrix(pairs.rows, "inner_product" if metric == "cosine" else metric).float()
    threshold = float(expected.flatten().sort().values[-4000])
    for options in ({}, {"classes": labels, "threshold": threshold}):
        found = allpairs.AllPairs("test", x, metric=metric, **options).top(9)
        scores = expected.clone().fill_diagonal_(-torch.inf)
        if options:
            scores[(labels[:, None] == labels) | (scores > threshold)] = -torch.inf
        values = scores.sort(dim=1, descending=True, stable=True).values[:, :9]
        torch.testing.assert_close(found.scores, values, atol=0, rtol=1e-6)
        held = found.ids >= 0
        assert torch.equal(held, values > -torch.inf)
        row = torch.arange(700)[:, None].expand_as(found.ids)[held]
        torch.testing.assert_close(scores[row, found.ids[held]], found.scores[held], atol=0, rtol=1e-6)
        assert all(len(set(ids[ids >= 0].tolist())) == int((ids >= 0).sum()) for ids in found.ids)


@pytest.mark.parametrize("metric", ["inner_product", "euclidean"])
@pytest.mark.parametrize("kind", [*AWKWARD, "whole numbers", "all errors of one sign"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_filter_is_off_by_no_more_than_it_says(metric, kind, dtype):
    generator = torch.Generator().manual_seed(1)
    if kind == "whole numbers":  # exact in bfloat16, but for the result
        x = torch.randint(-7, 8, (700, 20), generator=generator).float()
    elif kind == "all errors of one sign":  # of both rows, and of their product: 257 is rounded to 256
        x = torch.full((64, 257), 1 + 0.99 * 2.0**-8)
    else:
        x = awkward(kind, generator)
    codes = Codes.of(x, metric, dtype)
    queries, error, reach = codes.queries(x)
    error = error + 1.01 * codes.rounding * reach
    x = x.double() * codes.scale
    expected = x @ x.T - (x.square().sum(1) / 2 if metric == "euclidean" else 0.0)
    off = ((queries @ codes.rows.T).double() - expected).abs().amax(1) / error
    assert float(off.max()) <= 1
    assert float(error.max()) < 0.05  # of products of about 1 at most: it says something


@metrics
def test_no_digit_depends_on_blocks_or_precision(metric, monkeypatch):
    x = torch.cat([torch.randn(150, 9), torch.randint(-1, 2, (150, 9)).float()]).repeat(2, 1)
    monkeypatch.setattr(allpairs, "faster_dtype", lambda *where: torch.float32)
    expected = mine_negatives(x, 11, metric=metric)
    sizes = [("HEIGHT", 41), ("WIDTH", 128), ("_FIRST_WIDTH", 1), ("_NUMBERS", 100)]
    for name, size in sizes:
        monkeypatch.setattr(allpairs, name, size)
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(allpairs, "faster_dtype", lambda *where, dtype=dtype: dtype)
        found = mine_negatives(x, 11, metric=metric)
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.scores, expected.scores)


@metrics
def test_too_many_equals_are_ranked_in_blocks(metric, monkeypatch):
    monkeypatch.setattr(allpairs, "LIMIT", 3000)
    ranked = []
    rank = allpairs.AllPairs._ranked
    monkeypatch.setattr(allpairs.AllPairs, "_ranked", lambda self, *rest: ranked.append(1) or rank(self, *rest))
    x = torch.ones(1000, 4)
    found = mine_negatives(x, 3, metric=metric, labels=torch.arange(1000) // 500)
    assert ranked
    assert found.ids.tolist() == [[500, 501, 502]] * 500 + [[0, 1, 2]] * 500
    # where rows differ it finds what the filter finds
    y = torch.randn(300, 6)
    pairs = allpairs.AllPairs("test", y, metric=metric, threshold=middle(y, metric))
    place, column = pairs._ranked(8, torch.arange(300))
    assert torch.equal(pairs._ranking(8, torch.arange(300), place, column).ids, pairs.top(8).ids)


def test_anchors_of_choice():
    x = torch.randn(300, 6)
    anchors = torch.tensor([7, 299, 0])
    pairs = allpairs.AllPairs("test", x)
    assert torch.equal(pairs.top(5, anchors).ids, pairs.top(5).ids[anchors])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("positive", [False, True])
def test_maxima_by_their_bits(dtype, positive):
    x = torch.randn(5, 64, 7).to(dtype)
    x[0] = -x[0].abs()
    x[1, 3] = 0.0
    found, expected = allpairs._maxima(x, positive), x.amax(1)
    if positive:
        found, expected = found.clamp_min(0), expected.clamp_min(0)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k is 0, expected 1 to 8"),
        ({"k": 9}, "k is 9, expected 1 to 8"),
        ({"k": 1, "embeddings": torch.ones(1, 2)}, "got a single row, expected at least two"),
        ({"k": 1, "labels": [1, 2]}, "2 labels for 9 rows"),
        ({"k": 1, "threshold": float("nan")}, "threshold is nan"),
        ({"k": 1, "metric": "hamming"}, "metric is 'hamming'"),
        ({"k": 1, "embeddings": torch.full((9, 2), torch.nan)}, "NaN or infinity in 9 rows"),
        ({"k": 1, "embeddings": torch.zeros(9, 2, dtype=torch.int64)}, "dtype torch.int64"),
    ],
)
def test_what_cannot_be_mined_is_said(arguments, message):
    with pytest.raises(InputError, match=message):
        inspect.unwrap(mine_negatives)(arguments.pop("embeddings", torch.randn(9, 2)), **arguments)


# --- neighbour_batches ------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    items=st.integers(2, 60),
    size=st.integers(1, 12),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    warmup=st.integers(0, 3),
    every=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_an_epoch_is_a_partition(items, size, share, warmup, every, seed):
    size = min(size, items)
    x = torch.randn(items, 3, generator=torch.Generator().manual_seed(seed))
    sampler = neighbour_batches(items, size, lambda: x, share=share, warmup=warmup, every=every, k=4, seed=seed)
    for _ in range(2):
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [size] * len(sampler)
        seen = [item for batch in batches for item in batch]
        assert len(seen) == len(set(seen)) == items // size * size
        assert set(seen) <= set(range(items))


def forbidden_pairs(x, *, threshold=None, skip=0, labels=None):
    pairs = torch.zeros(len(x), len(x), dtype=torch.bool)
    if threshold is not None:
        pairs |= score_matrix(x, "cosine") > threshold
    if labels is not None:
        pairs |= labels[:, None] == labels
    for i, near in enumerate(brute_force(x, skip, labels=labels, threshold=threshold)[0].tolist() if skip else []):
        pairs[i, [j for j in near if j >= 0]] = True
    return (pairs | pairs.T).fill_diagonal_(False)


@settings(max_examples=25, deadline=None)
@given(
    share=st.sampled_from([0.0, 0.5, 1.0]),
    guarded=st.sets(st.sampled_from(["threshold", "skip", "labels"]), min_size=1),
    seed=st.integers(0, 99),
)
def test_no_two_of_a_batch_are_suspected(share, guarded, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(10, 4, generator=generator).repeat(6, 1) + 0.05 * torch.randn(60, 4, generator=generator)
    every = {"threshold": middle(x, "cosine"), "skip": 3, "labels": torch.arange(60) % 10}
    guards = {name: value for name, value in every.items() if name in guarded}
    pairs = forbidden_pairs(x, **guards)
    sampler = neighbour_batches(60, 5, lambda: x, share=share, k=12, seed=seed, **guards)
    batches = list(sampler)
    assert len(batches) >= 4
    for batch in batches:
        assert not bool(pairs[batch][:, batch].any())
    seen = [item for batch in batches for item in batch]
    assert len(seen) == len(set(seen))
    plain = neighbour_batches(60, 5, lambda: x, share=share, k=12, seed=seed)
    if share == 1.0:  # and without the guard they would be
        assert any(bool(pairs[batch][:, batch].any()) for batch in plain)


def test_guards_compare_the_metric_that_was_asked_for():
    x = torch.tensor([[0.0], [0.1], [3.0], [3.1], [9.0], [9.1]])
    batches = list(neighbour_batches(6, 3, lambda: x, metric="euclidean", threshold=-0.5))
    assert batches
    for batch in batches:
        assert bool((x[batch].flatten().sort().values.diff() > 0.5).all())


def test_labels_in_equal_parts_leave_nobody_out():
    x, labels = torch.randn(40, 4), torch.arange(40) % 8
    batches = list(neighbour_batches(40, 8, lambda: x, labels=labels))
    assert len(batches) == 5
    assert all(sorted(labels[batch].tolist()) == list(range(8)) for batch in batches)


def test_batches_are_made_of_neighbours():
    centres = 10 * torch.randn(32, 8)
    x = (centres[:, None] + 0.01 * torch.randn(32, 16, 8)).flatten(0, 1)
    cluster = torch.arange(512) // 16

    def purity(**options):
        sampler = neighbour_batches(512, 16, lambda: x, metric="euclidean", **options)
        return sum(len(set(cluster[batch].tolist())) == 1 for batch in sampler) / len(sampler)

    assert purity() == 1.0
    assert purity(share=0.0) == 0.0
    assert purity(warmup=10**6) == 0.0
    half = next(iter(neighbour_batches(512, 16, lambda: x, metric="euclidean", share=0.5, seed=3)))
    assert len(set(cluster[half[:9]].tolist())) == 1 < len(set(cluster[half].tolist()))


def test_neighbours_are_searched_at_fixed_steps_after_warm_up():
    calls = []
    sampler = neighbour_batches(40, 8, lambda: calls.append(sampler.step) or torch.randn(40, 3), every=4, warmup=6)
    for _ in range(4):
        list(sampler)
    assert calls == [8, 12, 16]
    assert sampler.epoch == 4


def test_the_caller_may_set_embeddings():
    sampler = neighbour_batches(40, 4)
    batches = iter(sampler)
    shuffled = neighbour_batches(40, 4, share=0.0)
    assert next(batches) == next(iter(shuffled))
    x = torch.arange(40.0)[:, None]
    sampler2 = neighbour_batches(40, 4, metric="euclidean")
    sampler2.refresh(x)
    assert all(max(batch) - min(batch) < 12 for batch in list(sampler2)[:4])
    with pytest.raises(InputError, match="expected 40 rows"):
        sampler2.refresh(x[:9])


def drifting(items, seed=0):
    """Embeddings that change at every call, as those of a model in training do; the state is the number of calls."""

    class Model:
        calls = 0

        def __call__(self):
            self.calls += 1
            return torch.randn(items, 5, generator=torch.Generator().manual_seed(100 * seed + self.calls))

    return Model()


GUARDS = {"none": {}, "threshold": {"threshold": 0.9, "skip": 2}, "labels": {"labels": torch.arange(50) % 25}}


@pytest.mark.parametrize("guards", GUARDS.values(), ids=GUARDS)
@pytest.mark.parametrize("ahead", [0, 3])
def test_a_killed_run_sees_the_batches_it_would_have_seen(guards, ahead):
    def make():
        model = drifting(50)
        return model, neighbour_batches(50, 6, model, every=3, warmup=2, share=0.7, k=9, **guards)

    def stream(sampler):
        while True:
            for batch in sampler:
                yield batch, sampler.epoch

    _, sampler = make()
    whole = stream(sampler)
    expected = [next(whole)[0] for _ in range(40)]
    for killed_at in [0, 1, 8, 9, 16, *random.Random(0).sample(range(10, 35), 3)]:
        model, sampler = make()
        seen = stream(sampler)
        for _ in range(killed_at):
            next(seen)
        held = min(ahead, len(sampler._recent))
        state, calls = sampler.state_dict(ahead=held), model.calls
        model, sampler = make()
        model.calls = calls
        sampler.load_state_dict(state)
        assert sampler.state_dict()["again"] == state["again"]
        rest = stream(sampler)
        assert [next(rest)[0] for _ in range(40 - killed_at + held)] == expected[killed_at - held :]


def test_an_epoch_that_guards_end_early_searches_no_second_time():
    def make():
        model = drifting(6)
        return model, neighbour_batches(6, 2, model, every=1, labels=[0, 0, 0, 0, 1, 2])

    model, sampler = make()
    assert len(list(sampler)) < len(sampler) == 3
    state, calls, step = sampler.state_dict(), model.calls, sampler.step
    assert calls == step + 1  # the step that found no batch has searched already
    _, resumed = make()
    resumed.load_state_dict(state)
    for one in (sampler, resumed):
        next(iter(one))
    assert (model.calls, resumed._source.calls) == (calls, 0)


def test_the_state_survives_a_checkpoint(tmp_path):
    sampler = neighbour_batches(50, 6, drifting(50), threshold=0.8, skip=1)
    for _ in zip(range(3), sampler, strict=False):
        pass
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    other = neighbour_batches(50, 6, threshold=0.8, skip=1)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert list(other) == list(sampler)
    with pytest.raises(InputError, match="the state is of 50 items, expected 40"):
        neighbour_batches(40, 6).load_state_dict(sampler.state_dict())


@pytest.mark.parametrize("kind", ["neighbours", "classes"])
def test_ranks_share_the_global_batch(kind):
    x, labels = torch.randn(48, 4), torch.arange(48) // 4

    def make(**rank):
        if kind == "neighbours":
            return neighbour_batches(48, 12, lambda: x, **rank)
        return hard_class_batches(labels, 6, 2, lambda: class_means(x, labels), **rank)

    for size in (2, 3):
        ranks = [list(make(rank=rank, world=size)) for rank in range(size)]
        for batch, *parts in zip(make(), *ranks, strict=True):
            assert [len(part) for part in parts] == [len(batch) // size] * size
            assert sorted(item for part in parts for item in part) == sorted(batch)
            if kind == "classes":
                for part in parts:
                    assert labels[part].bincount()[labels[part]].tolist() == [2] * len(part)


@pytest.mark.parametrize("kind", ["neighbours", "classes"])
@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_data_loader(kind, workers):
    x, labels = torch.randn(60, 4), torch.arange(60) // 5

    def make():
        if kind == "neighbours":
            return neighbour_batches(60, 7, lambda: x, share=0.5, every=4)
        return hard_class_batches(labels, 4, 2, lambda: class_means(x, labels))

    loader = DataLoader(TensorDataset(torch.arange(60)), batch_sampler=make(), num_workers=workers)
    expected = make()
    for _ in range(2):
        assert [ids.tolist() for (ids,) in loader] == list(expected)


def test_with_workers_a_run_resumes_on_what_was_trained_on():
    data = TensorDataset(torch.arange(60))

    def make():
        return neighbour_batches(60, 4, lambda: torch.ones(60, 1) * torch.arange(60)[:, None], metric="euclidean")

    expected = list(make())
    sampler = make()
    seen = []
    for (ids,) in DataLoader(data, batch_sampler=sampler, num_workers=2, prefetch_factor=2):
        seen.append(ids.tolist())
        if len(seen) == 5:
            break
    assert sampler.given == 9  # the loader is 2 * 2 ahead
    resumed = make()
    resumed.load_state_dict(sampler.state_dict(ahead=4))
    loader = DataLoader(data, batch_sampler=resumed, num_workers=2, prefetch_factor=2)
    assert seen + [ids.tolist() for (ids,) in loader] == expected
    with pytest.raises(InputError, match="ahead is 16"):
        resumed.state_dict(ahead=16)


def test_in_the_background():
    x = torch.arange(40.0)[:, None]
    sampler = neighbour_batches(40, 4, lambda: x, metric="euclidean", background=True)
    batches = iter(sampler)
    next(batches)
    while sampler._pending is not None and not sampler._pending.done():
        time.sleep(0.01)
    rest = list(batches)
    assert sum(max(batch) - min(batch) < 12 for batch in rest) >= 4
    assert sampler.state_dict()["neighbours"] is not None


def test_a_search_under_way_does_not_replace_what_is_loaded():
    x = torch.arange(40.0)[:, None]
    saved = neighbour_batches(40, 4, metric="euclidean")
    saved.refresh(x)
    state = saved.state_dict()
    sampler = neighbour_batches(40, 4, metric="euclidean", background=True)
    sampler.refresh(x.flip(0) ** 2)
    sampler.load_state_dict(state)
    list(sampler)
    assert torch.equal(sampler.state_dict()["neighbours"], state["neighbours"])


def test_what_breaks_in_the_background_is_raised():
    sampler = neighbour_batches(40, 4, lambda: torch.full((40, 2), torch.nan), background=True)
    epochs = (list(sampler) for _ in range(2))  # the search may last longer than the first
    with pytest.raises(InputError, match="NaN or infinity in 40 rows"):
        list(epochs)


def test_embeddings_in_the_background_are_copied():
    x = torch.arange(40.0)[:, None]
    sampler = neighbour_batches(40, 4, metric="euclidean", background=True)
    sampler.refresh(x)
    x.fill_(torch.nan)
    sampler._settle()
    assert sampler.neighbours is not None


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1, 1), {}, "items is 1"),
        ((9, 0), {}, "batch_size is 0"),
        ((9, 10), {}, "batch_size is 10, expected at most 9"),
        ((9, 4), {"every": 0}, "every is 0"),
        ((9, 4), {"warmup": -1}, "warmup is -1"),
        ((9, 4), {"k": 0}, "k is 0"),
        ((9, 4), {"skip": 8}, "skip is 8, expected at most 7"),
        ((9, 4), {"share": 1.5}, "share is 1.5"),
        ((9, 4), {"world": 3}, "batch_size is 4 with 3 ranks"),
        ((9, 4), {"rank": 1}, "rank is 1 and world 1"),
        ((9, 4), {"labels": [1, 2]}, "2 labels for 9 rows"),
        ((9, 4), {"labels": [0] * 6 + [1] * 3}, "batch_size is 4, expected at most 2"),
        ((9, 4), {"metric": "hamming"}, "metric is 'hamming'"),
        ((9, 4), {"threshold": float("nan")}, "threshold is nan"),
    ],
)
def test_options_of_neighbours_that_do_not_fit(arguments, options, message):
    with pytest.raises(InputError, match=message):
        inspect.unwrap(neighbour_batches)(*arguments, **options)


# --- hard_class_batches -----------------------------------------------------------------------------------------------


def slow_classes(means, first, number):
    """The greedy choice, from the paper's text."""
    unit = torch.nn.functional.normalize(means, dim=1)
    chosen = [first]
    while len(chosen) < number:
        rest = [c for c in range(len(means)) if c not in chosen]
        chosen.append(max(rest, key=lambda c: max(float(unit[c] @ unit[s]) for s in chosen)))
    return chosen


def test_classes_are_chosen_greedily():
    labels, means = torch.arange(120) % 30, torch.randn(30, 6)
    for batch in hard_class_batches(labels, 7, 3, lambda: means):
        classes = labels[batch][::3].tolist()
        assert classes == slow_classes(means, classes[0], 7)
        assert labels[batch].tolist() == [c for c in classes for _ in range(3)]
        assert len(set(batch)) == 21


def test_classes_are_chosen_the_same_within_autocast():
    labels, means = torch.arange(40) // 2, torch.randn(20, 16)
    plain = list(hard_class_batches(labels, 5, 2, lambda: means))
    with torch.autocast("cpu", torch.bfloat16):
        assert list(hard_class_batches(labels, 5, 2, lambda: means)) == plain


def test_ties_between_classes_are_drawn():
    labels = torch.arange(40) // 2
    sampler = hard_class_batches(labels, 2, 2, lambda: torch.ones(20, 3))
    assert len({tuple(labels[batch].tolist()) for _ in range(5) for batch in sampler}) > 20


def test_a_share_of_the_classes_is_drawn():
    means = torch.cat([torch.eye(2).repeat_interleave(10, 0)])  # two groups of ten classes
    labels = torch.arange(40) // 2
    group = labels // 10

    def mixed(**options):
        sampler = hard_class_batches(labels, 5, 2, lambda: means, **options)
        return [len(set(group[batch].tolist())) for _ in range(10) for batch in sampler]

    assert set(mixed()) == {1}
    assert {1, 2} == set(mixed(share=0.5)) == set(mixed(share=0.0)) == set(mixed(warmup=10**6))
    half = [group[batch][::2] for batch in hard_class_batches(labels, 5, 2, lambda: means, share=0.5)]
    assert all(len(set(groups[:3].tolist())) == 1 for groups in half)


def test_small_classes_take_no_part():
    labels = ["a"] + ["b"] * 2 + ["c"] * 5 + ["d"] * 3
    sampler = hard_class_batches(labels, 2, 2, lambda: torch.eye(4))
    assert all(labels[item] != "a" for _ in range(10) for batch in sampler for item in batch)
    with pytest.raises(InputError, match="means have shape"):
        sampler.refresh(torch.eye(3))


def test_class_batches_resume_exactly():
    labels = torch.arange(60) // 5

    def make():
        model = drifting(12)
        return model, hard_class_batches(labels, 3, 2, model, every=4, warmup=2, share=0.5)

    _, sampler = make()
    expected = [batch for _ in range(4) for batch in sampler]
    for killed_at in range(0, 30, 3):
        model, sampler = make()
        seen = [batch for _, batch in zip(range(killed_at), (b for _ in range(9) for b in sampler), strict=False)]
        assert seen == expected[:killed_at]
        state, calls = sampler.state_dict(), model.calls
        model, sampler = make()
        model.calls = calls
        sampler.load_state_dict(state)
        rest = (batch for _ in range(9) for batch in sampler)
        assert [next(rest) for _ in range(40 - killed_at)] == expected[killed_at:]


def test_class_means():
    x, labels = torch.randn(30, 4, dtype=torch.float64), torch.randint(0, 5, (30,))
    unit = torch.nn.functional.normalize(x, dim=1)
    expected = torch.stack([unit[labels == c].mean(0) for c in range(5)])
    torch.testing.assert_close(class_means(x, labels), expected)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0, 0, 1], 0), {}, "classes is 0"),
        (([0, 0, 1], 1, 0), {}, "per_class is 0"),
        (([0, 0, 1], 2, 2), {}, "1 classes have 2 items or more, expected at least 2"),
        (([0, 0, 1], 1), {"share": -0.1}, "share is -0.1"),
        (([0, 0, 1], 1), {"world": 2}, "classes is 1 with 2 ranks"),
        ((torch.tensor([0.5, 0.5]), 1), {}, "expected integers or strings"),
        (([0, 0], 1), {"every": 0}, "every is 0"),
    ],
)
def test_options_of_classes_that_do_not_fit(arguments, options, message):
    with pytest.raises(InputError, match=message):
        hard_class_batches(*arguments, **options)
