"""``python -m bench core [--events N] [--only WORKLOAD] [--json FILE]``."""

from __future__ import annotations

import argparse
import sys

from bench import core
from bench.program import WORKLOADS


def main() -> int:
    """Run the benchmark that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=core.__doc__)
    parser.add_argument("suite", choices=["core"])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--only", choices=list(WORKLOADS), action="append")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    return core.main(options.events, options.only or list(WORKLOADS), options.json)


sys.exit(main())
