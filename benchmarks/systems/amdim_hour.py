"""AMDIM with an hour of two cores instead of minutes of one, and its curve beside what the authors reached.

    python -m benchmarks.systems.amdim_hour --preset quick --data-root DATA --threads 2

As released, on 45,000 training images; on the way a linear probe of 10,000 of them on 5,000 held-out ones.
"""

from dataclasses import replace
from typing import Any

from benchmarks import series
from benchmarks.systems import amdim, report
from benchmarks.systems.data import Images
from benchmarks.systems.runs import SEEDS, Plan, parser, perform
from benchmarks.systems.training import Budget, Figures, Learner, few
from contrastive.errors import InputError
from contrastive.probing import knn_accuracy, linear_accuracy

PUBLISHED = 0.912  # linear probe on CIFAR-10 (Bachman et al., 2019)
CURVE_IMAGES = 10_000


def build(shape: tuple[int, int, int], **options: Any) -> Learner:
    """`amdim.build`, with a linear probe on the way.

    Arguments:
        shape: of an image.
        options: of `amdim.build`.
    """
    learner = amdim.build(shape, **options)

    def glance(images: Images) -> Figures:
        rows = few(learner.features["f1"], images, CURVE_IMAGES)
        return {"held_out_linear": linear_accuracy(*rows), "held_out_knn": knn_accuracy(*rows)}

    return replace(learner, glance=glance)


SYSTEM = replace(
    amdim.SYSTEM,
    name="amdim, an hour",
    build=build,
    plans={
        "smoke": replace(amdim.SYSTEM.plans["smoke"], arms={"": {}}),
        "quick": Plan(
            Budget(batch=128, steps=5000, lr=1e-3, images=45_000, arguments=amdim.ADAM, warmup=200, points=10),
            {"width": 48, "out": 256},
        ),
    },
    goal=None,
)


def main(given: list[str] | None = None) -> None:
    """Does what is missing and prints the table.

    Arguments:
        given: the words of the command line; None for those of the process.
    """
    made = parser(__doc__)
    made.set_defaults(seeds=1)
    options = series.parsed(made, SEEDS, given)
    with series.refusals():
        if options.preset == "paper":
            raise InputError("the hour has the presets smoke and quick")
        print(report.text(perform([SYSTEM], options)))


if __name__ == "__main__":
    main()
