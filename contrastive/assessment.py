"""An evaluation of retrieval: from neighbours and relevance to values, part by part."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from contrastive.errors import InputError
from contrastive.intervals import bootstrap_interval
from contrastive.metrics import Ties, knn_at, ndcg_at, retrieval_metrics, tie_groups
from contrastive.neighbours import (
    BLOCK,
    Backend,
    Metric,
    Progress,
    Rows,
    Search,
    Target,
    as_pair,
    as_rows,
    in_order_of_ids,
)
from contrastive.placement import Placement
from contrastive.relevance import Judged, Labels, Relevance, Relevant, SameLabel, SharedLabels, label_ids, several
from contrastive.shards import Shard, ShardSearch, as_queries

__all__ = [
    "DEFAULT_KS",
    "DEFAULT_METRICS",
    "DEFAULT_NPROBE",
    "METRICS",
    "Assessment",
    "RetrievalResult",
    "fitting_ks",
    "metric_names",
    "result_of",
]

DEFAULT_KS: Sequence[int] = (1, 5, 10, 100)
DEFAULT_METRICS = ("recall", "precision@1", "r_precision", "map@r")
DEFAULT_NPROBE = 32
# Of the first k; of the whole ranking. "map" and "mrr" are both.
_AT_K = ("recall", "cmc", "coverage", "precision", "ndcg", "knn")
_WHOLE = ("r_precision", "map@r", "map", "mrr")
METRICS = (*_AT_K, *_WHOLE)
# Entries of a table of votes, queries by classes.
_VOTES = 2**24
# Queries on which an approximate search is compared with the exact one.
_SAMPLE = 1000


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics of retrieval: fractions in [0, 1].

    Arguments:
        mean: name of the metric (``"recall@1"``, ``"precision@1"``, ``"r_precision"``, ``"map@r"``)
            to its mean over the queries that count.
        per_query: name to the values of these queries.
        interval: name to the ends of the 95 % percentile bootstrap interval of the mean, over
            queries (1000 resamples, always the same seed).
        class_interval: likewise over classes: all queries of a class are drawn together. Empty where queries have no
            class, or several, or all the same.
        queries: the rows of the queries that count; of a shard their places in the order of ids over all ranks.
        excluded: how many queries were left out, having no relevant item.
        dropped: the default k that lie beyond the gallery.
        tied: how many queries have items of equal score, whose order does not count (see `contrastive.metrics`), among
            those that the metrics look at.
        index_recall: of an approximate search, the share of the exact neighbours that it found for a sample of the
            queries; None: the search was exact.
    """

    mean: dict[str, float]
    per_query: dict[str, Float32[Tensor, " queries"]]
    interval: dict[str, tuple[float, float]]
    queries: Int64[Tensor, " queries"]
    excluded: int = 0
    dropped: tuple[int, ...] = ()
    tied: int = 0
    class_interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    index_recall: float | None = None


