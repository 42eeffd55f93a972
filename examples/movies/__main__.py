"""Runs either form over its data, in a folder of its own, and prints what came out."""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import sys
import tempfile
from typing import Any

from examples.movies.data import records

WAIT_S = 120.0
"""How long the results may take."""


async def run(form: str) -> list[tuple[int, Any]]:
    """Feed all records into the app of a form; its rated movies, when all ratings are counted."""
    module = importlib.import_module(f"examples.movies.as_{form}")
    movies, ratings = records()
    async with module.app.running(web=False):
        await module.topics.movies.send_many(movies)
        await module.topics.ratings.send_many(ratings)
        averages, rated = module.averages.view(), module.rated.view()
        known = {movie.id for movie in movies}
        expected = sum(rating.movie in known for rating in ratings)
        async with asyncio.timeout(WAIT_S):
            while True:
                found = [row async for row in rated.items()]
                if sum(value.ratings for _, value in found) == expected:
                    break
                await asyncio.sleep(0.05)
        count = len([key async for key, _ in averages.items()])
        print(f"{len(ratings):,} ratings, {count} averages, {len(found)} rated movies")
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.movies", description=__doc__)
    parser.add_argument("--form", choices=["agents", "streams"], default="streams")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        rows = asyncio.run(run(arguments.form))
    best = sorted(rows, key=lambda row: (-row[1].rating, row[0]))[:10]
    for _, movie in best:
        print(f"{movie.rating:8.5f} from {movie.ratings:4}  {movie.title} ({movie.year})")


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
