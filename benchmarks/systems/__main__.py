"""Runs all systems that miss runs, and writes the page.

    python -m benchmarks.systems --preset quick --data-root DATA
    python -m benchmarks.systems --preset quick --report-only
    python -m benchmarks.systems --blocks

An interrupted series goes on where it stopped.
"""

from benchmarks import lines, series
from benchmarks.systems import (
    amdim,
    cmc,
    cpc,
    deep_cca,
    deep_infomax,
    iic,
    imsat,
    mine,
    moco,
    report,
    simclr,
    time_contrastive,
)
from benchmarks.systems.runs import SEEDS, folder_of, of_preset, parser, perform, results_of
from contrastive.errors import InputError

MODULES = (simclr, moco, cmc, deep_infomax, amdim, cpc, time_contrastive, mine, deep_cca, iic, imsat)
SYSTEMS = {module.SYSTEM.name: module.SYSTEM for module in MODULES}


def main(given: list[str] | None = None) -> None:
    made = parser(__doc__, page="systems")
    made.add_argument("--only", nargs="+", choices=SYSTEMS, help="systems to run; the page shows all")
    made.add_argument("--report-only", action="store_true", help="run nothing")
    made.add_argument("--blocks", action="store_true", help="only print in what the systems differ")
    options = series.parsed(made, SEEDS, given)
    if options.blocks:
        print(lines.markdown(report.blocks(list(SYSTEMS.values()))))
        return
    with series.refusals():
        if not options.report_only:
            perform([SYSTEMS[name] for name in options.only or SYSTEMS], options)
        rows = of_preset(list(SYSTEMS.values()), options)
        if not rows:
            raise InputError(f"{results_of(options)} holds no run of the preset {options.preset}")
    print(report.write(list(SYSTEMS.values()), rows, folder_of(options, "systems"), preset=options.preset))


if __name__ == "__main__":
    main()
