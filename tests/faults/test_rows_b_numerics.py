"""Numbers: rows 8 to 12 of docs/reliability.md, over every loss and miner of the library."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import IMAGES, RECIPE, fingerprint
from safetensors.torch import load_file
from test_rows_a_inputs import holds
from torch import nn

from contrastive import Bilinear, Cosine, InnerProduct, KPairLoss, evaluate_retrieval, infonce_bound, kpair_loss
from contrastive.checkpoints import load_checkpoint, newest_checkpoint
from contrastive.data import ImageData, ImageSplit
from contrastive.encoders import build
from contrastive.errors import InputError
from contrastive.evaluation import Model, evaluate_model
from contrastive.training import fit, read_history
from miners import hcl, topk

SHAPES = st.tuples(st.integers(2, 12), st.integers(1, 6), st.integers(0, 2**31))


def pair(shape):
    n, dim, seed = shape
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return x.clone(), y.clone()


# --- 8: gradients ---------------------------------------------------------------------------------------------------


def test_row08_gradients_are_those_of_the_value():
    holds("gradients_are_those_of_the_value", "objective", "criterion")
    holds("gradients_are_those_of_the_weights", "miner")


@pytest.mark.parametrize("critic", [Cosine(0.2, learnable=True), InnerProduct(), Bilinear(5)], ids=repr)
@pytest.mark.parametrize("miner", [None, topk(3), hcl(1.0)], ids=repr)
@pytest.mark.parametrize("tiled", [True, False])
def test_row08_gradients_written_by_hand_are_those_of_autograd(critic, miner, tiled):
    found, critic = [], critic.double()
    for loss_of in (KPairLoss(critic, miner=miner, tiled=tiled), partial(by_autograd, critic, miner)):
        x, y = (part.requires_grad_() for part in pair((9, 5, 0)))
        loss = loss_of(x, y)
        found.append([loss.detach(), *torch.autograd.grad(loss, [x, y, *critic.parameters()])])
    for ours, oracle in zip(*found, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-11, atol=1e-12)


def by_autograd(critic, miner, x, y):
    """The mean of both directions, from the matrix and as it is defined."""
    scores, losses = critic(x, y), []
    for rows in (scores, scores.T):
        weights = torch.zeros_like(rows) if miner is None else miner(rows, torch.arange(len(rows)))
        losses.append((torch.logsumexp(rows + weights, 1) - rows.diagonal()).mean())
    return sum(losses) / 2


# --- 9: large numbers, half precision, trainings that diverge -------------------------------------------------------


def test_row09_large_scores_low_temperatures_and_half_precision_are_near_float64():
    holds("large_scores_are_exact", "objective")
    holds("low_temperatures_are_exact", "objective")
    holds("half_precision_is_near", "criterion", "evaluator")
    holds("autocast_changes_nothing", "objective", "miner")
    holds("autocast_keeps_the_digits_of_the_sum", "criterion")


class Sometimes:
    """Views, a criterion or a gradient that are broken at some steps; how, and at which."""

    def __init__(self, what, value, *broken):
        self.what, self.value, self.broken, self.step = what, value, broken, -1

    def view(self, images):
        self.step += 1
        images = images + 0.2 * torch.randn_like(images)
        return images * self.value if self.what == "projections" and self.step in self.broken else images

    def criterion(self, x, y):
        loss = KPairLoss(Cosine())(x, y)
        if self.step in self.broken and self.what == "loss":
            loss = loss * self.value
        if self.step in self.broken and self.what == "gradient":
            loss.register_hook(lambda gradient: gradient * self.value)
        return loss


class Criterion(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.scale = function, nn.Parameter(torch.tensor(1.0))

    def forward(self, x, y):
        return self.scale * self.function(x, y)


def train(out, sometimes, **options):
    """18 steps; the encoder, what `fit` returned, and the criterion."""
    encoder, projector = build(RECIPE, seed=0)
    criterion = Criterion(sometimes.criterion)
    options = {"epochs": 3, "batch_size": 8, "seed": 2} | options
    result = fit(encoder, projector, criterion, IMAGES, view=sometimes.view, out=out, **options)
    return nn.ModuleList([encoder, projector, criterion]), result


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["projections", "loss", "gradient"])
def test_row09_a_step_that_is_not_finite_is_skipped_and_counted_and_its_batch_saved(tmp_path, what, value):
    with pytest.warns(
        UserWarning, match=r"step \d+ is skipped: .* not finite|step \d+ is skipped: the loss is (nan|inf)"
    ) as said:
        model, result = train(tmp_path, Sometimes(what, value, 2, 11))
    assert [str(w.message).split(" is skipped")[0] for w in said] == ["step 2", "step 11"]
    assert (result.skipped, result.steps) == (2, 18)
    assert all(bool(torch.isfinite(part).all()) for part in model.state_dict().values())
    for step in (2, 11):
        assert load_file(tmp_path / f"failed-step-{step}.safetensors")["ids"].shape == (8,)
    written = {int(row["step"]) for row in read_history(tmp_path)}
    assert written == {*range(18)} - ({2, 11} if what != "gradient" else set())


@pytest.mark.parametrize("what", ["projections", "loss", "gradient"])
def test_row09_a_skipped_step_leaves_everything_as_it_was(tmp_path, what):
    """Weights, moments and running statistics are those of a training that saw the steps before alone."""
    with pytest.warns(UserWarning, match="step 5 is skipped"):
        train(tmp_path / "broken", Sometimes(what, math.nan, 5), checkpoint_every=1, epochs=1)
    before, after = (load_checkpoint(tmp_path / "broken" / "checkpoints" / f"step-{n:08d}.ckpt") for n in (5, 6))
    assert after["global_step"] == before["global_step"] + 1
    if what != "projections":  # the batch itself was sound, and its statistics are forgotten all the same
        assert any("running_mean" in key for key in before["state_dict"])
    assert fingerprint(after["state_dict"]) == fingerprint(before["state_dict"])
    assert fingerprint(after["optimizer_states"][0]["state"]) == fingerprint(before["optimizer_states"][0]["state"])


def test_row09_a_training_that_diverges_ends_after_some_skipped_steps_and_saves_its_batch(tmp_path):
    with (
        pytest.warns(UserWarning, match="is skipped"),
        pytest.raises(
            InputError, match=r"stopped at step 9 .*the loss is nan, after 2 skipped.*saved in .*failed-step-9"
        ),
    ):
        train(tmp_path, Sometimes("loss", math.nan, 4, 7, 9), skip_steps=2)
    with pytest.raises(InputError, match=r"stopped at step 4 .*the loss is nan; the batch"):
        train(tmp_path / "none", Sometimes("loss", math.nan, 4), skip_steps=0)


def test_row09_a_resumed_training_counts_on_and_ends_bit_for_bit(tmp_path):
    def stops_at(step):
        def each_step(at):
            if at == step:
                raise KeyError(step)

        return each_step

    with pytest.warns(UserWarning, match="is skipped"):
        whole, result = train(tmp_path / "whole", Sometimes("loss", math.nan, 4, 13))
    with pytest.warns(UserWarning, match="is skipped"), pytest.raises(KeyError):
        train(tmp_path / "broken", Sometimes("loss", math.nan, 4), checkpoint_every=3, each_step=stops_at(10))
    newest = newest_checkpoint(tmp_path / "broken" / "checkpoints")
    with pytest.warns(UserWarning, match="step 13 is skipped"):
        resumed, again = train(tmp_path / "broken", Sometimes("loss", math.nan, 13 - 9), resume_from=newest)
    assert again.skipped == result.skipped == 2
    assert fingerprint(resumed.state_dict()) == fingerprint(whole.state_dict())


# --- 10: collapse ---------------------------------------------------------------------------------------------------


def test_row10_zeros_duplicates_and_collapse_have_finite_gradients():
    for check in ("vectors_of_zero_are_finite", "collapsed_embeddings_are_finite", "duplicates_are_finite"):
        holds(check, "criterion")
    holds("equal_scores_are_finite", "objective")
    holds("collapsed_embeddings_read_chance", "evaluator")


def test_row10_a_collapsed_encoder_is_said_to_be_one():
    class Constant(nn.Module):
        def forward(self, images):
            return torch.ones(len(images), 4) + 0.0 * images.float().mean()

    labels = torch.arange(40) % 4
    images = ImageSplit(torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8), labels)
    data = ImageData("constant", images, images, tuple("abcd"))
    found = evaluate_model(
        data, {"encoder": Model.of(Constant(), nn.Identity())}, Cosine(), view=lambda x: x, batch_size=8
    )
    assert found.figures["encoder"]["recall@1"] == pytest.approx(9 / 39)  # chance
    assert [note.split(":")[0] for note in found.notes if "collapsed" in note] == ["The encoder has collapsed"] * 2


# --- 11: properties -------------------------------------------------------------------------------------------------


def test_row11_order_and_what_miners_return():
    holds("the_order_of_anchors_does_not_matter", "objective")
    holds("the_order_of_pairs_does_not_matter", "criterion")
    for check in ("the_order_of_candidates_does_not_matter", "the_target_is_unweighted", "rows_do_not_see_each_other",
                  "the_mass_it_promises_is_there", "monotone_is_monotone"):  # fmt: skip
        holds(check, "miner")


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_row11_a_rotation_changes_nothing(shape):
    x, y = pair(shape)
    rotation = torch.linalg.qr(torch.randn(shape[1], shape[1], dtype=torch.float64))[0]
    for critic in (Cosine(), InnerProduct()):
        found = KPairLoss(critic)(x @ rotation, y @ rotation)
        torch.testing.assert_close(found, KPairLoss(critic)(x, y), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_row11_one_negative_is_the_logistic_triplet_and_the_bound_is_below_log_n(shape):
    x, y = pair(shape)
    scores = InnerProduct()(x, y)
    triplet = nn.functional.softplus(scores[:2, :2].fliplr().diagonal() - scores[:2, :2].diagonal())
    torch.testing.assert_close(kpair_loss(scores[:2, :2]), triplet, rtol=1e-7, atol=1e-8)
    assert float(infonce_bound(scores).value) <= math.log(len(x)) + 1e-12


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.sampled_from([None, topk(2), hcl(0.5)]))
def test_row11_streamed_is_stored(shape, miner):
    x, y = pair(shape)
    streamed, stored = (KPairLoss(Cosine(0.2), miner=miner, tiled=tiled)(x, y) for tiled in (True, False))
    torch.testing.assert_close(streamed, stored, rtol=1e-10, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(st.integers(4, 20), st.integers(1, 5), st.integers(0, 2**31))
def test_row11_figures_of_both_back_ends_agree(n, dim, seed):
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(n) % 2
    means = [evaluate_retrieval(x, labels, ks=(1,), backend=backend).mean["recall@1"] for backend in ("torch", "faiss")]
    assert means[0] == pytest.approx(means[1], abs=1e-6)


# --- 12: rows without candidates ------------------------------------------------------------------------------------


def test_row12_a_row_without_candidates_is_zero_never_nan():
    for check in (
        "an_absent_row_is_defined",
        "absent_candidates_change_nothing",
        "a_dropped_negative_is_an_absent_one",
    ):
        holds(check, "objective")
    holds("losses_stay_finite_in_every_corner", "miner")
    holds("weights_are_neither_nan_nor_infinite", "miner")
