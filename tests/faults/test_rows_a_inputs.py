"""The contract of inputs: rows 1 to 7 of docs/reliability.md, over every loss, miner and evaluator of the library."""

import inspect
import math

import pytest
import subjects
import torch
from references import refused
from subjects import as_users_call_it, reports

import contrastive.testing as batteries
from contrastive import Cosine, KPairLoss, evaluate_retrieval, kpair_loss, objectives, relatives, supcon_loss
from contrastive.cli import main

KINDS = ("objective", "criterion", "miner", "evaluator")


def holds(check, *kinds):
    """Every subject whose battery has the check passes it, but for those that are exempt with a reason."""
    found = {name: report for kind in kinds for name, report in reports(kind).items()}
    failed = {name: report.failures[check] for name, report in found.items() if check in report.failures}
    assert not failed
    assert sum(check in report.passed for report in found.values()) >= len(found) - 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_battery_is_passed_whole(kind):
    for name, report in reports(kind).items():
        assert report.holds, f"{name}: {report}"


def test_every_public_objective_is_a_subject():
    named = {getattr(objective, "func", objective).__name__ for objective in subjects.OBJECTIVES}
    of_a_mask = {"each_positive_loss"}  # one value a positive: tests/test_objectives.py
    assert {word for module in (objectives, relatives) for word in module.__all__} - of_a_mask <= named


@pytest.mark.parametrize("miner", subjects.WITH_FACTS, ids=repr)
def test_miners_that_carry_facts_about_rows_pass_their_battery_with_them(miner):
    # Their facts are by row and column: neither can be moved or left out.
    places = ["absent_candidates_change_nothing", "the_order_of_candidates_does_not_matter"]
    with as_users_call_it():
        report = batteries.check_miner(miner, exempt=[*places, "empty_and_lonely_rows_are_defined"])
    assert report.holds, str(report)


# --- 1: NaN and infinity --------------------------------------------------------------------------------------------


def test_row01_nan_and_infinity_are_refused_with_their_row():
    holds("nan_and_infinity_are_refused", "objective", "criterion", "evaluator")
    holds("a_broken_score_is_not_hidden", "miner")


# --- 2: shapes, dtypes, devices -------------------------------------------------------------------------------------


def test_row02_other_shapes_and_dtypes_are_refused():
    holds("other_shapes_are_refused", *KINDS)
    holds("other_dtypes_are_refused", "objective", "criterion")
    with refused("kpair_loss", "(2, 3, 4)", "[anchors, candidates]"):
        kpair_loss(torch.zeros(2, 3, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: nothing to mix with the CPU")
def test_row02_mixed_devices_are_refused():
    with refused("cuda", "cpu"):
        evaluate_retrieval(torch.randn(4, 2), [0, 0, 1, 1], gallery=torch.randn(4, 2).cuda(), gallery_labels=[0] * 4)


# --- 3: labels ------------------------------------------------------------------------------------------------------


def test_row03_targets_and_labels_that_cannot_be_are_refused():
    holds("other_targets_are_refused", "objective")
    for labels, words in (([0.5, 1, 1, 0], "labels"), ([0, 1, 1], "3"), ([[0], [1], [1], [0]], "labels")):
        with refused(words):
            evaluate_retrieval(torch.randn(4, 2), torch.tensor(labels), ks=(1,))


def test_row03_anchors_without_a_positive_cost_nothing_and_keep_the_graph():
    scores = torch.randn(4, 4, requires_grad=True)
    positive = torch.zeros(4, 4, dtype=torch.bool)
    positive[0, 1] = True
    loss = supcon_loss(scores, positive)
    assert loss[0] > 0
    assert loss[1:].tolist() == [0.0] * 3
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert gradient[1:].tolist() == torch.zeros(3, 4).tolist()


def test_row03_a_batch_of_them_teaches_nothing_and_is_refused():
    with refused("supcon_loss: no row has a positive"):
        supcon_loss(torch.randn(4, 4), torch.zeros(4, 4, dtype=torch.bool))


# --- 4: small batches -----------------------------------------------------------------------------------------------


def test_row04_small_batches_are_zero_with_gradients_never_nan():
    holds("small_batches_are_defined_or_refused", "objective")
    holds("small_batches_are_zero", "criterion")
    holds("empty_and_lonely_rows_are_defined", "miner")
    for batch in (0, 1):
        x = torch.randn(batch, 3, requires_grad=True)
        loss = KPairLoss(Cosine())(x, x)
        loss.backward()
        assert float(loss) == 0.0
        assert not x.grad.any()


# --- 5: temperatures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", subjects.with_parameter("temperature"), ids=lambda thing: thing.__name__)
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, 1e-30, math.inf])
def test_row05_a_temperature_that_is_none_is_refused_at_construction(thing, temperature):
    from pytorch_metric_learning.miners import BatchHardMiner

    others = {
        "distance_weighted": {"dim": 8},
        "PoolProposal": {"pool": torch.randn(9, 4), "top": 2},
        "from_pml_miner": {"miner": BatchHardMiner()},
    }
    needed = {name for name, p in inspect.signature(thing).parameters.items() if p.default is p.empty}
    given = others.get(thing.__name__, {})
    assert needed - {"temperature"} <= given.keys()
    with refused("temperature", str(temperature)):
        thing(**given, temperature=temperature)


# --- 6: inputs are the caller's -------------------------------------------------------------------------------------


def test_row06_inputs_are_left_alone_views_are_read_and_all_can_be_pickled():
    holds("inputs_are_left_alone", *KINDS)
    holds("views_are_read_as_they_are", *KINDS)
    holds("survives_pickle_and_deepcopy", "objective", "criterion", "miner")


# --- 7: configurations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lerning_rate: 1", "lerning_rate"),
        ("lr: fast", "lr"),
        ("lr: null", "--lr: got null"),
        ("batch_size: null", "--batch-size: got null"),
        ("miner:\n  name: hcl\n  beta: null", "beta"),
        ("epochs: 1.5", "epochs"),
        ("encoder:\n  name: convnet\n  widths: none", "widths"),
        ("miner: hclx", "hclx"),
        ("miner:\n  name: hcl\n  beta: [1]", "beta"),
        ("batch_size: .nan", "batch"),
        ("- 1\n- 2", "config"),
        ("lr: [", "config"),
        ("\x00", "config"),
    ],
)
def test_row07_an_unknown_key_or_a_wrong_type_is_named_with_status_2(tmp_path, monkeypatch, capsys, text, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    assert main(["train", "--config", "config.yaml"]) == 2
    shown = capsys.readouterr().err
    assert named in shown
    assert "Traceback" not in shown
    assert shown.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--lerning-rate", "1"],
        ["evaluate", "x.npy", "--kk", "1"],
        ["mine", "--x"],
        ["doctor", "--x"],
        ["trian"],
    ],
)
def test_row07_an_unknown_option_of_any_command(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert words[-1].lstrip("-") in shown or words[-2].lstrip("-") in shown
    assert "Traceback" not in shown
