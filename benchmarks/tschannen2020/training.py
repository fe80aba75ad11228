"""Two encoders and a critic, trained to maximise a bound: held-out and training bound, and what a linear probe reads.

The encoder of the upper half is the representation. Bounds are computed in batches of the training size, for I_NCE is
capped by log K, on test images and on fresh training images: the published curves show the latter, by mistake.
"""

import copy
import math
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.tschannen2020 import probe
from benchmarks.tschannen2020.data import Batches, Halves, Split, spread
from benchmarks.under_way import UnderWay
from contrastive import Bilinear, Concat, InnerProduct, Separable, infonce_bound, kpair_loss
from contrastive.batches import derived_seed
from contrastive.encoders import MLP, StridedConvNet, glorot_uniform_
from contrastive.estimators import infonce, nwj
from contrastive.flows import RealNVP
from contrastive.gemm import fast_products, multiplies_in_bfloat16, rounded_products
from contrastive.geometry import jacobian_condition_numbers
from miners import hcl, topk

__all__ = [
    "CRITICS",
    "ENCODERS",
    "MINERS",
    "Setting",
    "build",
    "claim_of",
    "codes_of_step",
    "encoded",
    "fastest_products",
    "has_left_the_floats",
    "inverse_error",
    "is_rounded",
    "train",
]

PERCENTILES = (0, 20, 40, 60, 80, 100)
# Of a pixel in [0, 1], in float32: beyond, an encoder that is invertible on paper is not in use.
INVERSE_TOLERANCE = 1e-3
# An inverse that leaves the floats: a line has no infinity, and what is missing would not count against a claim.
LOST = 1e9


@dataclass(frozen=True)
class Setting:
    """What a run trains; as a dictionary it is the configuration in the run's line.

    Arguments:
        preset: the name of the budget.
        variant: ``paper``, or ``code`` where the published code differs.
        data: name of the data set.
        encoder: one of `ENCODERS`.
        critic: one of `CRITICS`.
        objective: ``nce``, ``nwj``, or ``labels`` for training with labels.
        iterations: of the optimiser.
        every: iterations between two evaluations.
        lr: of Adam.
        miner: one of `MINERS`; with ``nce`` only.
        target: nats that the estimate is brought to; None maximises it.
        noise: deviation of what is added to the pixels, the same vector to both halves.
        independent_noise: whether evaluation draws it for each half, as the published code does.
        batch: pairs in a batch.
        bound_batches: batches a bound is averaged over.
        probe_rows: training images of the probe of curves; None for all. The last figure takes all.
        measure: ``condition`` or ``inverse``, in addition.
        products: ``bfloat16`` permits it in the products of training steps, as autocast does; everything that is
            measured is computed in float32.
    """

    preset: str
    variant: str
    data: str
    encoder: str
    critic: str
    objective: str
    iterations: int
    every: int
    lr: float
    miner: str = "none"
    target: float | None = None
    noise: float = 0.0
    independent_noise: bool = False
    batch: int = 128
    bound_batches: int = 78
    probe_rows: int | None = None
    measure: str | None = None
    products: str = "float32"


