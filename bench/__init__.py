"""Benchmarks: ``python -m bench core`` prints a table, and JSON with ``--json``."""
