"""Which events an epoch takes: the finished prefix, and nothing that has seen unfinished work.

Theory of operation
-------------------
A committed position is one number for each agent and partition, so an epoch can only take a prefix of the
events there. An event stays out when it is not finished, or when one before it in its partition stays out.

Events of a shard share its tables, and see each other's writes at once. Whoever touched an entry after an
event that stays out would carry that event's work into the epoch, and so stays out as well, with everything
behind it: across agents, timers and partitions, until nothing changes any more. Timers have no position; they
stay out while they are not finished.

For an entry that excluded events have touched, the epoch takes how it looked before the first of them: every
later touch belongs to an excluded event too, by the rule above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

    from millstream.context import PreImage, Scope
    from millstream.records import TopicPartition

__all__ = ["before_excluded", "choose_excluded"]


def choose_excluded(
    events: Sequence[Scope], limits: MutableMapping[tuple[str, TopicPartition], int]
) -> set[Scope]:
    """The events that stay out of the epoch.

    Args:
        events: every event with a journal since the last cut that is not committed yet.
        limits: for each agent and partition, the first offset that is not finished. Lowered in place to
            the position that the epoch may commit.
    """
    by_source: dict[tuple[str, TopicPartition], list[tuple[int, Scope]]] = {}
    dependents: dict[Scope, list[Scope]] = {}
    for event in events:
        if event.record is not None and event.tp is not None:
            source = by_source.setdefault((event.agent, event.tp), [])
            source.append((event.record.offset, event))
        if event.has_ties:
            for earlier in event.depends:
                dependents.setdefault(earlier, []).append(event)
    excluded: set[Scope] = set()
    pending = [event for event in events if event.open]
    for source_key, listed in by_source.items():
        limit = limits.get(source_key)
        if limit is not None:
            pending += [event for offset, event in listed if offset >= limit]
    while pending:
        event = pending.pop()
        if event in excluded:
            continue
        excluded.add(event)
        pending += dependents.get(event, ())
        if event.record is None or event.tp is None:
            continue
        source_key = (event.agent, event.tp)
        first = event.record.offset
        if first < limits.get(source_key, first + 1):
            limits[source_key] = first
            pending += [later for offset, later in by_source[source_key] if offset >= first]
    return excluded


def before_excluded(excluded: set[Scope]) -> Mapping[Any, dict[Any, PreImage]]:
    """How the entries that excluded events touched looked before, by table part and key.

    The events' journals are rewritten: what their first touch found is no longer of the running epoch.
    """
    earliest: dict[tuple[Any, Any], tuple[int, Scope, PreImage]] = {}
    for event in excluded:
        for entry, before in (event.journal or {}).items():
            found = earliest.get(entry)
            if found is None or before.order < found[0]:
                earliest[entry] = (before.order, event, before)
    parts: dict[Any, dict[Any, PreImage]] = {}
    for (part, key), (_, event, before) in earliest.items():
        parts.setdefault(part, {})[key] = before
        assert event.journal is not None
        event.journal[part, key] = before._replace(dirty=False, value=None)
    return parts
