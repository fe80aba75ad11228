"""What a reader of figures must know, in sentences below the table."""

from contrastive.assessment import RetrievalResult

__all__ = ["notes_of"]


def notes_of(result: RetrievalResult, backend: str | None, queries: int) -> list[str]:
    """Which queries count, which k were left out, and what the figures rest on.

    Arguments:
        result: of an evaluation.
        backend: what searched.
        queries: how many there were, those that do not count included.
    """
    notes = []
    if len(result.queries) < queries - result.excluded:
        notes.append(
            f"{len(result.queries)} of {queries - result.excluded} queries were searched for, a random choice."
        )
    if result.excluded:
        notes.append(f"{result.excluded} queries have no relevant item in the gallery: excluded.")
    if result.dropped:
        notes.append(f"k = {', '.join(map(str, result.dropped))} left out: beyond the gallery.")
    if result.tied:
        notes.append(
            f"{result.tied} queries have items of equal score: their figures are the mean over all orders of these."
        )
    if result.index_recall is not None:
        notes.append(
            f"{backend} is approximate: it finds {100 * result.index_recall:.1f} % of the exact neighbours "
            "of a sample of the queries, and all figures rest on what it finds."
        )
    return notes
