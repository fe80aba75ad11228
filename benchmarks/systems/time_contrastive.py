"""Time-contrastive networks (Sermanet et al., 2018): two cameras at the same moment, against other moments.

    python -m benchmarks.systems.time_contrastive --preset quick --data-root DATA

The videos are made up of digits: one turns and drifts, twelve frames, seen by two cameras. The second one sees it
sheared, nearer and inverted; something passes before both. It is trained on the digits 0 to 4 and judged on videos of
the digits 5 to 9. https://arxiv.org/abs/1704.06888
"""

import math
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.systems.data import Images
from benchmarks.systems.runs import Blocks, Goal, Plan, System, main
from benchmarks.systems.training import Budget, Figures, Learner
from contrastive import InnerProduct, NegativeSquaredDistance, pairwise_loss
from contrastive.data import ImageSplit
from contrastive.pairings import Pairing, contrast, within_groups
from contrastive.scores import WeighsNegatives
from contrastive.views import same_moments
from miners import semihard

FRAMES = 12
# Videos that the alignment is measured on.
VIDEOS = 300


def film(digits: Tensor, *, camera: int, hidden: float) -> Tensor:
    """Twelve frames of every digit: half a turn, from left to right.

    Arguments:
        digits: ``[n, 1, h, w]`` in [0, 1].
        camera: 0 sees it straight; 1 sheared, nearer and inverted.
        hidden: side of the square that is in the way, as a share of the frame's, at a place of its own in every frame.

    Returns:
        ``[n, frames, 1, h, w]``.
    """
    time = torch.arange(FRAMES, dtype=torch.float32).repeat(len(digits))
    turn = math.pi * time / FRAMES
    shift = 0.25 * (2 * time / FRAMES - 1)
    rows = [[turn.cos(), -turn.sin(), shift], [turn.sin(), turn.cos(), torch.zeros_like(turn)]]
    warp = torch.stack([torch.stack(row, 1) for row in rows], 1)
    if camera:
        warp[:, 0, 1] += 0.35
        warp = 1.25 * warp
    images = digits.repeat_interleave(FRAMES, 0)
    grid = nn.functional.affine_grid(warp, list(images.shape), align_corners=False)
    frames = nn.functional.grid_sample(images, grid, align_corners=False)
    frames = 0.8 * (1 - frames) if camera else frames
    frames = frames + 0.1 * torch.randn_like(frames)
    return _hide(frames, hidden).unflatten(0, (len(digits), FRAMES))


def _hide(frames: Tensor, share: float) -> Tensor:
    """Greys a square of every frame, anywhere."""
    side = frames.shape[-1]
    place = torch.arange(side, dtype=torch.float32)
    low = torch.rand(2, len(frames), 1) * (1 - share) * side
    row, column = ((place >= start) & (place < start + share * side) for start in low)
    return frames.masked_fill((row[:, :, None] & column[:, None])[:, None], 0.5)


def triplets(scores: Tensor, pairing: Pairing, *, miner: WeighsNegatives | None, margin: float = 0.2) -> Tensor:
    """FaceNet's hinge; the negatives that are kept are the miner's."""
    scores, targets = pairing.masked(scores), pairing.targets
    log_weights = None if miner is None else miner(scores, targets)
    return pairwise_loss(scores, targets, link=lambda d: torch.relu(d + margin), log_weights=log_weights)