class _AsImage(nn.Sequential):
    """Flattened halves as images."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(nn.Unflatten(1, shape), StridedConvNet(shape[0]))
        self.out_dim = 100


def _glorot(make: Callable[[Halves], nn.Module]) -> Callable[[Halves], nn.Module]:
    def made(data: Halves) -> nn.Module:
        module = make(data)
        glorot_uniform_(module)
        return module

    return made


ENCODERS: dict[str, Callable[[Halves], nn.Module]] = {
    "mlp": _glorot(lambda data: MLP(data.dim, hidden=(300, 300), out=100, batch_norm=False)),
    "convnet": _glorot(lambda data: _AsImage(data.shape)),
    "residual": lambda data: MLP(
        data.dim, hidden=(data.dim,) * 4, out=data.dim, batch_norm=False, skips=True, std=1e-4
    ),
    "realnvp": lambda data: RealNVP(data.dim),
}
CRITICS: dict[str, Callable[[int], nn.Module]] = {
    "bilinear": Bilinear,
    "separable": Separable,
    "concat": Concat,
    "inner product": lambda dim: InnerProduct(),
}
MINERS = {"none": None, "hcl 1": hcl(1.0), "top 16": topk(16)}


def build(setting: Setting, data: Halves, seed: int) -> nn.ModuleDict:
    """Both encoders and the critic, or the encoder and a linear layer for training with labels.

    Arguments:
        setting: of the run.
        data: whose width decides.
        seed: of the weights.
    """
    torch.manual_seed(derived_seed(seed, 0))
    first = ENCODERS[setting.encoder](data)
    width = int(first.out_dim)
    if setting.objective == "labels":
        return nn.ModuleDict({"x": first, "head": nn.Linear(width, 10)})
    second = ENCODERS[setting.encoder](data)
    return nn.ModuleDict({"x": first, "y": second, "critic": CRITICS[setting.critic](width)})


def train(
    setting: Setting,
    data: Halves,
    seed: int,
    tick: Callable[[float], None] = lambda share: None,
    *,
    keep: UnderWay | None = None,
) -> dict[str, Any]:
    """Trains once, and measures on the way and at the end.

    Arguments:
        setting: what.
        data: on what.
        seed: of weights, batches and noise.
        tick: is told the share that is done, at every evaluation.
        keep: where every evaluation is kept with weights, optimiser and place in the data, so that training goes on
            there, to the bit; None keeps nothing.

    Returns:
        The figures of the run's line: `status` is ``diverged``, with the step, where the objective or the scores left
        the floats, or the squares of the gradient, which is looked for at evaluations: it was after the step
        `diverged_after`. Curves end there.
    """
    model = build(setting, data, seed)
    # Fused Adam: one pass over the weights.
    optimiser = torch.optim.Adam(model.parameters(), setting.lr, fused=True)
    generator = torch.Generator().manual_seed(derived_seed(seed, 1))
    batches = Batches(len(data.train), setting.batch, generator)
    points: list[dict[str, Any]] = []
    start: dict[str, Any] = {}
    reached = None if keep is None else keep.read()
    if reached is not None:
        model.load_state_dict(reached["model"])
        optimiser.load_state_dict(reached["optimiser"])
        batches.load_state_dict(reached["batches"])
        points, start = reached["points"], reached["start"]
    elif setting.measure is not None:
        # Where the start is what a claim compares with, it gets the published probe as well.
        start = {"start_test_accuracy": _final(setting, model, data, seed)}
    lost: dict[str, int] = {}
    first = points[-1]["iteration"] if points else 0
    for step in range(first, setting.iterations + 1):
        if (step % setting.every == 0 or step == setting.iterations) and (step > first or reached is None):
            if has_left_the_floats(optimiser):
                lost = {"diverged_at": step, "diverged_after": points[-1]["iteration"]}
                break
            points.append({"iteration": step, **_point(setting, model, data, seed, points)})
            if keep is not None:
                parts = {"model": model, "optimiser": optimiser, "batches": batches}
                states = {name: part.state_dict() for name, part in parts.items()}
                keep.write({**states, "points": points, "start": start})
            tick(step / setting.iterations)
        if step == setting.iterations:
            break
        with fastest_products(setting.products):
            loss = _loss(setting, model, data.train, next(batches), generator)
            if loss is None or not bool(torch.isfinite(loss)):
                lost = {"diverged_at": step}
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    last = {k: v for k, v in points[-1].items() if k not in ("iteration", "accuracy")}
    figures = {
        "iterations": setting.iterations,
        "status": "diverged" if lost else "ok",
        "rounded": is_rounded(setting.products),
        "test_bound": None,
        "train_bound": None,
        **last,
        **start,
        "test_accuracy": None if lost else _final(setting, model, data, seed),
        "start_accuracy": points[0]["accuracy"],
        "start_bound": points[0].get("test_bound"),
        "curves": {key: [point[key] for point in points] for key in points[0]},
    }
    if setting.measure == "condition":
        figures["start_median_log10_condition"] = points[0]["median_log10_condition"]
    if setting.miner != "none" and not lost:
        figures |= claim_of(setting, model, data)
    return figures | lost


def has_left_the_floats(optimiser: torch.optim.Optimizer) -> bool:
    """Whether a second moment of Adam is no number: what it belongs to never moves again, and no loss need show it.

    Arguments:
        optimiser: an Adam.
    """
    return any(not bool(torch.isfinite(state["exp_avg_sq"]).all()) for state in optimiser.state.values())


def fastest_products(products: str = "float32") -> AbstractContextManager[None]:
    """The products of a training step, or of anything made of matrix products: by oneDNN, which is the fastest at them.

    Arguments:
        products: ``bfloat16`` permits it; float32 is exact.
    """
    return rounded_products() if products == "bfloat16" else fast_products(torch.empty(0), 2**25)


def _loss(
    setting: Setting, model: nn.ModuleDict, split: Split, rows: Tensor, generator: torch.Generator
) -> Tensor | None:
    """What is minimised; None where scores are no numbers any more."""
    x, y = split.views(rows, noise=setting.noise, generator=generator)
    if setting.objective == "labels":
        codes = codes_of_step(model["x"], x, setting.products)
        return nn.functional.cross_entropy(model["head"](codes), split.labels[rows])
    scores = model["critic"](*(codes_of_step(model[side], z, setting.products) for side, z in (("x", x), ("y", y))))
    if not bool(torch.isfinite(scores).all()):
        return None
    miner = MINERS[setting.miner]
    if miner is not None:
        return kpair_loss(scores, log_weights=miner(scores, torch.arange(len(scores)))).mean()
    estimate = _estimate(setting, scores)
    return -estimate if setting.target is None else (estimate - setting.target).abs()


def codes_of_step(encoder: nn.Module, x: Tensor, products: str) -> Tensor:
    """Codes for a training step; in bfloat16 by autocast, which rounds every weight once for the way there and back.

    Arguments:
        encoder: the representation.
        x: its inputs.
        products: ``bfloat16`` or ``float32``.
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=is_rounded(products, x.device)):
        return cast(Tensor, encoder(x)).float()


