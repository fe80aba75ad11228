"""The streamed loss against critic, miner and `kpair_loss` on the whole matrix: value, every gradient, every edge.

Tiles and strips are made so small that a dozen of rows fills several of them, with ragged edges.
"""

import math
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import INF, close, gradient, refused
from torch import nn

from contrastive import (
    Bilinear,
    Concat,
    Cosine,
    InnerProduct,
    NegativeSquaredDistance,
    Separable,
    _strips,
    _tiles,
    factors,
    kpair_loss,
)
from contrastive.scores import partners
from contrastive.tiled import tiled_kpair_loss, tiled_ntxent_loss, tiled_symmetric_loss
from miners import debiased, detached, hardest, hcl, semihard, topk

ROOT = Path(__file__).resolve().parents[1]
F64 = torch.float64


@contextmanager
def small(tile=5, strip=40, fewest=3, most=4, mined=48, scored=60, columns=6, rows=3):
    """Tiles of `tile` x `tile`, strips of `fewest` to `most` rows, and less of everything else at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tiles, "_TILE", tile)
        for name, value in {
            "_STRIP": strip,
            "_FEWEST_ROWS": fewest,
            "_MOST_ROWS": most,
            "_MINED": mined,
            "_SCORED": scored,
            "_COLUMNS": columns,
        }.items():
            patch.setattr(_strips, name, value)
        patch.setattr(factors, "_ROWS", rows)
        yield


@pytest.fixture(autouse=True)
def _small_tiles():
    with small():
        yield


class LearntScale(nn.Module):
    """A critic of somebody else, whose factors and scale are learnt; the scale is no plain number."""

    def __init__(self, dim, *, unit=True, scale=3.0):
        super().__init__()
        self.map = nn.Linear(dim, 3)
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.unit = unit

    def factors(self, x, y):
        return factors.Factors(self.map(x), self.map(y), self.scale, self.unit)

    def forward(self, x, y):
        return self.factors(x, y).scores()


class Pairs(nn.Module):
    """A critic that neither factorises nor splits."""

    def __init__(self, dim):
        super().__init__()
        self.map = nn.Linear(dim, dim)

    def forward(self, x, y):
        return (self.map(x) @ y.T).tanh() * 3


class LearntTilt(nn.Module):
    """A miner with parameters, of weights that depend on the scores, on the anchor and on its target."""

    def __init__(self, anchors=64):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.7))
        self.of_anchor = nn.Parameter(torch.linspace(-1.0, 1.0, anchors))

    def forward(self, scores, targets, *, anchors=None):
        finite = scores.masked_fill(scores == -INF, 0.0)
        tilted = self.beta * finite + self.of_anchor[anchors][:, None]
        return tilted.scatter(1, targets[:, None], 0.0)


CRITICS = {
    "InnerProduct": lambda d: InnerProduct(0.7),
    "Cosine": lambda d: Cosine(0.3),
    "Cosine(learnable)": lambda d: Cosine(0.3, learnable=True),
    "NegativeSquaredDistance": lambda d: NegativeSquaredDistance(2.0),
    "Bilinear": Bilinear,
    "Separable": lambda d: Separable(d, hidden=5, out=3),
    "LearntScale(unit)": LearntScale,
    "LearntScale": partial(LearntScale, unit=False, scale=-0.8),
    "Concat": lambda d: Concat(d, hidden=5, layers=2),
    "Pairs": Pairs,
}
FACTORISED = [name for name in CRITICS if name not in {"Concat", "Pairs"}]
MINERS = {
    "None": lambda: None,
    "topk": lambda: topk(2),
    "hardest": hardest,
    "semihard": lambda: semihard(0.7),
    "semihard, fallback": lambda: semihard(0.7, fallback=hardest()),
    "hcl": lambda: hcl(1.0),
    "hcl, tau_plus": lambda: hcl(1.0, 0.1),
    "debiased": lambda: debiased(0.2, min_score=-4.0),
    "detached": lambda: detached(hcl(1.0, 0.1)),
    "LearntTilt": lambda: LearntTilt().double(),
}
FUNCTIONS = {"one": tiled_kpair_loss, "symmetric": tiled_symmetric_loss, "ntxent": tiled_ntxent_loss}
FORMS = list(FUNCTIONS)
NAMES = {form: function.__name__ for form, function in FUNCTIONS.items()}
MASKS = ["none", "gaps", "padding"]


def batch(form, n=13, queue=0, d=4, dtype=F64):
    """Anchors, positives or candidates, further negatives, and the targets of one direction, which may repeat."""
    x, y, q = (torch.randn(k, d, dtype=F64).to(dtype).requires_grad_() for k in (n, n, queue))
    targets = torch.randint(max(n, 1), (n,)) if form == "one" else None
    return x, y, q, targets


def mask_of(kind, form, n, queue, targets):
    """Which pairs are absent, as a matrix: some, sparing the positives, and all of some rows."""
    if kind == "none":
        return None
    rows = 2 * n if form == "ntxent" else n
    mask = torch.rand(rows, rows + queue) < 0.3
    if form == "ntxent":
        mask[torch.arange(rows), partners(rows)] = False
    else:
        mask[torch.arange(rows), torch.arange(rows) if targets is None else targets] = False
    if kind == "padding":
        # In both directions: a column whose positive is absent must be padding as well.
        for k in (2, 5, n - 1) if form != "ntxent" else (2, n + 2, 5, n + 5):
            mask[k] = True
            if form == "symmetric":
                mask[:, k] = True
    return mask


def reader(mask):
    return None if mask is None else lambda rows, columns: mask[rows][:, columns]


def weighed(scores, targets, miner):
    anchors = torch.arange(len(scores))
    targets = anchors if targets is None else targets
    log_weights = None if miner is None else miner(scores, targets, anchors=anchors)
    return kpair_loss(scores, targets, log_weights=log_weights).mean()


def plain(form, critic, x, y, q, targets=None, *, mask=None, miner=None):
    """The loss by way of the matrix."""
    z = torch.cat([x, y]) if form == "ntxent" else x
    scores = critic(z, torch.cat([z if form == "ntxent" else y, q]))
    if mask is not None:
        scores = scores.masked_fill(mask, -INF)
    if form == "ntxent":
        scores = scores.masked_fill(torch.eye(*scores.shape, dtype=torch.bool), -INF)
        return weighed(scores, partners(len(z)), miner)
    there = weighed(scores, targets, miner)
    return there if form == "one" else (there + weighed(scores[:, : len(y)].T, None, miner)) / 2


def tiled(form, critic, x, y, q, targets=None, *, mask=None, miner=None, stored=False):
    """The streamed loss."""
    options = {"absent": reader(mask), "miner": miner, "stored": stored}
    if form == "one":
        return tiled_kpair_loss(critic, x, torch.cat([y, q]), targets, **options)
    return FUNCTIONS[form](critic, x, y, negatives=q if len(q) else None, **options)


def parameters(*modules):
    return [p for module in modules if isinstance(module, nn.Module) for p in module.parameters()]


def equal(found, expected, inputs, tolerance=1e-12):
    """Value and gradients equal, relative to the largest of each.

    Some gradients are zeros, and of a loss far below 1 the stored one, a difference, has fewer digits: hence the least.
    """
    pairs = [(found.detach(), expected.detach(), 0.1)]
    pairs += [
        (*g, 1e-3 if g[0].ndim else 0.1)
        for g in zip(gradient(found, *inputs), gradient(expected, *inputs), strict=True)
    ]
    for a, b, least in pairs:
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        size = max(float(b.abs().max()), least) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance * size)


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("critic", CRITICS)
def test_equals_the_stored_loss_in_value_and_every_gradient(critic, form, miner):
    critic, miner = CRITICS[critic](4).double(), MINERS[miner]()
    for queue in (0, 6):
        for kind in MASKS:
            for stored in (False, True) if miner is None else (False,):
                x, y, q, targets = batch(form, n=9, queue=queue)
                mask = mask_of(kind, form, len(x), queue, targets)
                arguments = form, critic, x, y, q, targets
                found = tiled(*arguments, mask=mask, miner=miner, stored=stored)
                expected = plain(*arguments, mask=mask, miner=miner)
                assert found.shape == ()
                equal(found, expected, [x, y, q, *parameters(critic, miner)])


class TestShapes:
    @given(
        form=st.sampled_from(FORMS),
        n=st.integers(1, 17),
        queue=st.integers(0, 9),
        tile=st.integers(1, 9),
        rows=st.integers(1, 9),
        few=st.integers(1, 60),
        stored=st.booleans(),
        critic=st.sampled_from([InnerProduct(2.0), Cosine(0.4), NegativeSquaredDistance(3.0)]),
        miner=st.sampled_from([None, None, topk(2), hcl(1.0)]),
        kind=st.sampled_from(MASKS[:2]),
        seed=st.integers(0, 2**16),
    )
    @settings(max_examples=150, deadline=None)
    def test_any_batch_and_any_tile(self, form, n, queue, tile, rows, few, stored, critic, miner, kind, seed):
        torch.manual_seed(seed)
        x, y, q, targets = batch(form, n=n, queue=queue, d=3)
        mask = mask_of(kind, form, n, queue, targets)
        with small(tile=tile, fewest=rows, most=rows + 2, mined=few, columns=tile, rows=rows):
            found = tiled(form, critic, x, y, q, targets, mask=mask, miner=miner, stored=stored)
        equal(found, plain(form, critic, x, y, q, targets, mask=mask, miner=miner), [x, y, q])

    def test_more_candidates_than_fill_a_strip(self):
        x, y, q, targets = batch("one", n=3, queue=50)
        equal(tiled("one", Cosine(), x, y, q, targets), plain("one", Cosine(), x, y, q, targets), [x, y, q])

    @pytest.mark.parametrize("form", FORMS)
    def test_widths_of_zero(self, form):
        x, y, q, targets = batch(form, n=6, d=0)
        for critic in (InnerProduct(), Cosine()):
            close(tiled(form, critic, x, y, q, targets).detach(), math.log(11 if form == "ntxent" else 6), 1e-15)

    @pytest.mark.parametrize("form", FORMS)
    def test_rows_need_not_be_contiguous(self, form):
        x, y, q, targets = batch(form)
        x, y = (z.detach().T.contiguous().T.requires_grad_() for z in (x, y))
        for critic in (InnerProduct(), Cosine(), Pairs(4).double()):
            equal(tiled(form, critic, x, y, q, targets), plain(form, critic, x, y, q, targets), [x, y])
        one = torch.randn(1, 4, dtype=F64).requires_grad_()
        equal(tiled(form, Cosine(), one.expand(13, 4), y, q), plain(form, Cosine(), one.expand(13, 4), y, q), [one, y])

    def test_widths_may_differ(self):
        x, y = torch.randn(13, 4, dtype=F64, requires_grad=True), torch.randn(13, 3, dtype=F64, requires_grad=True)
        for critic in (Bilinear(4, 3), Separable(4, 3, hidden=5, out=2), Concat(4, 3, hidden=5)):
            critic.double()
            for form in ("one", "symmetric"):
                arguments = form, critic, x, y, y[:0]
                for miner in (None, hcl(1.0)):
                    found, expected = tiled(*arguments, miner=miner), plain(*arguments, miner=miner)
                    equal(found, expected, [x, y, *critic.parameters()])

    @pytest.mark.parametrize("stored", [False, True])
    def test_one_tensor_may_be_both_sides(self, stored):
        x = torch.randn(13, 4, dtype=F64, requires_grad=True)
        targets = torch.arange(13).roll(1)
        for critic in (InnerProduct(), Cosine()):
            equal(tiled_kpair_loss(critic, x, x, targets, stored=stored), weighed(critic(x, x), targets, None), [x])
            equal(tiled_symmetric_loss(critic, x, x, stored=stored), plain("symmetric", critic, x, x, x[:0]), [x])


@pytest.fixture
def sums(monkeypatch):
    """The kinds of sums that are made, in order: "0", "shift" or "maxima"; and what strips are told: their bounds."""
    made = []

    class Fixed(_tiles._FixedShift):
        def __init__(self, *layout, shift):
            made.append("shift" if shift else "0")
            super().__init__(*layout, shift=shift)

    class Running(_tiles._RunningMaxima):
        def __init__(self, *layout):
            made.append("maxima")
            super().__init__(*layout)

    uniform = _strips._uniform_

    def spied(*args, bounded, **options):
        made.append("bounded" if bounded else "unbounded")
        return uniform(*args, bounded=bounded, **options)

    monkeypatch.setattr(_tiles, "_FixedShift", Fixed)
    monkeypatch.setattr(_tiles, "_RunningMaxima", Running)
    monkeypatch.setattr(_strips, "_uniform_", spied)
    return made


class TestAnyRangeOfLogits:
    # (kind of sums, critic, how far a positive is from its anchor); exponents of float64 reach 1024 = 710 nats.
    CASES = (
        ("0", Cosine(0.1), 3.0),
        ("0", Cosine(1 / 600), 3.0),
        ("shift", Cosine(1 / 800), 0.3),
        ("shift", Cosine(1 / 1200, learnable=True).double(), 0.1),
        ("maxima", Cosine(1 / 3000), 3.0),
        ("maxima", InnerProduct(1e-3), 3.0),
        ("maxima", InnerProduct(1e-6), 0.1),
        ("0", NegativeSquaredDistance(50.0), 3.0),
        ("maxima", NegativeSquaredDistance(1e-3), 3.0),
    )

    @pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}, {case[1]}")
    @pytest.mark.parametrize("form", ["symmetric", "ntxent"])
    def test_either_way_of_summing_is_taken_where_it_must_be_and_exact(self, sums, case, form):
        kind, critic, far = case
        for stored in (False, True):
            for queue, masks in ((0, MASKS), (6, MASKS)) if form == "symmetric" else ((0, ["none"]),):
                for masked in masks:
                    x, y, q, _ = batch(form, queue=queue)
                    y = (x.detach() + far * torch.randn_like(x)).requires_grad_()
                    mask = mask_of(masked, form, 13, queue, None)
                    sums.clear()
                    found = tiled(form, critic, x, y, q, mask=mask, stored=stored)
                    if form == "symmetric" or not isinstance(critic, NegativeSquaredDistance):
                        assert sums == [kind]
                    # A score of 1e6 has 1e-10 of its own, which the exponential passes on.
                    expected = plain(form, critic, x, y, q, mask=mask)
                    largest = float(critic(torch.cat([x, y]), torch.cat([x, y, q])).detach().abs().max())
                    equal(found, expected, [x, y, q, *critic.parameters()], max(1e-12, 32 * 2.0**-52 * largest))

    @pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}, {case[1]}")
    @pytest.mark.parametrize("kind", MASKS)
    def test_strips_are_bounded_or_have_maxima(self, sums, case, kind):
        _, critic, far = case
        x, y, q, targets = batch("one", queue=6)
        y = (x.detach() + far * torch.randn_like(x)).requires_grad_()
        mask = mask_of(kind, "one", 13, 6, targets)
        found = tiled("one", critic, x, y, q, targets, mask=mask)
        assert set(sums) == {"bounded" if case[0] == "0" else "unbounded"}
        largest = float(critic(x, torch.cat([y, q])).detach().abs().max())
        expected = plain("one", critic, x, y, q, targets, mask=mask)
        equal(found, expected, [x, y, q, *critic.parameters()], max(1e-12, 32 * 2.0**-52 * largest))

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("far", [0.1, 3.0])
    @pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02, 0.01, 3e-3, 1e-3])
    def test_float32_at_any_temperature(self, sums, form, far, temperature):
        x, y, q, targets = batch(form, queue=6 if form != "ntxent" else 0, d=16, dtype=torch.float32)
        y = (x.detach() + far * torch.randn_like(x)).requires_grad_()
        for miner in (None, topk(3), hcl(0.5)):
            single, double = self.both(form, Cosine(temperature), x, y, q, targets, miner)
            # A float32 cosine of 16 terms, its normalisation and its temperature err by a few eps of the bound 1/t;
            # the loss is a difference of two scores and passes on twice that (hcl's weights 0.5 of it once more).
            tolerance = 8 * 2.0**-23 / temperature
            torch.testing.assert_close(single[0].double(), double[0], rtol=2e-6, atol=tolerance)
            for a, b, z in zip(single[1:], double[1:], (x, y, q), strict=True):
                # The gradient of a score is at most 1/t a row length; its weight errs as the exponent does.
                size = 2 / temperature / len(x) / float(z.detach().norm(dim=1).min()) if len(z) else 1.0
                torch.testing.assert_close(a.double(), b, rtol=0.0, atol=(tolerance + 2e-6) * size)
        assert form == "one" or temperature != 3e-3 or sums[0] == ("shift" if far < 1 else "maxima")

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("miner", [None, topk(3), hcl(0.5)], ids=repr)
    @pytest.mark.parametrize("critic", [InnerProduct(), NegativeSquaredDistance()], ids=repr)
    def test_float32_logits_of_ten_thousand(self, form, miner, critic):
        x, y, q, targets = batch(form, queue=6 if form != "ntxent" else 0, d=16, dtype=torch.float32)
        with torch.no_grad():
            for z in (x, y, q):
                z.mul_(50.0)
            largest = float(critic.double()(torch.cat([x, y]).double(), torch.cat([x, y, q]).double()).abs().max())
        assert largest > 1e4
        single, double = self.both(form, critic, x, y, q, targets, miner)
        # The product of 16 terms errs by a few eps of the largest score; what follows adds no more than that again.
        tolerance = 8 * 2.0**-23 * largest
        torch.testing.assert_close(single[0].double(), double[0], rtol=0.0, atol=tolerance)
        for a, b in zip(single[1:], double[1:], strict=True):
            if len(a):
                torch.testing.assert_close(a.double(), b, rtol=0.0, atol=tolerance * float(b.abs().max()))

    @staticmethod
    def both(form, critic, *inputs_and_rest):
        *inputs, targets, miner = inputs_and_rest
        results = []
        for dtype in (torch.float32, F64):
            leaves = [z.detach().to(dtype).requires_grad_() for z in inputs]
            loss = (tiled if dtype == torch.float32 else plain)(form, critic, *leaves, targets, miner=miner)
            results.append([loss.detach(), *gradient(loss, *leaves)])
        assert results[0][0].dtype == torch.float32
        return results

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 3e-5)])
    def test_small_losses_keep_their_digits(self, form, dtype, tolerance):
        # Positives score 1/t, all others 0: a loss of 12 e^-60 is no rounding error.
        x = torch.eye(13, dtype=dtype)
        for t in (1 / 60, 1 / 75) if dtype == torch.float32 else (1 / 60, 1 / 650, 1 / 700):
            expected = (24 if form == "ntxent" else 12) * math.exp(-1 / t)
            for critic in (Cosine(t), InnerProduct(t)):
                for miner in (None, hcl(0.0)):
                    found = float(tiled(form, critic, x, x.clone(), x[:0], miner=miner))
                    assert found == pytest.approx(expected, rel=tolerance, abs=0.0)

    @pytest.mark.parametrize("form", ["one", "symmetric"])
    @pytest.mark.parametrize("score", [-58.0, 58.0])
    @pytest.mark.parametrize("size", [1e-18, 1e-10, 1.0, 1e10, 1e18])
    def test_rows_of_one_side_may_be_huge_and_those_of_the_other_tiny(self, form, score, size):
        # All sums are near e^-58 or e^58: beside rows of 1e18 neither they nor their inverses may meet the gradient.
        first = torch.eye(4)[:1]
        x = (first + 0.01 * torch.randn(13, 4)) * size
        y = (first + 0.01 * torch.randn(13, 4)) * (score / size)
        single, double = self.both(form, InnerProduct(), x, y, y[:0], None, None)
        tolerance = 8 * 2.0**-23 * abs(score)
        for a, b in zip(single[:3], double[:3], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=0.0, atol=tolerance * float(b.abs().max()))


class TestPrecisions:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("miner", ["None", "topk", "hcl, tau_plus"])
    def test_half_precision_is_computed_in_single(self, dtype, form, miner):
        for critic in (Cosine(0.05), InnerProduct(0.5), NegativeSquaredDistance(0.5)):
            for stored in (False, True):
                x, y, q, targets = batch(form, queue=5, dtype=dtype)
                exact = [z.detach().double().requires_grad_() for z in (x, y, q)]
                loss = tiled(form, critic, x, y, q, targets, miner=MINERS[miner](), stored=stored)
                expected = plain(form, critic, *exact, targets, miner=MINERS[miner]())
                assert loss.dtype == torch.float32
                assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
                found = gradient(loss, x, y, q)
                for a, b in zip(found, gradient(expected, *exact), strict=True):
                    assert a.dtype == dtype
                    assert torch.isfinite(a).all()
                    # Rounded once, at the end.
                    close(a, b, torch.finfo(dtype).eps)

    def test_half_precision_parameters(self):
        for make in (Bilinear, partial(Separable, hidden=5, out=3), partial(Concat, hidden=5), Pairs):
            critic = make(4).bfloat16()
            x, y, q, _ = batch("symmetric", dtype=torch.bfloat16)
            loss = tiled("symmetric", critic, x, y, q)
            assert loss.dtype == torch.float32
            for z, g in zip([x, *critic.parameters()], gradient(loss, x, *critic.parameters()), strict=True):
                assert g.dtype == z.dtype
                assert torch.isfinite(g).all()

    @pytest.mark.parametrize("form", FORMS)
    def test_autocast_changes_nothing_without_layers(self, form):
        for critic in (Cosine(0.05), InnerProduct(), NegativeSquaredDistance(), Cosine(0.05, learnable=True)):
            for miner in (None, hcl(1.0), topk(2)):
                x, y, q, targets = batch(form, queue=5, dtype=torch.float32)
                inputs = [x, y, q, *critic.parameters()]
                outside = tiled(form, critic, x, y, q, targets, miner=miner)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    inside = tiled(form, critic, x, y, q, targets, miner=miner)
                assert inside.dtype == torch.float32
                assert torch.equal(inside, outside)
                for a, b in zip(gradient(inside, *inputs), gradient(outside, *inputs), strict=True):
                    assert torch.equal(a, b)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("critic", ["Bilinear", "Separable", "LearntScale(unit)", "Concat", "Pairs"])
    @pytest.mark.parametrize("miner", ["None", "hcl"])
    def test_autocast_runs_the_layers_of_a_critic_as_it_would_outside(self, form, critic, miner):
        critic, miner = CRITICS[critic](4), MINERS[miner]()
        x, y, q, targets = batch(form, queue=5, dtype=torch.float32)
        inputs = [x, y, q, *critic.parameters()]
        results = []
        for function in (tiled, plain):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                # As from an encoder under autocast.
                halved = [z.bfloat16() for z in (x, y, q)]
                loss = function(form, critic, *halved, targets, miner=miner)
            assert loss.dtype == torch.float32
            results.append([loss.detach(), *gradient(loss, *inputs)])
        for a, b in zip(*results, strict=True):
            assert a.dtype == torch.float32
            close(a, b, 2.0**-6)


class TestEdges:
    CRITICS = (InnerProduct(0.5), Cosine(0.1), Cosine(1e-3), NegativeSquaredDistance(), Pairs(4).double())
    MINERS = (None, topk(2), hcl(1.0), semihard(0.1), hcl(1.0, 0.1))

    @pytest.mark.parametrize("form", FORMS)
    def test_identical_embeddings(self, form):
        for critic in self.CRITICS:
            row = torch.randn(1, 4, dtype=F64)
            x, y = (row.repeat(13, 1).requires_grad_() for _ in range(2))
            loss = tiled(form, critic, x, y, x[:0])
            close(loss.detach(), math.log(25 if form == "ntxent" else 13), 1e-12)
            for found in gradient(loss, x, y):
                close(found, torch.zeros(13, 4), 1e-12)

    @pytest.mark.parametrize("form", FORMS)
    def test_zero_vectors(self, form):
        for critic in self.CRITICS:
            for miner in self.MINERS:
                x, y, q, targets = batch(form)
                with torch.no_grad():
                    x[3] = y[7] = 0.0
                equal(
                    tiled(form, critic, x, y, q, targets, miner=miner),
                    plain(form, critic, x, y, q, targets, miner=miner),
                    [x, y],
                )
                x, y = torch.zeros_like(x).requires_grad_(), torch.zeros_like(y).requires_grad_()
                found = gradient(tiled(form, critic, x, y, q, targets, miner=miner), x, y)
                assert all(torch.isfinite(g).all() for g in found)
                if isinstance(critic, Cosine):
                    assert not any(g.any() for g in found)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("stored", [False, True])
    def test_a_batch_of_one_and_of_none(self, form, stored):
        for critic in self.CRITICS:
            for miner in self.MINERS:
                for n in (0, 1):
                    x, y, q, _ = batch(form, n=n)
                    loss = tiled(form, critic, x, y, q, miner=miner, stored=stored)
                    assert float(loss.detach()) == 0.0
                    for z, found in zip((x, y), gradient(loss, x, y), strict=True):
                        assert found.shape == z.shape
                        assert not found.any()
                    q = torch.randn(6, 4, dtype=F64, requires_grad=True)
                    if n:
                        equal(
                            tiled(form, critic, x, y, q, miner=miner),
                            plain(form, critic, x, y, q, miner=miner),
                            [x, y, q],
                        )
                    else:
                        # Nobody looks at the queue, whatever stands in it.
                        loss = tiled(form, critic, x, y, torch.full_like(q, math.nan), miner=miner)
                        assert float(loss.detach()) == 0.0

    def test_an_empty_batch_has_the_dtype_of_others(self):
        x = torch.zeros(0, 4, dtype=torch.bfloat16, requires_grad=True)
        for form in FORMS:
            loss = tiled(form, Cosine(), x, x, x)
            assert loss.dtype == torch.float32
            assert gradient(loss, x)[0].dtype == torch.bfloat16

    @pytest.mark.parametrize("form", FORMS)
    def test_rows_with_nothing_but_their_positive_are_solved(self, form):
        rows = 26 if form == "ntxent" else 13
        alone = torch.ones(rows, rows, dtype=torch.bool)
        alone[torch.arange(rows), partners(rows) if form == "ntxent" else torch.arange(rows)] = False
        for critic in self.CRITICS:
            for miner in self.MINERS:
                x, y, q, _ = batch(form)
                loss = tiled(form, critic, x, y, q, mask=alone, miner=miner)
                assert float(loss.detach()) == 0.0
                assert not any(found.any() for found in gradient(loss, x, y))

    def test_one_candidate(self):
        for critic in self.CRITICS:
            for miner in self.MINERS:
                x, y = (
                    torch.randn(7, 4, dtype=F64, requires_grad=True),
                    torch.randn(1, 4, dtype=F64, requires_grad=True),
                )
                loss = tiled_kpair_loss(critic, x, y, torch.zeros(7, dtype=torch.int64), miner=miner)
                assert float(loss.detach()) == 0.0
                assert not any(found.any() for found in gradient(loss, x, y))

    def test_all_rows_are_padding(self):
        for form in FORMS:
            rows = 26 if form == "ntxent" else 13
            for critic in self.CRITICS:
                for miner in self.MINERS:
                    x, y, q, _ = batch(form)
                    loss = tiled(form, critic, x, y, q, mask=torch.ones(rows, rows, dtype=torch.bool), miner=miner)
                    assert float(loss.detach()) == 0.0
                    assert not any(found.any() for found in gradient(loss, x, y))

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        ("dtype", "size", "temperature"),
        [
            (torch.float32, 1e-25, 0.1),
            (torch.float32, 1e25, 0.1),
            (torch.float32, 1e-36, 0.01),
            (torch.float32, 1e36, 0.01),
            (F64, 1e-300, 0.1),
            (F64, 1e300, 0.1),
            (torch.bfloat16, 1e-25, 0.1),
            (torch.bfloat16, 1e25, 0.1),
        ],
    )
    def test_the_length_of_a_vector_does_not_matter_to_a_cosine(self, form, dtype, size, temperature):
        x, y, q, targets = batch(form, queue=5)
        sized = [(z.detach() * size).to(dtype).requires_grad_() for z in (x, y, q)]
        plainly = [(z.detach().double() / size).requires_grad_() for z in sized]
        for miner in (None, topk(2)):
            loss = tiled(form, Cosine(temperature), *sized, targets, miner=miner)
            expected = plain(form, Cosine(temperature), *plainly, targets, miner=miner)
            tolerance = 1e-12 if dtype == F64 else 1e-5
            close(loss.detach(), expected.detach(), tolerance)
            if size < 1e30:  # beyond, the gradient itself leaves the floats
                for a, b in zip(gradient(loss, *sized), gradient(expected, *plainly), strict=True):
                    largest = float(b.abs().max())
                    a = a.double() * size
                    assert torch.isfinite(a).all()
                    if dtype != torch.bfloat16:
                        torch.testing.assert_close(a, b, rtol=0.0, atol=50 * tolerance * largest)

    def test_a_tiny_row_without_gradient_has_none(self):
        x, y = (torch.full((1, 4), 1e-37, requires_grad=True) for _ in range(2))
        for form in FORMS:
            found = gradient(tiled(form, Cosine(1e-3), x, y, x[:0]), x, y)
            assert not any(g.any() for g in found)

    @pytest.mark.parametrize("form", FORMS)
    def test_distances_far_from_the_origin_keep_their_digits(self, form):
        x, y, q, targets = batch(form, queue=5, dtype=torch.float32)
        with torch.no_grad():
            for z in (x, y, q):
                z += 1e4
        exact = [z.detach().double().requires_grad_() for z in (x, y, q)]
        for miner in (None, topk(2)):
            loss = tiled(form, NegativeSquaredDistance(), x, y, q, targets, miner=miner)
            expected = plain(form, NegativeSquaredDistance(), *exact, targets, miner=miner)
            close(loss.detach(), expected.detach(), 3e-6)  # of squares of 1e8 nothing would be left
            for a, b in zip(gradient(loss, x, y, q), gradient(expected, *exact), strict=True):
                close(a, b, 3e-6)

    @pytest.mark.parametrize("unit", [False, True])
    @pytest.mark.parametrize("miner", [None, hcl(1.0)], ids=repr)
    @pytest.mark.parametrize("form", FORMS)
    def test_a_learnt_scale_may_start_at_zero(self, form, miner, unit):
        critic = LearntScale(4, unit=unit, scale=0.0).double()
        x, y, q, targets = batch(form, queue=5)
        found = tiled(form, critic, x, y, q, targets, miner=miner)
        expected = plain(form, critic, x, y, q, targets, miner=miner)
        # What is nearly zero stands for it: 2^-40 times a cosine.
        equal(found, expected, [x, y, q, *critic.parameters()], 1e-9)


class TestRefusals:
    CRITICS = (InnerProduct(), Cosine(), Cosine(1e-3), NegativeSquaredDistance(), Pairs(4).double())
    DROP = staticmethod(lambda s, t, anchors=None: torch.full_like(s, -INF).scatter(1, t[:, None], 0.0))

    @pytest.fixture(params=FORMS)
    def form(self, request):
        return request.param

    @pytest.fixture(params=[None, hcl(1.0)], ids=repr)
    def miner(self, request):
        return request.param

    @pytest.mark.parametrize("where", ["x", "y", "queue"])
    @pytest.mark.parametrize("stored", [False, True])
    def test_a_broken_row_is_named(self, form, miner, where, stored):
        # A broken anchor breaks its row, a broken candidate every row; among two views each is both.
        row = 7 if where == "x" and form != "ntxent" else 0
        for critic in self.CRITICS:
            for value in (math.nan, INF) if isinstance(critic, InnerProduct) else (math.nan,):
                x, y, q = (z.detach().abs() for z in batch(form, queue=5)[:3])
                {"x": x[7], "y": y[4], "queue": q[2]}[where].fill_(value)
                with refused(NAMES[form], f"row {row} holds a NaN or +inf score"):
                    tiled(form, critic, x, y, q, miner=miner, stored=stored)

    def test_a_single_broken_score_is_named(self, form, miner):
        for dtype in (F64, torch.float32):
            huge = torch.finfo(dtype).max ** 0.5 * 1e3
            for column in (7, 9):  # the positive, a negative
                x, y, q = (z.detach().abs() + 0.1 for z in batch(form, queue=5, dtype=dtype)[:3])
                x[7] *= huge
                y[column] *= huge
                with refused(NAMES[form], "row 7 holds a NaN or +inf score"):
                    tiled(form, InnerProduct(), x, y, q, miner=miner)

    def test_an_absent_target_is_named(self, form, miner):
        for critic in self.CRITICS:
            for stored in (False, True):
                for queue in (0, 5):
                    x, y, q, _ = batch(form, queue=queue)
                    rows = 26 if form == "ntxent" else 13
                    mask = torch.zeros(rows, rows + queue, dtype=torch.bool)
                    mask[7, 20 if form == "ntxent" else 7] = True
                    with refused(NAMES[form], "target of row 7 ", "absent"):
                        tiled(form, critic, x, y, q, mask=mask, miner=miner, stored=stored)
                    if queue:
                        mask[7, :rows] = True  # nothing is left but the queue
                        with refused(NAMES[form], "target of row 7 ", "absent"):
                            tiled(form, critic, x, y, q, mask=mask, miner=miner, stored=stored)

    def test_an_absent_target_is_no_padding_where_the_miner_drops_the_rest(self, form):
        x, y, q, _ = batch(form)
        rows = 26 if form == "ntxent" else 13
        mask = torch.zeros(rows, rows, dtype=torch.bool)
        mask[7, 20 if form == "ntxent" else 7] = True
        for critic in self.CRITICS:
            with refused("target of row 7 ", "absent"):
                tiled(form, critic, x, y, q, mask=mask, miner=self.DROP)

    def test_a_column_without_its_positive_is_named(self):
        # Row 7 is padding; column 7 has other candidates, but not its own.
        x, y, q, _ = batch("symmetric")
        mask = torch.zeros(13, 13, dtype=torch.bool)
        mask[7] = True
        for critic in self.CRITICS:
            for miner in (None, hcl(1.0)):
                with refused("tiled_symmetric_loss", "target of row 7 ", "absent"):
                    tiled("symmetric", critic, x, y, q, mask=mask, miner=miner)

    @pytest.mark.parametrize("value", [math.nan, INF])
    def test_broken_weights_are_named(self, form, value):
        def broken(scores, targets, *, anchors=None):
            weights = torch.zeros_like(scores)
            weights[anchors == 7, 1] = value
            return weights

        x, y, q, _ = batch(form)
        for critic in self.CRITICS:
            with refused(NAMES[form], "the loss of row 7 is not finite", "log_weights"):
                tiled(form, critic, x, y, q, miner=broken)
        for nothing in (math.nan, INF, -INF, 3.0):  # of a padding row
            rows = 26 if form == "ntxent" else 13
            mask = torch.zeros(rows, rows, dtype=torch.bool)
            padded = [7, 20] if form == "ntxent" else [7]
            mask[padded] = True
            mask[:, padded] = True

            def idle(scores, targets, *, anchors=None, value=nothing, padded=padded):
                weights = torch.zeros_like(scores)
                weights[torch.isin(anchors, torch.tensor(padded))] = value
                return weights

            for critic in self.CRITICS:
                equal(
                    tiled(form, critic, x, y, q, mask=mask, miner=idle),
                    plain(form, critic, x, y, q, mask=mask, miner=idle),
                    [x, y],
                )

    def test_dropping_every_candidate(self, form):
        x, y, q, _ = batch(form)
        for critic in self.CRITICS:
            with refused(NAMES[form], "the loss of row 0 is not finite", "drop every candidate"):
                tiled(form, critic, x, y, q, miner=lambda s, t, anchors=None: torch.full_like(s, -INF))

    def test_shapes_and_types(self, form):
        x, y = (z.detach() for z in batch(form)[:2])
        name = NAMES[form]
        function = FUNCTIONS[form]
        for critic in (Cosine(), Pairs(4).double()):
            with refused(name, "()", "[N, d"):
                function(critic, x[0, 0], y)
            with refused(name, "(4,)", "[N, d"):
                function(critic, x[0], y[0])
            with refused(name, "(13, 1, 4)", "[N, d"):
                function(critic, x[:, None], y[:, None])
            for dtype in (torch.int64, torch.bool, torch.complex64):
                with refused(name, str(dtype), "floating-point"):
                    function(critic, x.to(dtype), y.to(dtype))
                with refused(name, str(dtype), "floating-point"):
                    function(critic, x, y.to(dtype))
        with refused("(13, 4)", "(13, 3)", "[N, d]"):
            function(Cosine(), x, y[:, :3])
        with refused(name, "critic's scores", ", 1)", ", 26]" if form == "ntxent" else ", 13]"):
            function(lambda a, b: a @ b[:1].T, x, y)
        with refused(name, "13", "12"):
            function(Cosine(), x, y[:12])
        if form != "one":
            with refused(name, "(3, 3)"):
                function(Cosine(), x, y, negatives=torch.zeros(3, 3, dtype=F64))
        for critic in (Cosine(), Pairs(4).double()):
            with refused("log_weights", ", 1)", ", 26)" if form == "ntxent" else ", 13)"):
                function(critic, x, y, miner=lambda s, t, anchors=None: s[:, :1])

    def test_targets(self):
        x, y, _, _ = batch("one")
        for critic in (Cosine(), Pairs(4).double()):
            with refused("tiled_kpair_loss", "(1,)", "[13]"):
                tiled_kpair_loss(critic, x, y, torch.tensor([0]))
            with refused("tiled_kpair_loss", "torch.float32", "integer"):
                tiled_kpair_loss(critic, x, y, torch.zeros(13))
            for wrong in (-1, 13):
                with refused("tiled_kpair_loss", str(wrong), "[0, 12]"):
                    tiled_kpair_loss(critic, x, y, torch.full((13,), wrong))
            with refused("tiled_kpair_loss", "13", "0"):
                tiled_kpair_loss(critic, x, y[:0])

    def test_what_absent_returns(self, form):
        x, y, _, _ = batch(form)
        function = FUNCTIONS[form]
        for critic in (Cosine(), Pairs(4).double()):
            with refused("absent", "torch.float32", "torch.bool"):
                function(critic, x, y, absent=lambda r, c: torch.zeros(len(r), len(c)))
            with refused("absent", ", 1)", "expected ["):
                function(critic, x, y, absent=lambda r, c: torch.zeros(len(r), 1, dtype=torch.bool))


class TestDifferentiation:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        "critic", ["InnerProduct", "Cosine(learnable)", "NegativeSquaredDistance", "Bilinear", "Concat"]
    )
    def test_gradcheck(self, form, critic):
        critic = CRITICS[critic](2).double()
        x, y, q, targets = batch(form, n=5, queue=3, d=2)
        for miner in (None, hcl(1.0, 0.1)):
            for stored in (False, True):
                function = lambda a, b, c, *_: tiled(form, critic, a, b, c, targets, miner=miner, stored=stored)  # noqa: E731, B023
                assert torch.autograd.gradcheck(function, (x, y, q, *critic.parameters()), fast_mode=True)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        "critic", ["InnerProduct", "Cosine", "Cosine(learnable)", "NegativeSquaredDistance", "Bilinear"]
    )
    @pytest.mark.parametrize("queue", [0, 2])
    def test_stored_scores_are_differentiable_twice(self, form, critic, queue):
        critic = CRITICS[critic](2).double()
        x, y, q, targets = batch(form, n=4, queue=queue, d=2)
        mask = mask_of("gaps", form, 4, queue, targets)
        inputs = (x, y, q, *critic.parameters())
        for absent in (None, mask):
            function = lambda a, b, c, *_: tiled(form, critic, a, b, c, targets, mask=absent, stored=True)  # noqa: E731, B023
            assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
            once = gradient(function(*inputs), *inputs)
            twice = torch.autograd.grad(function(*inputs), inputs, create_graph=True, materialize_grads=True)
            for a, b in zip(once, twice, strict=True):
                close(b.detach(), a, 1e-13)

    @pytest.mark.parametrize("critic", [InnerProduct(), Cosine()], ids=repr)
    def test_one_tensor_as_both_sides_is_differentiated_twice_and_counted_once(self, critic):
        x = torch.randn(5, 3, dtype=F64, requires_grad=True)
        targets = torch.arange(5).roll(1)
        for function in (
            lambda z: tiled_kpair_loss(critic, z, z, targets, stored=True),
            lambda z: tiled_symmetric_loss(critic, z, 1.0 * z, stored=True),
            lambda z: tiled_symmetric_loss(critic, z, z, stored=True),
            lambda z: tiled_ntxent_loss(critic, z, z.flip(0), stored=True),
            lambda z: tiled_ntxent_loss(critic, z, z.flip(0), absent=reader(torch.zeros(10, 10) > 0), stored=True),
        ):
            (found,) = torch.autograd.grad(function(x), x, create_graph=True)
            close(found.detach(), gradient(function(x), x)[0], 1e-14)
            assert torch.autograd.gradgradcheck(function, (x,))

    @pytest.mark.parametrize("form", FORMS)
    def test_a_second_derivative_without_stored_scores_is_refused(self, form):
        x, y, q, targets = batch(form)
        cases = [(Cosine(), None, False), (Cosine(), hcl(1.0), True), (Pairs(4).double(), None, True)]
        for critic, miner, stored in cases:
            loss = tiled(form, critic, x, y, q, targets, miner=miner, stored=stored)
            with pytest.raises(RuntimeError, match=r"differentiable once.*stored=True.*tiled=False"):
                torch.autograd.grad(loss, x, create_graph=True)

    @pytest.mark.parametrize("form", FORMS)
    def test_upstream_factors_and_repeated_backward_passes(self, form):
        for critic in (Cosine(0.5, learnable=True).double(), InnerProduct(), Pairs(4).double()):
            for miner in (None, LearntTilt().double()):
                x, y, q, targets = batch(form, queue=5)
                inputs = [x, y, q, *parameters(critic, miner)]
                loss = tiled(form, critic, x, y, q, targets, miner=miner)
                once = torch.autograd.grad(loss, inputs, retain_graph=True)
                for factor in (3.0, 0.25, -1.0, 0.0):
                    scaled = torch.autograd.grad(factor * loss, inputs, retain_graph=True)
                    for a, b in zip(scaled, once, strict=True):
                        close(a, factor * b, 1e-15)
                # Gradients are handed over without a copy: what becomes of them must not reach the next pass.
                for passes in range(1, 4):
                    loss.backward(retain_graph=True)
                    for z, b in zip(inputs, once, strict=True):
                        close(z.grad, passes * b, 1e-14)
                for z in inputs:
                    z.grad.zero_()
                loss.backward()
                for z, b in zip(inputs, once, strict=True):
                    assert torch.equal(z.grad, b)
                    z.grad = None

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("stored", [False, True])
    def test_only_what_asks_for_a_gradient_gets_one(self, form, stored):
        for critic in (Cosine(0.5, learnable=True).double(), InnerProduct(), Pairs(4).double()):
            for miner in (None, LearntTilt().double()):
                for asked in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
                    x, y, q, targets = batch(form, queue=5)
                    for z, requires_grad in zip((x, y, q), asked, strict=True):
                        z.requires_grad_(requires_grad)
                    inputs = [z for z in (x, y, q, *parameters(critic, miner)) if z.requires_grad]
                    loss = tiled(form, critic, x, y, q, targets, miner=miner, stored=stored)
                    assert loss.requires_grad == bool(inputs)
                    if inputs:
                        equal(loss, plain(form, critic, x, y, q, targets, miner=miner), inputs)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("scope", [torch.no_grad, torch.inference_mode])
    def test_without_gradients_none_are_formed(self, form, scope, monkeypatch):
        def form_gradients(*_, **__):
            raise AssertionError("gradients were formed")

        monkeypatch.setattr(_tiles._Tiles, "weigh", form_gradients)
        monkeypatch.setattr(factors.UnitRows, "pull_back_", form_gradients)
        monkeypatch.setattr(torch.autograd, "grad", form_gradients)
        for critic in (Cosine(0.5, learnable=True).double(), InnerProduct(), Pairs(4).double()):
            for miner in (None, LearntTilt().double(), hcl(1.0, 0.1)):
                x, y, q, targets = batch(form, queue=5)
                with scope():
                    loss = tiled(form, critic, x, y, q, targets, miner=miner)
                    assert not loss.requires_grad
                    close(loss, float(plain(form, critic, x, y, q, targets, miner=miner)), 1e-13)

    def test_inputs_are_left_alone(self):
        for form in FORMS:
            for critic in (Cosine(), InnerProduct(), NegativeSquaredDistance(), Pairs(4).double()):
                for miner in (None, hcl(1.0)):
                    x, y, q, targets = batch(form, queue=5)
                    before = [z.detach().clone() for z in (x, y, q)]
                    tiled(form, critic, x, y, q, targets, miner=miner).backward()
                    assert all(torch.equal(z, b) for z, b in zip((x, y, q), before, strict=True))


class TestMiners:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("critic", ["Cosine", "Concat"])
    def test_a_random_miner_sees_every_anchor_once_and_the_gradient_is_of_its_weights(self, form, critic):
        critic = CRITICS[critic](4).double()
        x, y, q, targets = batch(form, queue=5)
        given = []

        def random(scores, targets, *, anchors=None):
            given.append((anchors, torch.randn_like(scores).scatter(1, targets[:, None], 0.0)))
            return given[-1][1]

        found = tiled(form, critic, x, y, q, targets, miner=random)
        rows, anchors = 26 if form == "ntxent" else 13, torch.cat([a for a, _ in given])
        assert anchors.tolist() == list(range(rows)) * (2 if form == "symmetric" else 1)
        directions, first = [], 0
        for start, (a, _) in enumerate(given):
            if start and not a[0]:
                directions.append(torch.cat([w for _, w in given[first:start]]))
                first = start
        directions.append(torch.cat([w for _, w in given[first:]]))
        again = iter(directions)
        expected = plain(form, critic, x, y, q, targets, miner=lambda s, t, anchors=None: next(again))
        equal(found, expected, [x, y, q, *critic.parameters()])

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("critic", ["Cosine", "NegativeSquaredDistance", "Concat"])
    @pytest.mark.parametrize("kind", ["none", "gaps"])
    def test_it_sees_whole_rows_of_scores_with_their_targets_and_numbers(self, form, critic, kind):
        critic = CRITICS[critic](4).double()
        x, y, q, targets = batch(form, queue=5)
        mask = mask_of(kind, form, 13, 5, targets)
        results = []
        for function in (tiled, plain):
            seen = []

            def spy(scores, targets, *, anchors=None, seen=seen):
                seen.append([scores.detach().clone(), targets, anchors])
                return torch.zeros_like(scores)

            function(form, critic, x, y, q, targets, mask=mask, miner=spy)
            # The other direction has no queue.
            widths = {scores.shape[1] for scores, _, _ in seen}
            results.append(
                {w: [torch.cat(z) for z in zip(*(s for s in seen if s[0].shape[1] == w), strict=True)] for w in widths}
            )
            assert all(anchors.dtype == torch.int64 for _, _, anchors in seen)
            if function is tiled:
                assert max(len(scores) for scores, _, _ in seen) <= 4
        assert (
            results[0].keys()
            == results[1].keys()
            == ({18, 13} if form == "symmetric" else {31 if form == "ntxent" else 18})
        )
        for width, (scores, which, anchors) in results[0].items():
            expected = results[1][width]
            close(scores, expected[0], 1e-13)
            assert torch.equal(which, expected[1])
            assert torch.equal(anchors, expected[2])

    @pytest.mark.parametrize("form", FORMS)
    def test_weights_may_be_of_another_precision(self, form):
        x, y, q, targets = batch(form, dtype=torch.float32)
        for dtype in (F64, torch.bfloat16, torch.float16):

            def cast(scores, targets, *, anchors=None, dtype=dtype):
                return (0.5 * scores).to(dtype)

            for critic in (Cosine(), Pairs(4)):
                found = tiled(form, critic, x, y, q, targets, miner=cast)
                expected = plain(form, critic, x, y, q, targets, miner=cast)
                assert found.dtype == torch.float32
                # Float32 scores that differ in the last digit may be rounded to half precision otherwise.
                tolerance = 1e-6 if dtype == F64 else 4 * torch.finfo(dtype).eps
                close(found.detach(), expected.detach(), tolerance)
                for a, b in zip(gradient(found, x, y), gradient(expected, x, y), strict=True):
                    close(a, b, tolerance)

    def test_a_weight_at_the_target_is_taken_as_the_kernel_takes_it(self):
        x, y, q, targets = batch("one", queue=5)
        for value in (-INF, 0.7, -3.0):

            def miner(scores, targets, *, anchors=None, value=value):
                return (0.3 * scores).scatter(1, targets[:, None], value)

            for critic in (Cosine(), Pairs(4).double()):
                equal(
                    tiled("one", critic, x, y, q, targets, miner=miner),
                    plain("one", critic, x, y, q, targets, miner=miner),
                    [x, y, q],
                )

    @pytest.mark.parametrize("form", FORMS)
    def test_what_depends_on_parameters_of_others_is_refused(self, form):
        x, y, q, targets = batch(form)
        weight = torch.full((2, 1), 0.3, dtype=F64, requires_grad=True)

        def miner(scores, targets, *, anchors=None):
            return scores * weight.prod()

        hidden = Pairs(4).double()
        for critic in (Cosine(), Pairs(4).double()):
            with refused(NAMES[form], "the miner depends", "(2, 1)", "nn.Module", "tiled=False"):
                tiled(form, critic, x, y, q, targets, miner=miner)
            with refused("the miner depends"):
                tiled(form, critic, x, y, q, targets, miner=semihard(1e-9, fallback=miner))
            tiled(form, critic, x, y, q, targets, miner=detached(miner)).backward()
            with torch.no_grad():
                tiled(form, critic, x, y, q, targets, miner=miner)
        with refused(NAMES[form], "the critic depends", "nn.Module", "tiled=False"):
            tiled(form, lambda a, b: hidden(a, b), x, y, q, targets)
        # A critic's factors are formed outside, by autograd: they may depend on anything.
        for p in hidden.parameters():
            p.requires_grad_(False)
        tiled(form, lambda a, b: hidden(a, b), x, y, q, targets).backward()

    def test_parameters_that_are_shared_or_frozen(self):
        class Both(LearntTilt):
            def __init__(self, map):
                super().__init__()
                self.map = map

            def forward(self, scores, targets, *, anchors=None):
                return super().forward(scores, targets, anchors=anchors) * self.map.weight.sum()

        critic = Pairs(4).double()
        critic.map.bias.requires_grad_(False)
        miner = Both(critic.map).double()
        for form in FORMS:
            x, y, q, targets = batch(form)
            asked = [x, y, critic.map.weight, miner.beta, miner.of_anchor]
            found = tiled(form, critic, x, y, q, targets, miner=miner)
            equal(found, plain(form, critic, x, y, q, targets, miner=miner), asked)


class TestCritics:
    def test_a_subclass_that_scores_otherwise_is_taken_at_its_word(self):
        class Shifted(Cosine):
            def forward(self, x, y):
                return super().forward(x, y) + y.sum(1)

        class Renamed(Shifted):
            pass

        class Factored(Shifted):
            def factors(self, x, y):
                one = torch.ones_like(x[:, :1])
                return factors.Factors(torch.cat([x, one], 1), torch.cat([y, y.sum(1, keepdim=True)], 1))

            def forward(self, x, y):
                return self.factors(x, y).scores()

        class Named(Cosine):
            pass

        assert [factors.factorises(c()) for c in (Shifted, Renamed, Factored, Named)] == [False, False, True, True]
        for form in FORMS:
            for critic in (Shifted(), Renamed(), Factored(), Named()):
                x, y, q, targets = batch(form)
                equal(tiled(form, critic, x, y, q, targets), plain(form, critic, x, y, q, targets), [x, y])

    def test_an_object_with_factors_is_a_critic(self):
        class Mine:
            def factors(self, x, y):
                return factors.Factors(x, y, 0.5)

            def __call__(self, x, y):
                raise AssertionError("the factors are enough")

        for form in FORMS:
            x, y, q, targets = batch(form)
            equal(tiled(form, Mine(), x, y, q, targets), plain(form, InnerProduct(2.0), x, y, q, targets), [x, y])


def python(script):
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


MEMORY = """
import sys
from pathlib import Path
import torch
from contrastive import Concat, Cosine, KPairLoss
from miners import hcl, topk

torch.set_num_threads(1)

def peak(criterion, batch):
    x, y = (torch.randn(batch, 16, requires_grad=True) for _ in range(2))
    x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = status("VmRSS")
    criterion(x, y).backward()
    return (status("VmHWM") - before) / 1024

def status(name):
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name + ":"))
    return int(line.split()[1])

for criterion in (
    KPairLoss(Cosine(), tiled=False),
    KPairLoss(Cosine(), tiled=True),
    KPairLoss(Cosine(), symmetric=False, tiled=True),
    KPairLoss(Cosine(), intra_view=True, tiled=True),
    KPairLoss(Cosine(), miner=topk(16), tiled=True),
    KPairLoss(Cosine(), miner=hcl(1.0), tiled=True),
):
    peak(criterion, 64)
    print(peak(criterion, 4096))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of the process from /proc")
def test_memory_is_that_of_a_strip():
    stored, *streamed = map(float, python(MEMORY))
    assert stored > 60  # the matrix of 4096 x 4096 floats, 64 MB: the measure sees it
    assert max(streamed[:3]) < 20  # a strip has 2^21 floats, 8 MB
    assert max(streamed[3:]) < 32  # and a miner some copies of fewer rows