class Assessment:
    """An evaluation that can be run part by part, so that an interrupted one can go on.

    Arguments:
        function: name of the caller, for messages.
        embeddings: as in `evaluate_retrieval`, and so are all others.
        labels: of the queries.
        gallery: other rows.
        gallery_labels: their labels.
        relevant: relevant items of each query.
        gallery_ids: what `relevant` calls the rows.
        ks: of the metrics at k.
        metrics: their names.
        metric: what is near.
        backend: who searches.
        nprobe: of an inverted file.
        sample: how many queries at most.

    Raises:
        InputError: as `evaluate_retrieval`.
    """

    def __init__(
        self,
        function: str,
        embeddings: Rows | Shard,
        labels: Labels | None = None,
        *,
        gallery: Rows | Shard | None = None,
        gallery_labels: Labels | None = None,
        relevant: Relevant | None = None,
        gallery_ids: Int64[Tensor, " gallery"] | None = None,
        ks: Sequence[int] = DEFAULT_KS,
        metrics: Sequence[str] = DEFAULT_METRICS,
        metric: Metric = "cosine",
        backend: Backend = "auto",
        nprobe: int = DEFAULT_NPROBE,
        sample: int | None = None,
    ) -> None:
        self.function, self.alone = function, gallery is None
        if sample is not None and (isinstance(sample, bool) or sample < 1):
            raise InputError(f"{function}: sample is {sample}, expected at least 1 query")
        if relevant is not None and (labels is not None or gallery_labels is not None):
            raise InputError(f"{function}: relevant and labels are given, expected one of them")
        if relevant is None and (gallery is None) != (gallery_labels is None):
            missing = "gallery" if gallery is None else "gallery_labels"
            raise InputError(f"{function}: {missing} is missing, expected gallery and gallery_labels together")
        if gallery is embeddings:
            raise InputError(
                f"{function}: gallery is embeddings, expected other rows; leave it out to search among the others"
            )
        x, y = _sides(function, embeddings, gallery)
        if isinstance(x, Shard):
            labels = None if labels is None else x.of_every_row("labels", labels)
            relevant = None if relevant is None else x.of_every_row("relevant", relevant)
        if isinstance(y, Shard):
            gallery_labels = None if gallery_labels is None else y.of_every_row("gallery_labels", gallery_labels)
            if gallery_ids is not None:
                raise InputError(f"{function}: gallery_ids are given, and a shard has its own")
            gallery_ids = y.ids
        self.relevance: Relevance
        self.classes: SameLabel | None = None
        if relevant is not None:
            if gallery_ids is not None and not isinstance(y, Shard):
                in_order_of_ids(function, gallery_ids, y)
            self.relevance = Judged.of(
                function,
                relevant,
                queries=len(x),
                size=len(y),
                gallery_ids=gallery_ids,
                alone=self.alone,
                device=x.device,
            )
        elif several(labels) or several(gallery_labels):
            self.relevance = SharedLabels.of(function, labels, gallery_labels, rows=(len(x), len(y)), device=x.device)
        else:
            given = [("labels", labels, len(x)), ("gallery_labels", gallery_labels, len(y))]
            classes = [column.to(x.device) for column in label_ids(function, *given[: 1 + (not self.alone)])]
            self.relevance = self.classes = SameLabel.of(classes[0], classes[-1], alone=self.alone)
        self.kept = self.relevance.total.nonzero().squeeze(1)
        if len(self.kept) == 0:
            raise InputError(f"{function}: no query has a relevant item ({self._reason(relevant)})")
        self.excluded = len(x) - len(self.kept)
        if sample is not None and sample < len(self.kept):
            order = torch.randperm(len(self.kept), generator=torch.Generator().manual_seed(0))
            self.kept = self.kept[order[:sample].sort().values.to(self.kept.device)]
        self.names, self.dropped = metric_names(function, metrics, ks, len(y) - self.alone)
        if self.classes is None and any(name.startswith("knn@") for name in self.names):
            raise InputError(f"{function}: metrics hold 'knn', expected one label a row to vote with")
        self.relevant = self.relevance.total[self.kept]
        own = torch.arange(len(x), device=x.device) if self.alone else None
        self.search: Search | ShardSearch
        if isinstance(y, Shard):
            self.search = ShardSearch(
                function, x, y, metric=metric, backend=backend, nprobe=nprobe, own=own, rows=self.kept
            )
        else:
            assert isinstance(x, Tensor)
            target = Target(function, y, metric=metric, backend=backend, nprobe=nprobe)
            self.search = Search(function, x, target, own=own, rows=self.kept)
        # Of exact scores in one process, the places of relevant items in the whole gallery can be counted.
        can_count = isinstance(self.search, Search) and not self.search.approximate
        self.counted = [name for name in self.names if can_count and name in ("map", "mrr")]
        self.ranked = [name for name in self.names if name not in self.counted]
        self.depth = self._depth(len(y) - self.alone)

    def _reason(self, relevant: Relevant | None) -> str:
        if relevant is not None:
            return "all lists are empty"
        if self.classes is None:
            return "no two rows share a label"
        return "every label occurs once" if self.alone else "no label of the queries occurs in the gallery"

    def _depth(self, largest: int) -> int:
        depth = 1
        for name in self.ranked:
            at = name.partition("@")[2]
            if at.isdecimal():
                depth = max(depth, int(at))
            else:
                depth = max(depth, int(self.relevant.max()) if name in ("r_precision", "map@r") else largest)
        return depth

    def parts(
        self, *, skip: int = 0, on_progress: Progress | None = None
    ) -> Iterator[dict[str, Float32[Tensor, " part"]]]:
        """The values of one strip of queries after another, and ``"tied"``: whether equal scores had a part in them.

        Arguments:
            skip: how many queries that count are done already.
            on_progress: as in `contrastive.search`.
        """
        run = self.search.after(skip, on_progress)
        # One more item than the metrics look at shows a tie at the cut; there is none beyond the gallery.
        asked = min(self.depth + 1, run.size - self.alone)
        for part, ids, scores in run.rankings(asked):
            values = self._values(run, part, ids, scores)
            if self.counted and isinstance(run, Search):
                counted = self._counted(run, part)
                values |= counted | {"tied": torch.maximum(values["tied"], counted["tied"])}
            yield values

    def neighbours(
        self, places: Int64[Tensor, " some"], k: int, *, on_progress: Progress | None = None
    ) -> tuple[Int64[Tensor, "some k"], Float[Tensor, "some k"], Bool[Tensor, "some k"]]:
        """What some of the queries find, for those who want to see it: ids, scores, and which are relevant.

        Arguments:
            places: of these among the queries that count.
            k: how many items each; fewer where the gallery is smaller.
            on_progress: as in `contrastive.search`.
        """
        run = self.search.only(places, on_progress)
        k = min(k, run.size - self.alone)
        parts = [
            (ids, scores, (self._gains(run.rows[part], ids) > 0) & (ids >= 0)) for part, ids, scores in run.rankings(k)
        ]
        ids, scores, relevant = (torch.cat(column) for column in zip(*parts, strict=True))
        return ids, scores, relevant

    def everything_is_relevant(self) -> bool:
        """Whether any ranking at all would read 1: all items have one label."""
        return bool((self.relevance.total == self.search.size - self.alone).all())

    def result(self, parts: Iterable[Mapping[str, Float32[Tensor, " part"]]]) -> RetrievalResult:
        """Puts the parts together.

        Arguments:
            parts: all of them, in order.
        """
        columns = list(parts)
        per_query = {name: torch.cat([part[name].to(self.kept.device) for part in columns]) for name in self.names}
        tied = int(sum(float(part["tied"].sum()) for part in columns))
        result = result_of(per_query, self.kept, self._groups())
        return replace(
            result,
            excluded=self.excluded,
            dropped=self.dropped,
            tied=tied,
            index_recall=_index_recall(self.search, self.depth) if self.search.approximate else None,
        )

    def _groups(self) -> Tensor | None:
        """The class of each query that counts, if there are two."""
        if self.classes is None:
            return None
        groups = self.classes.queries[self.kept]
        return groups if bool((groups != groups[0]).any()) else None

    def _values(self, run: Search | ShardSearch, part: slice, ids: Tensor, scores: Tensor) -> dict[str, Tensor]:
        rows = run.rows[part]
        tied = ((scores[:, 1:] == scores[:, :-1]) & (ids[:, 1:] >= 0)).any(1)
        values = {name: torch.zeros(len(rows), device=ids.device) for name in self.ranked}
        places = torch.arange(len(rows), device=ids.device)
        untied = places[~tied]
        if len(untied):
            of_untied = ids if len(untied) == len(ids) else ids[untied]
            for name, value in self._metrics(rows[untied], of_untied[:, : self.depth]).items():
                values[name][untied] = value
        for some in torch.split(places[tied], max(1, _VOTES // self._vote_width())):
            for name, value in self._tied(run, part.start + some, ids[some], scores[some]).items():
                values[name][some] = value
        return values | {"tied": tied.float()}

    def _counted(self, run: Search, part: slice) -> dict[str, Tensor]:
        """The metrics of the whole gallery's order, and whether equal scores had a part in them."""
        places, found = torch.arange(part.start, part.stop, device=run.rows.device), []
        for some in torch.split(places, max(1, BLOCK // run.size)):
            first, *others = [block for _, block in run.scores(some)]
            scores = torch.cat([first, *others], 1) if others else first
            placed = Placement.of(scores, *self.relevance.pairs(run.rows[some]))
            values = {"map": placed.average_precision, "mrr": placed.reciprocal_rank}
            found.append({name: values[name]() for name in self.counted} | {"tied": placed.tied().float()})
        return {name: torch.cat([values[name] for values in found]) for name in found[0]}

    def _metrics(
        self,
        rows: Tensor,
        ids: Tensor,
        *,
        gains: Tensor | None = None,
        ties: Ties | None = None,
        last_gain: Tensor | None = None,
        votes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """All metrics of some queries from what they found; an id of -1 is nothing found."""
        gains = self._gains(rows, ids) if gains is None else gains
        hits = gains if gains.dtype == torch.bool else gains > 0
        of_hits = [name for name in self.ranked if not name.startswith(("ndcg@", "knn@"))]
        values = retrieval_metrics(hits, self.relevance.total[rows], of_hits, ties=ties)
        expected: Tensor | None = None
        for name in self.ranked:
            kind, _, at = name.partition("@")
            if kind == "ndcg":
                if expected is None:
                    expected = gains.float() if ties is None else ties.average(gains.float(), last_gain)
                    ideal = self.relevance.ideal(rows, self.depth)
                values[name] = ndcg_at(expected, ideal, int(at))
            elif kind == "knn" and self.classes is not None:
                truth = self.classes.queries[rows]
                values[name] = knn_at(self._voting(ids), truth, int(at), ties=ties, last=votes)
        return values

    def _gains(self, rows: Tensor, ids: Tensor) -> Tensor:
        if not self.search.approximate:
            return self.relevance.gains(rows, ids)
        gains = self.relevance.gains(rows, ids.clamp_min(0))
        return gains.masked_fill(ids < 0, 0)

    def _vote_width(self) -> int:
        """The number of classes, and one more, if neighbours vote."""
        if self.classes is None or not any(name.startswith("knn@") for name in self.names):
            return 1
        return int(max(self.classes.queries.max(), self.classes.gallery.max())) + 2

    def _voting(self, ids: Tensor) -> Tensor:
        """The classes of items; what was not found has one of its own, which is no query's."""
        assert self.classes is not None
        return torch.where(ids < 0, self._vote_width() - 1, self.classes.gallery[ids.clamp_min(0)])

    def _tied(self, run: Search | ShardSearch, places: Tensor, ids: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """The expected values of queries with items of equal score."""
        depth, rows = self.depth, run.rows[places]
        cut = torch.zeros(len(rows), dtype=torch.bool, device=ids.device)
        if not run.approximate and ids.shape[1] > depth:
            cut = scores[:, depth] == scores[:, depth - 1]
        cut_rows = cut.nonzero().squeeze(1)
        if len(cut_rows):  # all of their scores by the same arithmetic, so that equal ones can be counted
            scores[cut_rows], ids[cut_rows] = run.settled(places[cut_rows], ids.shape[1])
        ids, scores = ids[:, :depth], scores[:, :depth]
        gains = self._gains(rows, ids)
        in_last = scores == scores[:, -1:]  # what an index has not found is alike as well
        size = (in_last.sum(1)).clamp_min(1)
        hits, gain = (in_last & (gains > 0)).sum(1), (in_last * gains.double()).sum(1)
        votes: Tensor | None = None
        if self.classes is not None and self._vote_width() > 1:
            votes = torch.zeros(len(rows), self._vote_width(), device=ids.device)
            votes.scatter_add_(1, self._voting(ids), in_last.float())
        if len(cut_rows):
            size[cut_rows], hits[cut_rows], gain[cut_rows] = self._last_group(
                run, places[cut_rows], scores[cut_rows, -1:], None if votes is None else (votes, cut_rows)
            )
        ties = tie_groups(scores, gains > 0, last_size=size, last_hits=hits)
        return self._metrics(rows, ids, gains=gains, ties=ties, last_gain=gain, votes=votes)

    def _last_group(
        self, run: Search | ShardSearch, places: Tensor, value: Tensor, votes: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the whole gallery: how many items score `value`, how many of them are relevant, and their gains."""
        rows = run.rows[places]
        size = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        hits, gain = torch.zeros_like(size), torch.zeros_like(size, dtype=torch.float64)
        if votes is not None:
            votes[0][votes[1]] = 0.0
        for place, items in run.equal(places, value):
            gains = self.relevance.gains(rows[place], items[:, None]).squeeze(1)
            size += place.bincount(minlength=len(rows))
            hits += place[gains > 0].bincount(minlength=len(rows))
            gain.index_add_(0, place, gains.double())
            if votes is not None and self.classes is not None:
                ones = torch.ones(len(place), device=place.device)
                votes[0].index_put_((votes[1][place], self.classes.gallery[items]), ones, accumulate=True)
        if votes is not None:
            votes[0][votes[1]] = run.total(votes[0][votes[1]])
        return run.total(size), run.total(hits), run.total(gain)


def _sides(
    function: str, embeddings: Rows | Shard, gallery: Rows | Shard | None
) -> tuple[Tensor, Tensor] | tuple[Shard | Tensor, Shard]:
    """Queries and gallery, checked; the same where there is no gallery."""
    if gallery is None and isinstance(embeddings, Shard):
        return embeddings, embeddings
    if isinstance(gallery, Shard):
        return as_queries(function, embeddings, gallery), gallery
    if isinstance(embeddings, Shard):
        raise InputError(f"{function}: embeddings are a shard and the gallery is not, expected a shard as well")
    if gallery is None:
        x = as_rows(function, "embeddings", embeddings)
        return x, x
    return as_pair(function, embeddings, gallery, ("embeddings", "gallery"))


def _index_recall(search: Search | ShardSearch, k: int) -> float:
    """The share of the exact k nearest that an index finds, of a sample of the queries."""
    order = torch.randperm(len(search.rows), generator=torch.Generator().manual_seed(0))
    some = search.only(order[:_SAMPLE].sort().values.to(search.rows.device))
    exact, found = (torch.cat([ids for _, ids, _ in some.rankings(k, exact=e)]) for e in (True, False))
    hits = [torch.isin(e, f).sum() for e, f in zip(exact, found, strict=True)]
    return float(sum(hits)) / exact.numel()


def result_of(
    per_query: dict[str, Float32[Tensor, " queries"]],
    queries: Int64[Tensor, " queries"],
    groups: Int64[Tensor, " queries"] | None = None,
) -> RetrievalResult:
    """Means and intervals of values.

    Arguments:
        per_query: by name.
        queries: the rows they are of.
        groups: the class of each query; None: there is no interval over classes.
    """
    values = torch.stack([values.double() for values in per_query.values()], 1).cpu()
    over_classes = None if groups is None else bootstrap_interval(values, groups=groups.cpu()).tolist()
    return RetrievalResult(
        mean=dict(zip(per_query, values.mean(0).tolist(), strict=True)),
        per_query=per_query,
        interval=_pairs(per_query, bootstrap_interval(values).tolist()),
        class_interval={} if over_classes is None else _pairs(per_query, over_classes),
        queries=queries,
    )


def _pairs(names: Iterable[str], ends: list[list[float]]) -> dict[str, tuple[float, float]]:
    return {name: (low, high) for name, (low, high) in zip(names, ends, strict=True)}


def fitting_ks(function: str, ks: Sequence[int], largest: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The k to report, each once, and those of the default that the gallery is too small for.

    Arguments:
        function: name of the caller, for messages.
        ks: asked for.
        largest: how many items a query can find.

    Raises:
        InputError: for a k below 1, or that was passed and is beyond.
    """
    for k in ks:
        if isinstance(k, bool) or not hasattr(k, "__index__") or k < 1 or (k > largest and ks is not DEFAULT_KS):
            raise InputError(f"{function}: k is {k}, expected 1 to {largest}, the items a query can retrieve")
    unique = tuple(dict.fromkeys(int(k) for k in ks))
    return tuple(k for k in unique if k <= largest), tuple(k for k in unique if k > largest)


def metric_names(
    function: str, metrics: Sequence[str], ks: Sequence[int], largest: int
) -> tuple[list[str], tuple[int, ...]]:
    """The full name of each metric, and the default k that the gallery is too small for.

    Arguments:
        function: name of the caller, for messages.
        metrics: as in `contrastive.evaluate_retrieval`.
        ks: of those without a k of their own.
        largest: how many items a query can find.

    Raises:
        InputError: for a name that is no metric, or a k that was passed and is beyond.
    """
    at_k = [name for name in metrics if name in _AT_K]
    fitting, dropped = fitting_ks(function, ks, largest) if at_k else ((), ())
    names: list[str] = []
    for name in metrics:
        found = re.fullmatch(r"(\w+)@(\d+)", name)
        if name in _AT_K:
            names += [f"{name}@{k}" for k in fitting]
        elif name in _WHOLE:
            names.append(name)
        elif found and found[1] in (*_AT_K, "map", "mrr"):
            if not 1 <= int(found[2]) <= largest:
                raise InputError(
                    f"{function}: metrics hold {name!r}, expected a k of 1 to {largest}, the items a query can retrieve"
                )
            names.append(f"{found[1]}@{int(found[2])}")
        else:
            raise InputError(f"{function}: metrics hold {name!r}, expected names of {', '.join(METRICS)}")
    if not names:
        raise InputError(f"{function}: metrics hold none, expected names of {', '.join(METRICS)}")
    return list(dict.fromkeys(names)), dropped
