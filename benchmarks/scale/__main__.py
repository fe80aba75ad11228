"""Step time, memory and bytes of the global loss over ranks on this machine, and a projection to clusters.

    python -m benchmarks.scale
    python -m benchmarks.scale --table

Every rank is a process with one thread, and they share the machine's cores: times say what the exchange costs, and
nothing about speed. Bytes are the loopback device's own count. Rows go to ``results.json``.
"""

import argparse
import json
from pathlib import Path

from benchmarks import lines
from benchmarks.scale.steps import measured
from benchmarks.scale.wire import CLUSTER, projected
from benchmarks.speed.measure import context

RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", default="1,2,4", help="numbers of ranks")
    parser.add_argument("--pairs", default="256,1024", help="pairs of a rank")
    parser.add_argument("--width", type=int, default=256, help="of an embedding")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each scheme, by turns")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the rows go")
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there")
    arguments = parser.parse_args()
    if not arguments.table:
        rows = [
            {**row, **context(1)}
            for pairs in map(int, arguments.pairs.split(","))
            for world in map(int, arguments.worlds.split(","))
            for row in measured(world, pairs, arguments.width, arguments.rounds)
        ]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(tables(json.loads(arguments.json.read_text(encoding="utf-8"))))


def tables(rows: list[dict]) -> str:
    """What was measured, and what follows for clusters, as markdown."""
    body = [
        [
            row["scheme"], str(row["world"]), str(row["pairs"]), str(row["world"] * row["pairs"]),
            f"{row['ms']:.0f} [{row['quartiles'][0]:.0f}, {row['quartiles'][1]:.0f}]", f"{row['mb']:.1f}",
            f"{row['bytes'] / 1e6:.2f}", f"{row['formula'] / 1e6:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    head = ["", "ranks", "pairs a rank", "in all", "ms a step", "MB a rank", "MB on the wire", "by formula"]
    parts = [lines.markdown([head, *body])]
    body = []
    for world in (8, 64, 1024):
        for ring in (False, True):
            p = projected(world, 1024, 512, ring=ring)
            body.append(
                [
                    "ring" if ring else "gather", str(world), f"{world * 1024:,}", f"{p.gigabytes:.2f}",
                    f"{p.wire_ms:.1f}", f"{p.products_ms:.2f}", f"{p.keys_gb:.2f}",
                ]
            )  # fmt: skip
    head = ["", "GPUs", "pairs in all", "GB sent by each", "ms on the wire", "ms of products", "GB held of others"]
    parts += [f"Projected, 1,024 pairs of width 512 a GPU, {CLUSTER}:", lines.markdown([head, *body])]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
