"""``python -m bench core|dsl|memory|kafka|latency|recovery|transport``; ``--help`` for the rest."""

from __future__ import annotations

import argparse
import sys

from bench import core, dsl, kafka, latency, memory, transport
from bench.program import WORKLOADS

RECOVERY_SUITES = ("killed", "vanished", "rolling", "empty-disk")


def main() -> int:
    """Run the benchmark that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=core.__doc__)
    suites = parser.add_subparsers(dest="suite", required=True)
    one = suites.add_parser("core", help="CPU per event against a bare loop, recovery, latency")
    one.add_argument("--events", type=int, default=1_000_000)
    one.add_argument("--only", choices=list(WORKLOADS), action="append")
    one.add_argument("--seconds", type=float, default=5.0, help="how long latency is measured")
    one.add_argument("--json", metavar="FILE")
    streams = suites.add_parser("dsl", help="streams against agents, joins, many keys and windows")
    streams.add_argument("--only", choices=dsl.GROUPS, action="append")
    streams.add_argument("--events", type=int, default=400_000)
    streams.add_argument("--keys", type=int, default=10_000)
    streams.add_argument("--keys-max", type=int, default=5_000_000)
    streams.add_argument("--windows", type=int, default=100_000, help="open ones in all")
    streams.add_argument("--windows-max", type=int, default=1_000, help="open ones of a key")
    streams.add_argument("--rounds", type=int, default=3, help="runs of each, the least one counts")
    streams.add_argument("--rate", type=int, default=10_000, help="events/s of what is fed live")
    streams.add_argument("--seconds", type=float, default=15.0, help="how long that is measured")
    streams.add_argument("--quiet", type=float, default=1.0, help="seconds of rest before that")
    streams.add_argument("--json", metavar="FILE")
    other = suites.add_parser("memory", help="peak memory of a keyed count over many keys")
    other.add_argument("--events", type=int, default=10_000_000)
    other.add_argument("--keys", type=int, default=1_000_000)
    other.add_argument("--phase", choices=["feed", "work"], help=argparse.SUPPRESS)
    other.add_argument("--directory", help=argparse.SUPPRESS)
    third = suites.add_parser(
        "kafka", help="the workloads of core on a broker, against a bare client"
    )
    third.add_argument("--events", type=int, default=1_000_000)
    third.add_argument("--only", choices=list(WORKLOADS), action="append")
    fourth = suites.add_parser(
        "latency", help="from a send to a read_committed consumer, on a broker"
    )
    fourth.add_argument("--rate", type=int, action="append", metavar="EVENTS/S")
    fourth.add_argument("--seconds", type=float, default=10.0)
    fourth.add_argument("--warm", type=float, default=3.0, help="seconds before those that count")
    fourth.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    fifth = suites.add_parser(
        "transport", help="commits, appends and fetches of the Kafka transport"
    )
    fifth.add_argument("--commits", type=int, default=300)
    fifth.add_argument("--records", type=int, default=400_000)
    sixth = suites.add_parser("recovery", help="workers that go, come back and replay, on a broker")
    sixth.add_argument("--only", choices=RECOVERY_SUITES, action="append")
    sixth.add_argument("--rounds", type=int, default=12, help="workers that go")
    sixth.add_argument("--keys", type=int, default=10_000_000, help="of the table that is replayed")
    for suite in (third, fourth, fifth, sixth):
        suite.add_argument("--broker", metavar="kafka://HOST:PORT", help="one is started otherwise")
    for suite in (third, fourth, sixth):
        suite.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.suite == "core":
        return core.main(
            options.events,
            options.only or list(WORKLOADS),
            options.json,
            seconds=options.seconds,
        )
    if options.suite == "dsl":
        sizes = dsl.Sizes(
            events=options.events,
            keys=options.keys,
            keys_max=options.keys_max,
            windows=options.windows,
            windows_max=options.windows_max,
            rounds=options.rounds,
            rate=options.rate,
            live_s=options.seconds,
            quiet_s=options.quiet,
        )
        return dsl.main(options.only or dsl.GROUPS, sizes, options.json)
    if options.suite == "kafka":
        workloads = options.only or list(WORKLOADS)
        return kafka.main(options.broker, options.events, workloads, options.json)
    if options.suite == "latency":
        if options.work:
            latency.work(*options.work)
        rates = options.rate or [500, 5_000]
        return latency.main(
            options.broker, rates, options.seconds, options.json, warm_s=options.warm
        )
    if options.suite == "transport":
        return transport.main(options.broker, options.commits, options.records)
    if options.suite == "recovery":
        from bench import recovery

        chosen = options.only or list(RECOVERY_SUITES)
        return recovery.main(
            chosen,
            rounds=options.rounds,
            keys=options.keys,
            output=options.json,
            broker=options.broker,
        )
    if options.phase == "feed":
        memory.feed(options.directory, options.events, options.keys)
    elif options.phase == "work":
        memory.work(options.directory, options.events)
    else:
        return memory.main(options.events, options.keys)
    return 0


sys.exit(main())
