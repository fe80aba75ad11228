"""The steps of the paper's experiments beside plain torch and scikit-learn, by turns, and what a whole run would take.

``python -m benchmarks.speed.paper --data-root DATA`` prints the table of `benchmarks/speed/paper.json` and writes it.
The peer of a step is the step as anybody writes it: `nn.Sequential`, torch's default Adam; that of the concatenated
critic takes B x B concatenated rows through its network; beside RealNVP stands zuko, a library of flows, where it is
installed; that of the probe is scikit-learn's SAGA at the published tolerance. Steps "in bfloat16" are within autocast.
The projection multiplies measured steps with the full iterations of one seed on MNIST: evaluations and probes come on
top of it. One thread is timed by the process's own clock.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.speed.measure import Goal, Row, Setting, by_turns, clock, compared, context, show, write
from benchmarks.tschannen2020 import architectures, conditioning, critics, invertible, probe, sampling, training
from benchmarks.tschannen2020.data import MADE_UP, Batches, Halves, load
from contrastive import Concat
from contrastive.encoders import truncated_normal_
from contrastive.estimators import infonce

BATCH, DIM, SEEDS = 128, 392, 20
PEERS = ("torch", "scikit-learn", "zuko")
HOURS, CORES = 2.0, 2
ALONE, ROUNDED = "the products alone", "in bfloat16"
Step = Callable[[], object]


class PlainFlow(nn.Module):
    """30 additive couplings, each followed by a permutation, as first written down."""

    def __init__(self) -> None:
        super().__init__()
        half = DIM // 2
        self.permutations = [torch.randperm(DIM) for _ in range(30)]
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(half, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, half)
            )
            for _ in self.permutations
        )  # fmt: skip
        truncated_normal_(self, 1e-4)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        for permutation, network in zip(self.permutations, self.networks, strict=True):
            kept, moved = x.chunk(2, 1)
            x = torch.cat([kept, moved + network(kept)], 1)[:, permutation]
        return x


class FlowOfZuko(nn.Module):
    """The same couplings by the library of flows, zuko, whose masks take the place of permutations."""

    def __init__(self) -> None:
        super().__init__()
        from zuko.flows import NICE
        from zuko.transforms import AdditiveTransform

        self.flow = NICE(
            DIM, transforms=30, randmask=True, hidden_features=(512, 512), univariate=AdditiveTransform, shapes=[()]
        )
        truncated_normal_(self, 1e-4)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.flow.transform()(x)


def plain_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 100))


def plain_step(make: Callable[[], nn.Module], width: int) -> Step:
    """Two encoders and a bilinear critic by the default Adam."""
    first, second, weight = make(), make(), nn.Parameter(0.05 * torch.randn(width, width))
    optimiser = torch.optim.Adam([*first.parameters(), *second.parameters(), weight], lr=1e-4)
    x, y = torch.rand(BATCH, DIM), torch.rand(BATCH, DIM)
    diagonal = torch.arange(BATCH)

    def step() -> None:
        loss = nn.functional.cross_entropy(first(x) @ weight @ second(y).T, diagonal)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def our_step(config: dict[str, object], data: Halves) -> Step:
    """A step of an experiment, as `training.train` takes it."""
    setting = training.Setting(**config)  # type: ignore[arg-type]
    model = training.build(setting, data, 0)
    optimiser = torch.optim.Adam(model.parameters(), setting.lr, fused=True)
    generator = torch.Generator().manual_seed(0)
    batches = Batches(len(data.train), BATCH, generator)

    def step() -> None:
        with training.fastest_products(setting.products):
            loss = training._loss(setting, model, data.train, next(batches), generator)
            assert loss is not None
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return step


def stacked_step() -> Step:
    """Twenty pairs of MLPs as one batched model, fused Adam."""
    dims = ((DIM, 300), (300, 300), (300, 100))

    def layers() -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [
            (nn.Parameter(0.05 * torch.randn(SEEDS, i, o)), nn.Parameter(torch.zeros(SEEDS, 1, o))) for i, o in dims
        ]

    first, second, weight = layers(), layers(), nn.Parameter(0.05 * torch.randn(SEEDS, 100, 100))
    parameters = [p for side in (first, second) for layer in side for p in layer]
    optimiser = torch.optim.Adam([*parameters, weight], lr=1e-4, fused=True)
    x, y = torch.rand(SEEDS, BATCH, DIM), torch.rand(SEEDS, BATCH, DIM)

    def through(unit: Tensor, side: list[tuple[nn.Parameter, nn.Parameter]]) -> Tensor:
        for weights, bias in side[:-1]:
            unit = torch.baddbmm(bias, unit, weights).relu()
        return torch.baddbmm(side[-1][1], unit, side[-1][0])

    def step() -> None:
        scores = through(x, first) @ weight @ through(y, second).transpose(1, 2)
        loss = (scores.logsumexp(2) - scores.diagonal(dim1=1, dim2=2)).mean(1).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def products(layers: Sequence[tuple[int, int]], times: int) -> Step:
    """The bare matrix products of a step: of linear layers and of their gradients, the inputs of the first aside."""
    made = [(torch.rand(BATCH, i), torch.rand(i, o), torch.rand(BATCH, o)) for _ in range(times) for i, o in layers]

    def step() -> None:
        for place, (x, weight, upstream) in enumerate(made):
            _ = x @ weight, x.T @ upstream
            if place % len(layers):
                _ = upstream @ weight.T

    return step


def concatenated() -> dict[str, Step]:
    """Value and gradient of I_NCE by the concatenated critic."""
    x, y = (torch.randn(BATCH, 100, requires_grad=True) for _ in range(2))
    naive = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 1))
    ours = Concat(100)

    def plain() -> None:
        rows = torch.cat([x[:, None].expand(-1, BATCH, -1), y.expand(BATCH, -1, -1)], 2).flatten(0, 1)
        (-infonce(naive(rows).view(BATCH, BATCH))).backward()

    return {"kpair": lambda: (-infonce(ours(x, y))).backward(), "plain torch": plain}


def objective(weights: Tensor, x: Tensor, labels: Tensor) -> float:
    """What both probes minimise."""
    rows = torch.cat([x, torch.ones(len(x), 1)], 1)
    return float(
        nn.functional.cross_entropy(rows @ weights, labels) + weights[:-1].square().sum() / (2 * probe.C * len(x))
    )


def probes(data: Halves) -> dict[str, Step]:
    """Both on raw pixels; refuses to compare where ours is not at least as good."""
    from sklearn.linear_model import LogisticRegression

    x, labels = data.train.x.float() / 255, data.train.labels
    x, _ = probe.scaled(x, x)
    saga = LogisticRegression(C=probe.C, solver="saga", tol=0.1, random_state=0)
    fitted = saga.fit(x.numpy(), labels.numpy())
    theirs = torch.cat([torch.from_numpy(fitted.coef_.T), torch.from_numpy(fitted.intercept_)[None]]).float()
    assert objective(probe.fit(x, labels), x, labels) <= objective(theirs, x, labels)
    return {"kpair": lambda: probe.fit(x, labels), "scikit-learn SAGA": lambda: saga.fit(x.numpy(), labels.numpy())}


def rounded(step: Step) -> Step:
    """The same step within autocast."""

    def inside() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step()

    return inside


def one_after_another(steps: Iterable[Step]) -> Step:
    """A step of each."""
    made = list(steps)

    def all_of_them() -> None:
        for step in made:
            step()

    return all_of_them


def compare(work: str, steps: dict[str, Step], goal: Goal | None, seconds: float, at_least: int = 5) -> Iterator[Row]:
    """The goal is for the first step against the second; every other is held against the second, or is a limit."""
    for step in steps.values():
        step()
    ours, peer, *others = steps
    times = by_turns(
        {name: Setting(step, clock=clock()) for name, step in steps.items()}, seconds=seconds, at_least=at_least
    )
    yield from compared(work, ours, peer, times, {}, [] if goal is None else [goal])
    for other in others:
        pair = (ours, other) if other in (ALONE, f"{peer}, {ROUNDED}") else (other, peer)
        yield from compared(work, *pair, times, {}, [])


def projection(data: Halves, seconds: float) -> Row:
    """Full iterations of one seed on MNIST times the median step of each configuration."""
    total, medians = 0.0, dict[str, float]()
    configs = [
        config
        for module in (invertible, conditioning, critics, architectures)
        for config in module.EXPERIMENT.plan("paper", "paper", "mnist")
    ]
    for config in configs:
        name = str([config[key] for key in ("encoder", "critic", "miner", "objective", "products")])
        if name not in medians:
            step = our_step(config, data)
            step()
            times = by_turns({name: Setting(step, clock=clock())}, seconds=seconds / 10, at_least=3)
            medians[name] = statistics.median(times[name])
        total += config["iterations"] * medians[name]
    critic = Concat(1, hidden=10, layers=5)
    optimiser = torch.optim.Adam(critic.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)

    def draw() -> None:
        loss = -infonce(critic(*sampling.pairs("dependent", generator)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    draw()
    of_sampling = statistics.median(by_turns({"": Setting(draw, clock=clock())}, seconds=seconds / 10)[""])
    total += of_sampling * sum(config["iterations"] for config in sampling.plan("paper", "paper", ""))
    hours = total / 3.6e6 / CORES
    return Row(
        work="one seed of MNIST, full iterations, steps alone, without figure 1c: ms of one core",
        ours="kpair",
        peer=None,
        ours_ms=total,
        peer_ms=None,
        ratio=None,
        spread=None,
        ours_mb=None,
        peer_mb=None,
        goal=f"{hours:.2f} hours on {CORES} cores (the whole set, run from end to end: {HOURS:g})",
        met=None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("paper.json"), metavar="FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="rounds of a work go on for so long")
    parser.add_argument("--data-root", type=Path, help="folder that holds MNIST/raw; without it the probe is left out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load(MADE_UP if options.data_root is None else "mnist", options.data_root)
    flow = asdict(training.Setting("paper", "paper", "mnist", "realnvp", "bilinear", "nce", 21_000, 1000, 1e-4))
    convnet = {"encoder": "convnet", "target": 2.0}
    mlp = flow | {"encoder": "mlp"}
    of_zuko = {}
    if find_spec("zuko") is not None:
        step = plain_step(FlowOfZuko, DIM)
        of_zuko = {"zuko": step, f"zuko, {ROUNDED}": rounded(step)}

    rows = [
        *compare(
            "concatenated critic, 128 x 128 pairs, value and gradient", concatenated(), Goal(6), options.seconds
        ),
        *compare(
            "RealNVP pair, 30 couplings, step",
            {
                f"kpair, {ROUNDED}": our_step(flow | {"products": "bfloat16"}, data),
                "plain torch": plain_step(PlainFlow, DIM),
                f"plain torch, {ROUNDED}": rounded(plain_step(PlainFlow, DIM)),
                "kpair": our_step(flow, data),
                ALONE: products([(196, 512), (512, 512), (512, 196)] * 30, 2),
                **of_zuko,
            },
            Goal(1.8),
            options.seconds,
        ),
        *compare(
            "ConvNet pair, step",
            {
                f"kpair, {ROUNDED}": our_step(flow | convnet | {"products": "bfloat16"}, data),
                "kpair": our_step(flow | convnet, data),
            },
            None,
            options.seconds,
        ),
        *compare(
            f"{SEEDS} seeds of the MLP pair, step",
            {
                f"stacked, {ROUNDED}": rounded(stacked_step()),
                "one after another": one_after_another(plain_step(plain_mlp, 100) for _ in range(SEEDS)),
                "stacked": stacked_step(),
                "kpair, one after another": one_after_another(our_step(mlp, data) for _ in range(SEEDS)),
                f"kpair, one after another, {ROUNDED}": one_after_another(
                    our_step(mlp | {"products": "bfloat16"}, data) for _ in range(SEEDS)
                ),
                ALONE: products([(DIM, 300), (300, 300), (300, 100)], 2 * SEEDS),
            },
            Goal(2.5),
            options.seconds,
        ),
    ]  # fmt: skip
    if options.data_root is not None:
        rows += compare("linear probe, 60,000 x 392", probes(data), Goal(4), options.seconds, at_least=3)
    rows.append(projection(data, options.seconds))
    write(rows, options.json, context(options.threads, PEERS))
    show(rows, f"the paper's experiments, {options.threads} threads")


if __name__ == "__main__":
    main()
