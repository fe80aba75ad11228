"""Raw pixels: what the probes read without any encoder; of MNIST the left halves too, beside Deep CCA.

python -m benchmarks.systems.pixels --preset quick --data-root DATA
"""

from functools import partial

import torch
from torch import nn

from benchmarks import series
from benchmarks.systems import report
from benchmarks.systems.deep_cca import left
from benchmarks.systems.runs import SEEDS, Blocks, Plan, System, parser, perform
from benchmarks.systems.training import Budget, Learner
from contrastive.errors import InputError


def build(shape: tuple[int, int, int], *, half: bool = False) -> Learner:
    """Nothing to train.

    Arguments:
        shape: of an image.
        half: whether the left half is all that is seen.
    """
    rows = left if half else partial(torch.flatten, start_dim=1)
    return Learner(nn.Identity(), loss=lambda images, rows: images.sum(), features={"": rows})


def pixels_of(name: str, told: str = "", *, images: int = 20_000, **options: bool) -> System:
    """The pixels of a data set, as a system that is not trained.

    Arguments:
        name: of the data set.
        told: behind its name.
        images: that probes are fitted on.
        options: of `build`.
    """
    counts = {"smoke": 64, "quick": images}
    return System(
        f"pixels of {name}{told}",
        "Raw pixels",
        Blocks("none", "none", "none", "none", "none", "no"),
        build,
        {preset: Plan(Budget(batch=1, steps=0, lr=0.0, images=n), options) for preset, n in counts.items()},
        dataset=name,
        swaps=(),
    )


SYSTEMS = (pixels_of("cifar10"), pixels_of("mnist"), pixels_of("mnist", ", left half", images=50_000, half=True))


def main(given: list[str] | None = None) -> None:
    """Does what is missing and prints the table.

    Arguments:
        given: the words of the command line; None for those of the process.
    """
    made = parser(__doc__)
    made.set_defaults(seeds=1)  # nothing is drawn
    options = series.parsed(made, SEEDS, given)
    with series.refusals():
        if options.preset == "paper":
            raise InputError("pixels have the presets smoke and quick")
        print(report.text(perform(SYSTEMS, options)))


if __name__ == "__main__":
    main()
