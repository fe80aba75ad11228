"""``kpair mine``: the hardest negatives of every row of a file of embeddings, as a parquet table."""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from contrastive import launch, runs, vectors
from contrastive.allpairs import AllPairs
from contrastive.cli.progress import progress_bar
from contrastive.errors import InputError
from contrastive.files import replacing, sha256_of, write_text
from contrastive.options import parse
from contrastive.retrieval import Ranking, as_rows, label_ids

__all__ = ["mine"]

# Anchors of a part, which is a row group of the table and the most that a killed run loses.
BLOCK = 2**14
# Anchors between two signs of life.
_STEP = 2**11
# Anchors on which an approximate index is compared with the exact search.
_SAMPLE = 1000
_FINGERPRINT = "fingerprint.json"


def mine(words: list[str]) -> None:
    """Mines a file of embeddings and writes a table of anchor, negative, rank (from 1) and score.

    Anchors are mined in blocks, each of which is kept as a part beside the table until all are there: a killed run goes
    on with ``--resume auto``, and ends with the table that it would have written.

    Arguments:
        words: of the command line, after the command.

    Raises:
        InputError: for anything the user can mend; nothing is written then.
    """
    options = parse(
        words,
        prog="kpair mine",
        description="Finds the hardest negatives of every row of a file of embeddings, and writes them as a table of "
        "anchor, negative, rank and score. A row with fewer than k negatives has fewer rows in it.",
        parts={},
        add_options=_add_options,
    )
    if launch.launched():
        raise launch.RefusedByAll("kpair mine is one process: call it without torchrun")
    start = time.perf_counter()
    out = _checked_out(options)
    pairs, fingerprint = _prepared(options)
    count = len(pairs.rows)
    if not 1 <= options["k"] < count:
        raise InputError(f"--k is {options['k']}, expected 1 to {count - 1}, the other rows of {options['embeddings']}")
    parts = out.with_name(f"{out.name}.parts")
    if out.exists():
        if _fingerprint_of(out) != fingerprint:
            raise InputError(f"--out: {out} holds other negatives: choose another name")
        print(f"{out} is finished; nothing is left to do")
        return
    _claim(parts, fingerprint, resume=options["resume"] == "auto")
    left = [first for first in range(0, count, BLOCK) if not (parts / _name(first)).exists()]
    progress = sys.stderr.isatty() if options["progress"] is None else options["progress"]
    try:
        for first, ranking in _mined(pairs, options["k"], left, progress=progress):
            _write_part(parts / _name(first), first, ranking)
        # Before the table is there: a run that is killed here measures it when it is resumed.
        recall = None if options["index"] == "exact" else _recall(pairs, options["k"])
        rows = _join(out, parts, range(0, count, BLOCK), fingerprint)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error}; --resume auto goes on") from error
    mined = sum(min(BLOCK, count - first) for first in left)
    seconds = time.perf_counter() - start
    shutil.rmtree(parts)
    resumed = "" if mined == count else f" ({count - mined:,} anchors were mined before)"
    print(
        f"{out}: {count:,} anchors, {rows:,} pairs in {seconds:.1f} seconds{resumed}; {runs.peak_mb():.0f} MB at most"
    )
    if recall is not None:
        found = f"on {min(_SAMPLE, count):,} anchors: {100 * recall:.1f} %"
        print(f"recall of {options['index']} against exact search, {found}")


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("embeddings", type=str, help="a file of embeddings (.npy .npz .safetensors .parquet .pt)")
    add("--k", type=int, default=50, help="negatives of each row")
    add("--out", type=str, default="negatives.parquet", metavar="FILE", help="the table, which must not exist")
    add("--labels", type=str | None, default=None, help="file of labels, one a row: the same label is no negative")
    add(
        "--threshold",
        type=float | None,
        default=None,
        help="score above which a row is a duplicate and no negative, in units of the metric",
    )
    add(
        "--metric",
        type=Literal["cosine", "inner_product", "euclidean"],
        default="cosine",
        help="what is hard; euclidean: minus the squared distance",
    )
    add(
        "--index",
        type=str,
        default="exact",
        metavar="NAME",
        help="exact | a FAISS factory string such as IVF4096,Flat: approximate, its recall is measured",
    )
    add("--nprobe", type=int, default=32, help="of an inverted file (IVF), how many of its lists are searched")
    add(
        "--resume",
        type=Literal["auto", "never"],
        default="never",
        help="auto: continue what was killed, of the same embeddings and options, or start",
    )
    add("--progress", type=bool | None, default=None, help="whether to show progress (default: on a terminal)")


# --- before anything is written ---------------------------------------------------------------------------------------


def _checked_out(options: Mapping[str, Any]) -> Path:
    """What can be refused before the embeddings are read."""
    out = Path(options["out"])
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError("the table needs pyarrow: pip install 'kpair[parquet]'") from None
    if out.suffix != ".parquet":
        raise InputError(f"--out is {out}, expected a name that ends in .parquet")
    if not out.parent.is_dir():
        raise InputError(f"--out: {out.parent} is no folder")
    if out.exists() and options["resume"] == "never":
        raise InputError(f"--out: {out} exists: choose another name")
    if options["nprobe"] < 1:
        raise InputError(f"--nprobe is {options['nprobe']}, expected at least 1")
    if not Path(options["embeddings"]).is_file():
        raise InputError(f"{options['embeddings']} does not exist: expected a file of embeddings")
    return out


