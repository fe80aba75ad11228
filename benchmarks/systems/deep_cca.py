"""Deep CCA (Andrew et al., 2013): two networks, one a half, whose outputs correlate as much as they can.

    python -m benchmarks.systems.deep_cca --preset quick --data-root DATA

The left half of a digit and the right one. Canonical directions are fitted on training outputs, their correlations are
summed over images that were not trained on; beside it linear CCA, which is the same of the pixels.
https://proceedings.mlr.press/v28/andrew13.html
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor, nn

from benchmarks.systems.data import Images
from benchmarks.systems.runs import Blocks, Goal, Plan, System, main
from benchmarks.systems.training import Budget, Figures, Learner, encoded, probed
from contrastive.correlation import linear_cca, total_correlation
from contrastive.data import ImageSplit
from contrastive.views import halves

# Of the baseline and of what is reported; that of the objective is an option.
RIDGE = 1e-3


def left(images: Tensor) -> Tensor:
    """The left halves, as rows."""
    return halves(images, across="columns")[0].flatten(1)


def right(images: Tensor) -> Tensor:
    """The right halves, as rows."""
    return halves(images, across="columns")[1].flatten(1)


def network(widths: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers with an activation in between.

    Arguments:
        widths: of input, hidden layers and output.
        activation: makes one.
    """
    layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), activation())]
    return nn.Sequential(*layers[:-1])


def build(
    shape: tuple[int, int, int],
    *,
    hidden: Sequence[int] = (800,),
    activation: str = "tanh",
    out: int = 50,
    ridge: float = 1e-3,
) -> Learner:
    """Puts it together.

    Arguments:
        shape: of an image.
        hidden: widths of the hidden layers of either network.
        activation: ``tanh`` or ``sigmoid``.
        out: width of the outputs, and so the number of correlations.
        ridge: added to the covariances of a batch.
    """
    channels, height, width = shape
    widths = (channels * height * (width // 2), *hidden, out)
    make = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[activation]
    x, y = network(widths, make), network(widths, make)

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        return -total_correlation(x(left(images)), y(right(images)), ridge=ridge)

    learner = Learner(modules=nn.ModuleList([x, y]), loss=loss, features={"left half": lambda images: x(left(images))})

    def measure(images: Images, judged_on: ImageSplit) -> Figures:
        outputs = total(lambda z: x(left(z)), lambda z: y(right(z)), images, judged_on, k=out)
        pixels = total(left, right, images, judged_on, k=out)
        return {"total correlation": outputs, "linear CCA": pixels, **probed(learner, images, judged_on)}

    return replace(learner, measure=measure)


def total(
    x: Callable[[Tensor], Tensor], y: Callable[[Tensor], Tensor], images: Images, judged_on: ImageSplit, *, k: int
) -> float:
    """The sum of the k largest correlations, of directions that training images choose.

    Arguments:
        x: images to rows.
        y: likewise.
        images: the data set.
        judged_on: where it is summed.
        k: how many, or as many as there are columns.
    """
    train, other = ((encoded(x, split.images), encoded(y, split.images)) for split in (images.train, judged_on))
    fitted = linear_cca(*train, k=min(k, train[0].shape[1], train[1].shape[1]), ridge=RIDGE)
    return float(fitted.correlations(*other).sum())


SYSTEM = System(
    "deep_cca",
    "Deep CCA: Deep Canonical Correlation Analysis (Andrew et al., 2013)",
    Blocks(
        views="left half, right half",
        encoder="one perceptron a half",
        critic="none",
        negatives="none: covariances of the batch",
        objective="sum of canonical correlations",
        nats="no: correlations, and information for jointly Gaussian outputs only",
    ),
    build,
    plans={
        "smoke": Plan(Budget(batch=64, steps=2, lr=1e-3, images=128, points=1), {"hidden": (16,), "out": 4}),
        "quick": Plan(Budget(batch=1500, steps=480, lr=2e-3, images=50_000)),
        "paper": Plan(
            Budget(
                batch=800,
                steps=690,
                lr=1e-3,
                images=55_000,
                optimiser="rmsprop",
                arguments={"weight_decay": 1e-5},
                warmup=0,
                decay=(),
            ),
            {"hidden": (1024, 1024, 1024), "activation": "sigmoid"},
        ),
    },
    dataset="mnist",
    seconds=0.1,
    swaps=(),
    goal=Goal("sum of 50 correlations at least 36", lambda row: row["trained"]["total correlation"], least=36.0),
)

if __name__ == "__main__":
    main(SYSTEM)
