"""Rated movies, written with streams and tables."""

from __future__ import annotations

import millstream as ms
from examples.movies.records import Average, Movie, Rated, Topics

__all__ = ["app", "averages", "rated", "topics"]

app = ms.App("movies-streams")
topics = Topics(app)
movies = app.table("movies", topic=topics.movies)
averages = (
    app.stream(topics.ratings)
    .group_by()
    .aggregate(default=Average(), add=Average.plus, name="averages")
)


def rate(average: Average, movie: Movie) -> Rated:
    """What people think of a movie."""
    return Rated(movie.title, movie.year, average.mean, average.count)


rated = averages.join(movies, rate, name="rated-movies")