def _prepared(options: Mapping[str, Any]) -> tuple[AllPairs, dict[str, Any]]:
    """The search, and what makes a part of one run a part of another."""
    file = Path(options["embeddings"])
    embeddings, _ = vectors.read(file, mapped=True)
    rows = as_rows("kpair mine", "embeddings", embeddings)
    if len(rows) < 2:
        raise InputError(f"{file} holds {len(rows)} row, expected at least 2")
    kept = ("k", "threshold", "metric", "index", "nprobe")
    fingerprint = {name: options[name] for name in kept} | {
        "embeddings": sha256_of(file),
        "labels": None,
        "block": BLOCK,
    }
    classes: Tensor | None = None
    if options["labels"] is not None:
        labels = vectors.read_labels(Path(options["labels"]))
        if len(labels) != len(rows):
            raise InputError(f"{file} holds {len(rows)} embeddings, and there are {len(labels)} labels")
        (classes,) = label_ids("kpair mine", ("labels", labels, len(rows)))
        fingerprint["labels"] = sha256_of(Path(options["labels"]))
    pairs = AllPairs(
        "kpair mine",
        rows,
        metric=options["metric"],
        classes=classes,
        threshold=options["threshold"],
        index=None if options["index"] == "exact" else options["index"],
        nprobe=options["nprobe"],
    )
    return pairs, fingerprint


def _claim(parts: Path, fingerprint: Mapping[str, Any], *, resume: bool) -> None:
    """Makes the folder of parts, or finds that it is of the same embeddings and options."""
    if parts.exists():
        if not resume:
            raise InputError(f"--out: {parts} holds an unfinished run: continue it with --resume auto, or remove it")
        try:
            found = json.loads((parts / _FINGERPRINT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"--resume: {parts / _FINGERPRINT} cannot be read: {error}") from error
        if different := [name for name in fingerprint if found.get(name) != fingerprint[name]]:
            raise InputError(
                f"--resume: {parts} is of a run with other {', '.join(different)}: remove it to start anew"
            )
        return
    try:
        # Whole or absent: a folder without its fingerprint would have to be removed by hand.
        new = parts.with_name(f".{parts.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        write_text(new / _FINGERPRINT, json.dumps(fingerprint, indent=2) + "\n")
        new.rename(parts)
    except OSError as error:
        raise InputError(f"--out: {parts} cannot be written: {error}") from error


# --- mining -----------------------------------------------------------------------------------------------------------


def _mined(pairs: AllPairs, k: int, blocks: list[int], *, progress: bool) -> Iterator[tuple[int, Ranking]]:
    """The negatives of each block of anchors that is left."""
    count = len(pairs.rows)
    done = count - sum(min(BLOCK, count - first) for first in blocks)
    with progress_bar("mining", shown=progress) as show:
        show(done, count)
        for first in blocks:
            found = []
            block = torch.arange(first, min(first + BLOCK, count))
            for anchors in block.split(_STEP):  # type: ignore[no-untyped-call]  # torch's
                found.append(pairs.top(k, anchors))
                done += len(anchors)
                show(done, count)
            yield first, Ranking(torch.cat([part.ids for part in found]), torch.cat([part.scores for part in found]))


def _recall(pairs: AllPairs, k: int) -> float:
    """The share of the exact negatives of a sample of anchors that the index finds."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randperm(len(pairs.rows), generator=generator)[:_SAMPLE].sort().values
    exact, found = pairs.top(k, sample, exact=True).ids, pairs.top(k, sample).ids
    hits = [torch.isin(e[e >= 0], f).sum() for e, f in zip(exact, found, strict=True)]
    return float(sum(hits)) / max(1, int((exact >= 0).sum()))


# --- parts and table --------------------------------------------------------------------------------------------------


def _name(first: int) -> str:
    return f"{first:012}.parquet"


def _write_part(path: Path, first: int, ranking: Ranking) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    place, rank = (ranking.ids >= 0).nonzero(as_tuple=True)
    table = pa.table(
        {
            "anchor": pa.array((place + first).numpy(), pa.int64()),
            "negative": pa.array(ranking.ids[place, rank].numpy(), pa.int64()),
            "rank": pa.array((rank + 1).numpy(), pa.int32()),
            "score": pa.array(ranking.scores[place, rank].numpy(), pa.float32()),
        }
    )
    with replacing(path) as temporary:
        parquet.write_table(table, temporary)


def _join(out: Path, parts: Path, firsts: range, fingerprint: Mapping[str, Any]) -> int:
    """Writes the table from its parts, a row group each, and says how many rows it has."""
    from pyarrow import parquet

    rows = 0
    with replacing(out) as temporary:
        schema = parquet.read_schema(parts / _name(0)).with_metadata({"kpair mine": json.dumps(fingerprint)})
        # Scores and negatives hardly repeat: a dictionary of them would be built in vain.
        with parquet.ParquetWriter(temporary, schema, use_dictionary=["anchor", "rank"]) as writer:
            for first in firsts:
                table = parquet.read_table(parts / _name(first), partitioning=None)
                rows += len(table)
                writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=max(1, len(table)))
    return rows


def _fingerprint_of(out: Path) -> Any:
    """What a finished table says of itself; None for another file."""
    from pyarrow import ArrowInvalid, parquet

    try:
        metadata = parquet.read_schema(out).metadata or {}
        return json.loads(metadata[b"kpair mine"])
    except (OSError, ArrowInvalid, KeyError, ValueError):
        return None
