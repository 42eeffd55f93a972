"""Starts a broker to play with: ``python -m tests.brokers [SIZE]``.

Its first line of output is the address. It ends with its input (Ctrl-D) or on a signal.
"""

from __future__ import annotations

import argparse
import signal
import sys

from _pytest.outcomes import Skipped

from tests.brokers.cluster import Cluster


def _main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    parser = argparse.ArgumentParser(prog="python -m tests.brokers", description=__doc__)
    parser.add_argument("size", type=int, nargs="?", default=1, help="how many brokers; 1")
    try:
        cluster = Cluster(parser.parse_args().size)
    except Skipped as reason:  # this machine lacks something
        sys.exit(str(reason))
    with cluster:
        print(cluster.url, flush=True)  # noqa: T201
        print(f"its log and data: {cluster.folder}", file=sys.stderr)  # noqa: T201
        try:
            sys.stdin.read()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    _main()