def build(
    shape: tuple[int, int, int],
    *,
    miner: WeighsNegatives | None = None,
    critic: Callable[[int], nn.Module] | None = None,
    triplet: bool = False,
    widths: Sequence[int] = (32, 64),
    hidden: int = 128,
    out: int = 32,
    moments: int = 6,
    occlusion: float = 0.4,
    shrink: float = 2e-3,
) -> Learner:
    """Puts it together.

    Arguments:
        shape: of a digit.
        miner: weighs the negatives; of triplets None keeps the semi-hard ones.
        critic: in the place of the inner product, or of the squared distance of unit vectors.
        triplet: whether the objective is FaceNet's hinge rather than K-pair.
        widths: of the convolutions, 4 x 4 of stride 2.
        hidden: of the layer before the last.
        out: width of a frame's embedding.
        moments: of a video in a batch.
        occlusion: side of the square in the way, as a share of the frame's.
        shrink: weight of the embeddings' squared length (K-pair), as in the released code's loss.
    """
    layers: list[nn.Module] = []
    channels, side = shape[0], shape[1] // 2 ** len(widths)
    for width in widths:
        layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU()]
        channels = width
    encoder = nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(channels * side**2, hidden), nn.ReLU(), nn.Linear(hidden, out)
    )
    own = NegativeSquaredDistance() if triplet else InnerProduct()
    scores = own if critic is None else critic(out)
    kept = semihard(0.2) if triplet and miner is None else miner

    def cameras(digits: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (film(digits, camera=camera, hidden=occlusion) for camera in (0, 1))
        return first, second

    def embedded(frames: Tensor) -> Tensor:
        z = encoder(frames - 0.5)
        return nn.functional.normalize(z, dim=1) if triplet else z

    def loss(digits: Tensor, rows: Tensor) -> Tensor:
        first, second, videos = same_moments(*cameras(digits), moments)
        x, y = embedded(first), embedded(second)
        pairing = within_groups(videos, videos)
        matrix = scores(x, y)
        if triplet:
            return triplets(matrix, pairing, miner=kept).mean()
        length = (x.square().sum(1).mean() + y.square().sum(1).mean()) / 4
        return contrast(matrix, pairing, miner=miner).mean() + shrink * length

    @torch.no_grad()
    def measure(images: Images, judged_on: ImageSplit) -> Figures:
        torch.manual_seed(0)  # the same videos for every run
        first, second = cameras(judged_on.images[:VIDEOS].float() / 255)
        x, y = (embedded(each.flatten(0, 1)).unflatten(0, each.shape[:2]) for each in (first, second))
        error = statistics.fmean(alignment_error(scores(*pair)) for pair in zip(x, y, strict=True))
        pixels = zip(first.flatten(2), second.flatten(2), strict=True)
        of_pixels = statistics.fmean(alignment_error(NegativeSquaredDistance()(*pair)) for pair in pixels)
        return {"alignment_error": error, "alignment_error of pixels": of_pixels}

    return Learner(modules=nn.ModuleList([encoder, scores]), loss=loss, features={}, measure=measure)


def alignment_error(scores: Tensor) -> float:
    """How far in time the best match of a frame is from its own moment, as a share of the video, on average.

    Arguments:
        scores: every frame of the one camera against every frame of the other.
    """
    moments = torch.arange(len(scores))
    return float((scores.argmax(1) - moments).abs().float().mean() / len(scores))


def unseen_digits(images: Images) -> Images:
    """Videos of the digits 0 to 4 to train on, of 5 to 9 to choose and to judge by.

    Arguments:
        images: of all ten digits.
    """
    judged = (split.subset(split.labels >= 5) for split in (images.held_out, images.test))
    return Images(images.train.subset(images.train.labels < 5), *judged)


SYSTEM = System(
    "time_contrastive",
    "TCN: Time-Contrastive Networks: Self-Supervised Learning from Video (Sermanet et al., 2018)",
    Blocks(
        views="two cameras at the same moment",
        encoder="one, shared",
        critic="inner product, or minus the squared distance of unit vectors",
        negatives="other moments of the same video (`within_groups`)",
        objective="K-pair (n-pairs), or semi-hard triplets",
        nats="no: a video's frames know of each other",
    ),
    build,
    plans={
        "smoke": Plan(
            Budget(batch=4, steps=2, lr=1e-3, images=64, points=1),
            {"widths": (4, 8), "hidden": 8, "out": 4},
            {"n-pairs": {}, "triplets": {"triplet": True}},
        ),
        "quick": Plan(Budget(batch=32, steps=1000, lr=1e-3), arms={"n-pairs": {}, "triplets": {"triplet": True}}),
        "paper": Plan(
            Budget(batch=36, steps=100_000, lr=1e-3, images=55_000, warmup=0, decay=()),
            {"widths": (64, 128, 256), "hidden": 2048, "occlusion": 0.0},
            {"n-pairs": {}, "triplets": {"triplet": True}},
        ),
    },
    dataset="mnist",
    select=unseen_digits,
    goal=Goal(
        "alignment error at most 0.1, on digits not seen", lambda row: row["trained"]["alignment_error"], most=0.1
    ),
)

if __name__ == "__main__":
    main(SYSTEM)
