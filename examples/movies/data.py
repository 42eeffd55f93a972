"""Movies and ratings: from files, or made up."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

from examples.movies.records import Movie, Rating

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DATA_VARIABLE", "made_up", "read", "records"]

DATA_VARIABLE = "MILLSTREAM_DATA_MOVIES"
"""Environment variable with a folder that holds ``movies.dat`` and ``ratings.dat``."""


def records() -> tuple[list[Movie], list[Rating]]:
    """Those of the folder that the environment names, else made-up ones."""
    folder = os.environ.get(DATA_VARIABLE)
    return made_up() if folder is None else read(Path(folder))


def read(folder: Path) -> tuple[list[Movie], list[Rating]]:
    """Records from files whose fields are parted by ``::``.

    Raises:
        FileNotFoundError: one of the files is missing.
    """
    movies = [
        Movie(int(number), title, int(year))
        for number, title, year in (row[:3] for row in _rows(folder / "movies.dat"))
    ]
    ratings = [
        Rating(int(movie), float(rating))
        for _, movie, rating in (row[:3] for row in _rows(folder / "ratings.dat"))
    ]
    return movies, ratings


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            yield line.rstrip("\n").split("::")


def made_up(
    count: int = 100, ratings: int = 5_000, seed: int = 7
) -> tuple[list[Movie], list[Rating]]:
    """Movies with titles of two words, and ratings of them around a quality of each; one movie is unknown."""
    dice = random.Random(seed)
    first = ("Silent", "Golden", "Lost", "Burning", "Second", "Paper", "Winter", "Broken")
    second = ("River", "City", "Garden", "Letter", "Road", "Mirror", "Island", "Song")
    movies = [
        Movie(
            number, f"{dice.choice(first)} {dice.choice(second)} {number}", dice.randint(1920, 2020)
        )
        for number in range(1, count + 1)
    ]
    quality = [dice.uniform(2, 9) for _ in range(count + 1)]
    rows = []
    for _ in range(ratings):
        movie = dice.randint(1, count + 1)
        rating = min(10.0, max(0.0, round(dice.gauss(quality[movie - 1], 1.5))))
        rows.append(Rating(movie, rating))
    return movies, rows