def is_rounded(products: str, device: torch.device | None = None) -> bool:
    """Whether training steps round to bfloat16; a processor without instructions for it computes in float32.

    Arguments:
        products: ``bfloat16`` or ``float32``.
        device: None means the processor.
    """
    return products == "bfloat16" and ((device is not None and device.type != "cpu") or multiplies_in_bfloat16())


def _estimate(setting: Setting, scores: Tensor) -> Tensor:
    return {"nce": infonce, "nwj": nwj}[setting.objective](scores)


# --- measures ---------------------------------------------------------------------------------------------------------


def _point(
    setting: Setting, model: nn.ModuleDict, data: Halves, seed: int, points: list[dict[str, Any]]
) -> dict[str, Any]:
    """One evaluation."""
    found: dict[str, Any] = {}
    if setting.objective != "labels":
        found["test_bound"] = _bound(setting, model, data.test, seed)
        found["train_bound"] = _bound(setting, model, data.train, derived_seed(seed, 2, len(points)))
    found["accuracy"] = probe.fast_accuracy(
        *_codes(setting, model, data.train, seed, setting.probe_rows), *_codes(setting, model, data.test, seed, None)
    )
    if setting.measure == "condition":
        fixed = torch.Generator().manual_seed(derived_seed(seed, 5))
        x, _ = data.test.views(slice(0, setting.batch), noise=setting.noise, generator=fixed)
        logs = jacobian_condition_numbers(model["x"], x).log10()
        found["median_log10_condition"] = float(logs.quantile(0.5))
        found["log10_condition"] = [float(logs.quantile(p / 100)) for p in PERCENTILES]
    if setting.measure == "inverse":
        found["inverse_error"] = inverse_error(model["x"], data)
        found["inverse_within_tolerance"] = found["inverse_error"] <= INVERSE_TOLERANCE
        found["inverse_error_float64"] = inverse_error(copy.deepcopy(model["x"]).double(), data)
    return found


@torch.no_grad()
def inverse_error(flow: nn.Module, data: Halves) -> float:
    """The largest error of a pixel after the encoder and its inverse, over 512 test images; at most `LOST`.

    Arguments:
        flow: a `RealNVP`; its type decides in which precision.
        data: what is encoded.
    """
    x = data.test.x[:512].to(next(flow.parameters()).dtype) / 255
    return float((flow.inverse(flow(x)) - x).abs().max().nan_to_num(nan=LOST).clamp_max(LOST))


@torch.no_grad()
def _bound(setting: Setting, model: nn.ModuleDict, split: Split, seed: int) -> float:
    """The estimate, unmined, averaged over batches of the training size."""
    generator = torch.Generator().manual_seed(derived_seed(seed, 3))
    batches = Batches(len(split), setting.batch, generator)
    count = min(setting.bound_batches, len(split) // setting.batch)
    coupled = not setting.independent_noise
    pairs = [
        split.views(next(batches), noise=setting.noise, coupled=coupled, generator=generator) for _ in range(count)
    ]
    codes = (
        encoded(model[side], torch.cat(parts)).split(setting.batch)
        for side, parts in zip("xy", zip(*pairs, strict=True), strict=True)
    )
    scores = [model["critic"](x, y).double() for x, y in zip(*codes, strict=True)]
    return statistics.fmean(float(_estimate(setting, s)) if bool(torch.isfinite(s).all()) else math.nan for s in scores)


def _codes(setting: Setting, model: nn.ModuleDict, split: Split, seed: int, rows: int | None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(derived_seed(seed, 4))
    some = spread(len(split), rows)
    x, _ = split.views(some, noise=setting.noise, generator=generator)
    return encoded(model["x"], x), split.labels[some]


@torch.no_grad()
def encoded(encoder: nn.Module, x: Tensor) -> Tensor:
    """Codes, some rows at a time: products like many, and what convolutions leave in between shall stay in the cache.

    Arguments:
        encoder: the representation.
        x: its inputs.
    """
    rows = 64 if any(isinstance(part, nn.Conv2d) for part in encoder.modules()) else 1024
    with fastest_products():
        return torch.cat([encoder(part) for part in x.split(rows)])


def _final(setting: Setting, model: nn.ModuleDict, data: Halves, seed: int) -> float:
    """The published probe, by all training images."""
    train, test = (_codes(setting, model, split, seed, None) for split in (data.train, data.test))
    return probe.saga_accuracy(*train, *test, seed=seed)


def claim_of(setting: Setting, model: nn.ModuleDict, data: Halves) -> dict[str, Any]:
    """What may be claimed of the mined loss itself, on one batch of test images.

    Arguments:
        setting: of the run.
        model: as trained.
        data: on what.
    """
    rows = slice(0, setting.batch)
    x, y = data.test.views(rows, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mined = infonce_bound(model["critic"](model["x"](x), model["y"](y)), miner=MINERS[setting.miner])
    return {"mined_status": mined.status, "mined_bound": mined.value, "mined_cap": mined.cap}
