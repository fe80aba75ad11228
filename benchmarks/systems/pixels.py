"""Raw pixels: what the probes read without any encoder.

python -m benchmarks.systems.pixels --preset quick --data-root DATA
"""

from torch import nn

from benchmarks import series
from benchmarks.systems import data, report
from benchmarks.systems.runs import SEEDS, Blocks, Plan, System, parser, perform
from benchmarks.systems.training import Budget, Learner
from contrastive.errors import InputError


def build(shape: tuple[int, int, int]) -> Learner:
    """Nothing to train.

    Arguments:
        shape: of an image.
    """
    return Learner(
        nn.Identity(), loss=lambda images, rows: images.sum(), features={"": lambda images: images.flatten(1)}
    )


PLANS = {
    preset: Plan(Budget(batch=1, steps=0, lr=0.0, images=images))
    for preset, images in (("smoke", 64), ("quick", 20_000))
}
SYSTEMS = tuple(
    System(
        f"pixels of {name}",
        "Raw pixels",
        Blocks("none", "none", "none", "none", "none", "no"),
        build,
        PLANS,
        dataset=name,
        swaps=(),
    )
    for name in data.SOURCES
)


def main(given: list[str] | None = None) -> None:
    """Does what is missing and prints the table.

    Arguments:
        given: the words of the command line; None for those of the process.
    """
    made = parser(__doc__)
    made.set_defaults(seeds=1)  # nothing is drawn
    options = series.parsed(made, SEEDS, given)
    if options.preset == "paper":
        raise SystemExit("error: pixels have the presets smoke and quick")
    try:
        print(report.text(perform(SYSTEMS, options)))
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
