"""Starts a broker to play with: ``python -m tests.brokers [SIZE]``.

Its first line of output is the address. It ends with its input (Ctrl-D) or on a signal.
"""

from __future__ import annotations

import signal
import sys

from _pytest.outcomes import Skipped

from tests.brokers.cluster import Cluster


def _main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    try:
        cluster = Cluster(size)
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
