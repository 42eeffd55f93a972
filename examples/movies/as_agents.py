"""Rated movies, written as agents."""

from __future__ import annotations

import millstream as ms
from examples.movies.records import Average, Movie, Rated, Rating, Topics

__all__ = ["app", "averages", "rated", "topics"]

app = ms.App("movies-agents")
topics = Topics(app)
movies = app.table("known-movies", key=int, value=Movie)
averages = app.table("averages", key=int, value=Average, default=Average())
rated = app.table("rated-movies", key=int, value=Rated)


@app.agent(topics.ratings)
async def rate(ratings: ms.Stream[Rating]) -> None:
    """Keep the averages, and what they say of each movie that is known."""
    async for rating in ratings:
        averages[rating.movie] = average = averages[rating.movie].plus(rating)
        movie = movies.get(rating.movie)
        if movie is not None:
            rated[movie.id] = Rated(movie.title, movie.year, average.mean, average.count)


@app.agent(topics.movies)
async def know(found: ms.Stream[Movie]) -> None:
    """A movie may become known after its first ratings, or under another title.

    Written here, the table of movies cannot be behind this agent, or ahead of it.
    """
    async for movie in found:
        movies[movie.id] = movie
        average = averages.get(movie.id)
        if average is not None:
            rated[movie.id] = Rated(movie.title, movie.year, average.mean, average.count)
