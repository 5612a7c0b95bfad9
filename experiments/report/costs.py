"""What a record says of cost, as numbers."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.report.records import Entry
from experiments.report.study import Contest
from experiments.report.units import listing

GROWING = {"state_bytes": "state per sequence", "activation_bytes": "kept for the backward pass"}
"""What is measured at several contexts, and what it is called."""


def points(entry: Entry, name: str) -> list[tuple[float, float]]:
    """(context, bytes) of a measurement, by context; what is not known or not positive is left out."""
    pairs = [(row.number("cost", "context"), row.number("cost", name)) for row in _contexts(entry)]
    return sorted((context, size) for context, size in pairs if context and size and size > 0)


def out_of_memory(entry: Entry) -> float | None:
    """The context at which a measurement ran out of memory; None where all of them fitted."""
    return next((row.number("cost", "context") for row in _contexts(entry) if row.get("cost", "status") == "oom"), None)


def _contexts(entry: Entry) -> list[Entry]:
    return [Entry({"cost": row}, None) for row in entry.get("cost", "contexts") or []]


def expense(entry: Entry, name: str) -> float | None:
    """A cost as one number: the median of those that were timed."""
    return (
        entry.number("cost", name) if entry.number("cost", name) is not None else entry.number("cost", name, "median")
    )


def growing(contests: Iterable[Contest]) -> dict[str, Contest]:
    """The contests that were measured at several contexts, under their tasks; one for all whose variants grow alike."""
    alike: dict[str, list[Contest]] = {}
    for contest in contests:
        found = {label: [points(entry, name) for name in GROWING] for label, entry in contest.costs.items()}
        if any(any(lines) for lines in found.values()):
            ends = {label: out_of_memory(entry) for label, entry in contest.costs.items()}
            alike.setdefault(repr((found, ends)), []).append(contest)
    return {listing(contest.task for contest in group): group[0] for group in alike.values()}
