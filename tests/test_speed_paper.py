"""benchmarks/speed/paper.py: what is held against what, and that a probe which is worse is no comparison."""

import time

import pytest
import torch

from benchmarks.speed import paper
from benchmarks.speed.measure import Goal
from benchmarks.tschannen2020 import probe
from benchmarks.tschannen2020.data import MADE_UP, load


def waiting(milliseconds):
    def step():
        end = time.process_time() + milliseconds / 1e3
        while time.process_time() < end:
            pass

    return step


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # then steps are timed by the process's own clock
    yield
    torch.set_num_threads(before)


def test_the_goal_is_for_the_first_step_against_the_second(one_thread):
    steps = {
        "ours": waiting(2),
        "peer": waiting(8),
        f"peer, {paper.ROUNDED}": waiting(4),
        "another": waiting(16),
        paper.ALONE: waiting(1),
    }
    rows = list(paper.compare("work", steps, Goal(3), 0.0))
    assert [(row.ours, row.peer) for row in rows] == [
        ("ours", "peer"),
        ("ours", f"peer, {paper.ROUNDED}"),  # at equal precision
        ("another", "peer"),
        ("ours", paper.ALONE),  # the limit
    ]
    assert [row.ratio for row in rows] == pytest.approx([4, 2, 0.5, 0.5], rel=0.2)
    assert [row.goal for row in rows] == [">= 3 x", None, None, None]
    assert [row.met for row in rows] == [True, None, None, None]
    (missed,) = paper.compare("work", {"ours": waiting(2), "peer": waiting(4)}, Goal(3), 0.0)
    assert missed.met is False


def test_a_step_of_each_one_after_another():
    taken = []
    paper.one_after_another(lambda i=i: taken.append(i) for i in range(3))()
    assert taken == [0, 1, 2]


def test_a_worse_probe_is_not_compared(monkeypatch):
    halves = load(MADE_UP, None)
    steps = paper.probes(halves)
    assert list(steps) == ["kpair", "scikit-learn SAGA"]
    monkeypatch.setattr(probe, "fit", lambda x, labels: torch.zeros(x.shape[1] + 1, 10))
    with pytest.raises(AssertionError):
        paper.probes(halves)


def test_every_peer_takes_a_step():
    """Of the sizes that are timed, once: the whole table takes minutes and is made by hand."""
    for step in (paper.plain_step(paper.plain_mlp, 100), paper.stacked_step(), *paper.concatenated().values()):
        step()


def test_both_concatenated_critics_score_all_pairs(monkeypatch):
    """A score for every pair of the batch, either way."""
    seen = {}

    def keep(scores):
        seen.setdefault("scores", []).append(scores.detach())
        return scores.mean()

    monkeypatch.setattr(paper, "infonce", keep)
    steps = paper.concatenated()
    for step in steps.values():
        step()
    assert [scores.shape for scores in seen["scores"]] == [(paper.BATCH, paper.BATCH)] * 2
