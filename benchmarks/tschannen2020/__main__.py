"""Runs all experiments that miss runs, and writes the page.

    python -m benchmarks.tschannen2020 --preset quick --data-root DATA
    python -m benchmarks.tschannen2020 --preset quick --report-only

An interrupted series goes on where it stopped.
"""

from pathlib import Path

from benchmarks import series
from benchmarks.series import recorded
from benchmarks.tschannen2020 import (
    adversarial,
    architectures,
    baselines,
    cifar10,
    conditioning,
    critics,
    invertible,
    report,
    sampling,
)
from benchmarks.tschannen2020.runs import parsed, parser, perform, planned, results_of
from contrastive.errors import InputError

MODULES = (baselines, invertible, adversarial, conditioning, critics, architectures, sampling, cifar10)
EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", choices=EXPERIMENTS, help="experiments to run; the page shows all")
    made.add_argument("--report-only", action="store_true", help="run nothing")
    made.add_argument("--folder", type=Path, help="of the page (default: runs/tschannen2020-PRESET)")
    options = parsed(made)
    with series.refusals():
        if not options.report_only:
            perform([EXPERIMENTS[name] for name in options.only or EXPERIMENTS], options)
        # The page is of one plan: runs of other data sets, variants and budgets keep their lines.
        plans = {name: planned(experiment, options) for name, experiment in EXPERIMENTS.items()}
        rows = [row for row in recorded(results_of(options)) if row["config"] in plans.get(row["experiment"], [])]
        if not rows:
            raise InputError(
                f"{results_of(options)} holds no run of the preset {options.preset} on {options.data or 'mnist'}"
            )
    folder = options.folder or Path("runs") / f"tschannen2020-{options.preset}"
    print(report.write(list(EXPERIMENTS.values()), rows, folder, preset=options.preset))


if __name__ == "__main__":
    main()
