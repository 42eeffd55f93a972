"""The movie example: both forms, over made-up data, the real files where they are at hand, and a few ratings."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from examples.movies.data import DATA_VARIABLE, made_up, read
from examples.movies.records import Movie, Rating
from millstream.testing import TestApp

ROOT = Path(__file__).parents[2]
REAL = (
    Path(os.environ[DATA_VARIABLE])
    if DATA_VARIABLE in os.environ
    else ROOT.parent / "shared" / "data" / "movies"
)
FORMS = ["agents", "streams"]


@pytest.mark.parametrize("form", FORMS)
async def test_a_movie_and_its_ratings(form: str) -> None:
    """Rated 10, then 8, a movie averages 10.0, then 9.0; one that is not known yet has an average all the same."""
    module: Any = importlib.import_module(f"examples.movies.as_{form}")
    async with TestApp(module.app) as t:
        await t.send(module.topics.movies, Movie(1, "Silent River", 1999))
        await t.send(module.topics.ratings, Rating(1, 10))
        assert (t.table(module.rated)[1].rating, t.table(module.averages)[1].mean) == (10.0, 10.0)
        await t.send(module.topics.ratings, Rating(1, 8))
        assert (t.table(module.rated)[1].rating, t.table(module.averages)[1].mean) == (9.0, 9.0)
        await t.send(module.topics.ratings, Rating(2, 5))
        assert 2 not in t.table(module.rated)
        assert t.table(module.averages)[2].count == 1
        await t.send(module.topics.movies, Movie(2, "Lost Song", 2001))
        assert t.table(module.rated)[2].rating == 5.0


def lines(form: str, folder: Path | None) -> list[str]:
    """What the example prints."""
    environment = {name: value for name, value in os.environ.items() if name != DATA_VARIABLE}
    if folder is not None:
        environment[DATA_VARIABLE] = str(folder)
    command = [sys.executable, "-m", "examples.movies", "--form", form]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_has_seen_enough() -> None:
    """Where what it prints goes to ``head``, which does not read to the end, it ends without an error."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "examples.movies"]
    with os.fdopen(write_end, "wb") as nobody:
        done = subprocess.run(
            command, cwd=ROOT, stdout=nobody, stderr=subprocess.PIPE, timeout=120, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("form", FORMS)
def test_the_example(form: str) -> None:
    """Run as a program it prints the best movies, as a plain sum over the data has them."""
    movies, ratings = made_up()
    given: dict[int, list[float]] = defaultdict(list)
    for rating in ratings:
        given[rating.movie].append(rating.rating)
    best = max(movies, key=lambda movie: sum(given[movie.id]) / len(given[movie.id]))
    first, second = lines(form, None)[:2]
    assert first == f"5,000 ratings, {len(given)} averages, {len(movies)} rated movies"
    assert best.title in second
    assert f"{sum(given[best.id]) / len(given[best.id]):.5f}" in second


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.skipif(
    not REAL.exists(), reason="the files of the movie demo are not beside the project"
)
def test_the_real_files(form: str) -> None:
    """48,094 ratings of 920 movies, of which 919 are known; The Godfather has 9.11039 from 154."""
    assert len(read(REAL)[1]) == 48_094
    printed = lines(form, REAL)
    assert printed[0] == "48,094 ratings, 920 averages, 919 rated movies"
    assert any("9.11039 from  154  The Godfather" in line for line in printed)
