"""AMDIM (Bachman et al., 2019): features of one view predict those of another view, across scales.

    python -m benchmarks.systems.amdim --preset quick --data-root DATA
    python -m benchmarks.systems.amdim --preset quick --data-root DATA --arms mixture

https://arxiv.org/abs/1906.00910
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.systems.encoders import Bfloat16, standardised
from benchmarks.systems.runs import EIGHT_POINTS, Blocks, Plan, System, main
from benchmarks.systems.training import Budget, Learner
from contrastive import InnerProduct
from contrastive.bounds import Bound
from contrastive.mixture import mixture_loss
from contrastive.pairings import other_groups
from contrastive.receptive import ReceptiveNet
from contrastive.scores import WeighsNegatives
from contrastive.taps import Taps, groups_of, random_place, rows_of
from contrastive.terms import Term, total
from contrastive.views import RandomView, mirrored
from contrastive.wrappers import ResidualHead


def build(
    shape: tuple[int, int, int],
    *,
    miner: WeighsNegatives | None = None,
    critic: Callable[[int], nn.Module] | None = None,
    width: int = 32,
    out: int = 128,
    depth: int = 2,
    clip: float = 20.0,
    penalty: float = 5e-2,
    components: int = 0,
    sharpness: float = 1.0,
    entropy: float = 1.0,
    bfloat16: bool = True,
) -> Learner:
    """Puts it together.

    Arguments:
        shape: of an image: 32 or 64 pixels a side.
        miner: weighs the negatives.
        critic: in the place of the inner product.
        width: channels of the encoder's first layer.
        out: width in which features are scored.
        depth: of the residual blocks.
        clip: scores are bounded by it, by a hyperbolic tangent.
        penalty: weight of the squared scores before the clip.
        components: global features that share out the places of the other view; 0 for none (as released).
        sharpness: of their responsibilities.
        entropy: weight of the entropy of responsibilities.
        bfloat16: whether the encoder computes in it.
    """
    if components and miner is not None:
        raise ValueError("AMDIM: the mixture's loss weighs no negatives, expected components=0 with a miner")
    view = RandomView(shape[0], mirror=False)
    net = ReceptiveNet(shape[0], size=shape[1], width=width, out=out, depth=depth)
    encoder = Bfloat16(Taps(net, {"1": "f1", "5": "f5", "7": "f7"}), enabled=bfloat16)
    heads = nn.ModuleDict({tap: ResidualHead(net.local_dim, out) for tap in ("5", "7")})
    scores = InnerProduct(out**0.5) if critic is None else critic(out)

    def term(source: str, target: str) -> Term:
        options = {"pairing": other_groups, "miner": miner, "clip": clip, "penalty": penalty}
        return Term(source, target, scores, **options)

    terms = nn.ModuleList([term("1", "5"), term("1", "7"), term("a 5", "5")])
    mixer = nn.ModuleList([nn.Linear(out, out) for _ in range(components)])

    def mapped(images: Tensor) -> dict[str, Tensor]:
        maps = encoder(standardised(view(images)))
        heard = {tap: head(maps[tap]) for tap, head in heads.items()}
        return {"1": maps["1"], **heard, "a 5": random_place(heard["5"])}

    def mixed(x: dict[str, Tensor], y: dict[str, Tensor]) -> Tensor:
        """The components of x's global feature share out the places of y's 7 x 7 map."""
        source, target = rows_of(x["1"]), rows_of(y["7"])
        each = torch.stack([scores(component(source), target) for component in mixer])
        pairing = other_groups(groups_of(x["1"]), groups_of(y["7"]))
        return mixture_loss(each, pairing, sharpness=sharpness, entropy=entropy, clip=clip, penalty=penalty)

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        images = mirrored(images)
        x, y = mapped(images), mapped(images)
        summed = total(list(terms), x, y, both=True)
        return summed + (mixed(x, y) + mixed(y, x)) / 2 if components else summed

    def in_nats(images: Tensor) -> Bound:
        return terms[0].bound(mapped(images), mapped(images))

    return Learner(
        modules=nn.ModuleList([encoder, heads, terms, mixer]),
        loss=loss,
        features={"f1": lambda images: encoder(standardised(images))["1"]},
        bound=in_nats,
    )


ADAM = {"betas": (0.8, 0.999), "weight_decay": 1e-5}
SYSTEM = System(
    "amdim",
    "AMDIM: Learning Representations by Maximizing Mutual Information Across Views (Bachman et al., 2019)",
    Blocks(
        views="two augmentations x maps of 1, 5 and 7 places",
        encoder="one, without padding, with taps",
        critic="inner product / sqrt d, penalised, then 20 tanh(s / 20)",
        negatives="all places of other images (`other_groups`)",
        objective="K-pair of each positive; 1 -> 5, 1 -> 7, 5 -> 5, both directions; or mixtures",
        nats="log B - L of a term, of the places' mean; not log of all places",
    ),
    build,
    plans={
        "smoke": Plan(
            Budget(batch=16, steps=2, lr=1e-3, images=64, points=1),
            {"width": 4, "out": 8, "depth": 1},
            {"released": {}, "mixture": {"components": 2}},
        ),
        "quick": Plan(
            Budget(batch=128, steps=250, lr=1e-3, arguments=ADAM),
            arms={"released": {}, "mixture": {"components": 4}},
        ),
        "paper": Plan(
            Budget(
                batch=480,
                steps=300 * (45_000 // 480),
                lr=2e-4,
                images=45_000,
                arguments=ADAM,
                warmup=500,
                decay=(0.833, 0.933),
                factor=0.2,
            ),
            {"width": 256, "out": 2048, "depth": 10, "bfloat16": False},
            {"released": {}, "mixture": {"components": 4}},
        ),
    },
    mined=lambda options: not options.get("components"),
    goal=EIGHT_POINTS,
)

if __name__ == "__main__":
    main(SYSTEM)
