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
from benchmarks.tschannen2020.runs import on_data, parsed, parser, perform, planned, results_of, takes
from contrastive.errors import InputError

MODULES = (baselines, invertible, adversarial, conditioning, critics, architectures, sampling, cifar10)
EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", choices=EXPERIMENTS, help="experiments to run; the page shows all")
    made.add_argument("--report-only", action="store_true", help="run nothing")
    made.add_argument(
        "--folder", type=Path, help="of the page (default: runs/tschannen2020-PRESET, with what else was chosen)"
    )
    options = parsed(made)
    with series.refusals():
        meant = [each for each in EXPERIMENTS.values() if takes(each, options.data)]
        named = on_data([EXPERIMENTS[name] for name in options.only], options.data) if options.only else meant
        if not options.report_only:
            perform(named, options)
        # The page is of one plan: runs of other data sets, variants and budgets keep their lines.
        plans = {experiment.name: planned(experiment, options) for experiment in meant}
        rows = [row for row in recorded(results_of(options)) if row["config"] in plans.get(row["experiment"], [])]
        if not rows:
            raise InputError(
                f"{results_of(options)} holds no run of the preset {options.preset} on {options.data or 'mnist'}"
            )
    variant = "" if options.variant == "paper" else options.variant
    chosen = [word for word in (options.preset, options.data, variant, options.products) if word]
    folder = options.folder or Path("runs") / "-".join(["tschannen2020", *chosen])
    told = ", ".join([f"Preset {chosen[0]}", *chosen[1:]])
    print(report.write(meant, rows, folder, told=told))


if __name__ == "__main__":
    main()
