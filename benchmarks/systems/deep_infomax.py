"""Deep InfoMax (Hjelm et al., 2019): the code of an image and the places of its own maps recognise each other.

    python -m benchmarks.systems.deep_infomax --preset quick --data-root DATA
    python -m benchmarks.systems.deep_infomax --preset quick --data-root DATA --arms "local, NCE" --miner "hcl 1"

https://arxiv.org/abs/1808.06670
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from benchmarks.systems.encoders import Bfloat16, standardised, strided
from benchmarks.systems.runs import EIGHT_POINTS, Blocks, Plan, System, main
from benchmarks.systems.training import Budget, Learner
from contrastive import InnerProduct
from contrastive.bounds import Bound
from contrastive.encoders import MLP
from contrastive.estimators import donsker_varadhan, jensen_shannon
from contrastive.pairings import contrast, other_groups
from contrastive.priors import PriorMatching
from contrastive.scores import WeighsNegatives
from contrastive.taps import Taps
from contrastive.terms import Term, maximised, total
from contrastive.wrappers import ResidualHead

OBJECTIVES = {"nce": contrast, "jsd": maximised(jensen_shannon), "dv": maximised(donsker_varadhan)}


def build(
    shape: tuple[int, int, int],
    *,
    miner: WeighsNegatives | None = None,
    critic: Callable[[int], nn.Module] | None = None,
    objective: str = "nce",
    scope: str = "local",
    widths: Sequence[int] = (64, 128, 256),
    hidden: int = 512,
    code: int = 64,
    units: int = 256,
    prior: float = 0.0,
    bfloat16: bool = True,
) -> Learner:
    """Puts it together.

    Arguments:
        shape: of an image.
        miner: weighs the negatives; of the objective ``nce`` only.
        critic: in the place of residual heads and an inner product: scores linear maps of both sides.
        objective: ``nce``, ``jsd`` or ``dv``.
        scope: ``local``: the code against every place of the second map; ``global``: against the whole last map.
        widths: of the convolutions.
        hidden: of the layer between the convolutions and the code.
        code: width of the code.
        units: width in which both sides are scored.
        prior: weight of the loss that makes codes uniform in the unit cube, gamma; 0 matches no prior.
        bfloat16: whether the encoder computes in it.

    Raises:
        ValueError: for images that are not square, or that the convolutions halve to nothing.
    """
    side = shape[1] // 2 ** len(widths)
    if shape[1] != shape[2] or side < 1:
        raise ValueError(
            f"Deep InfoMax: got images of {shape[1]} x {shape[2]} pixels, expected squares of at least "
            f"{2 ** len(widths)} pixels a side: {len(widths)} convolutions halve them"
        )
    convolutions = strided(shape[0], widths)
    encoder = nn.Sequential(
        OrderedDict(
            convolutions=convolutions,
            flat=nn.Flatten(),
            fc=nn.Sequential(nn.Linear(widths[-1] * side**2, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            code=nn.Linear(hidden, code),
        )
    )
    target = {"local": "convolutions.map2", "global": "flat"}[scope]
    taps = Bfloat16(Taps(encoder, {"map": target, "fc": "fc", "code": ""}), enabled=bfloat16)
    wide = {"local": widths[1], "global": widths[-1] * side**2}[scope]
    if critic is None:
        # A head's norm is over channels and places of one image: no statistics of a batch.
        head = partial(ResidualHead, out=units, norm=lambda width: nn.GroupNorm(1, width))
        scores: nn.Module = InnerProduct(units**0.5)
    else:
        head, scores = partial(nn.Conv2d, out_channels=units, kernel_size=1), critic(units)
    heads = nn.ModuleDict({"code": head(code), "map": head(wide)})
    term = Term("code", "map", scores, pairing=other_groups, objective=OBJECTIVES[objective], miner=miner)

    # The published discriminator; without batch norm, which `PriorMatching` refuses.
    matching = nn.ModuleList()
    if prior:
        matching.append(PriorMatching(MLP(code, hidden=(1000, 200), out=1, batch_norm=False)))

    def headed(maps: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: head(maps[name]) for name, head in heads.items()}

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        maps = taps(standardised(images))
        scored = headed(maps)
        summed = total([term], scored, scored)
        for match in matching:
            of_encoder, of_discriminator = match(maps["code"].flatten(1))
            summed = summed + prior * of_encoder.mean() + of_discriminator.mean()
        return summed

    def in_nats(images: Tensor) -> Bound:
        maps = headed(taps(standardised(images)))
        return term.bound(maps, maps)

    return Learner(
        modules=nn.ModuleList([taps, heads, term, matching]),
        loss=loss,
        features={name: lambda images, name=name: taps(standardised(images))[name] for name in ("fc", "code")},
        bound=in_nats,
    )


ARMS = {
    "local, NCE": {},
    "local, JSD": {"objective": "jsd"},
    "local, DV": {"objective": "dv"},
    "global, NCE": {"scope": "global"},
    "local, NCE, prior": {"prior": 0.1},
}
SYSTEM = System(
    "deep_infomax",
    "Deep InfoMax: Learning Deep Representations by Mutual Information Estimation (Hjelm et al., 2019)",
    Blocks(
        views="one image: its code and its 8 x 8 map, or its whole last map",
        encoder="one, with taps",
        critic="residual 1 x 1 heads, inner product / sqrt d",
        negatives="all places of other images (`other_groups`)",
        objective="K-pair of each positive, Jensen-Shannon or Donsker-Varadhan; a prior of the code, if wanted",
        nats="log B - L of NCE, of the places' mean; none of the others while training",
    ),
    build,
    plans={
        "smoke": Plan(
            Budget(batch=16, steps=2, lr=1e-3, images=64, points=1),
            {"widths": (4, 8), "hidden": 16, "code": 4, "units": 8},
            ARMS,
        ),
        "quick": Plan(Budget(batch=128, steps=500, lr=1e-3), arms=ARMS),
        "paper": Plan(
            Budget(batch=64, steps=703_000, lr=1e-4, images=45_000, warmup=0, decay=()),
            {"hidden": 1024, "units": 2048, "bfloat16": False},
            {
                "local, JSD": {"objective": "jsd", "prior": 0.1},
                "local, NCE": {"units": 1024, "prior": 0.1},
                "local, DV": {"objective": "dv", "prior": 0.1},
                "global, JSD": {"scope": "global", "objective": "jsd", "prior": 1.0},
            },
        ),
    },
    mined=lambda options: options.get("objective", "nce") == "nce",
    goal=EIGHT_POINTS,
)

if __name__ == "__main__":
    main(SYSTEM)
