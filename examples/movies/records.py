"""What both forms are about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import millstream as ms

__all__ = ["Average", "Movie", "Rated", "Rating", "Topics"]


class Movie(msgspec.Struct, frozen=True):
    """A movie, by its number."""

    id: int
    title: str
    year: int


class Rating(msgspec.Struct, frozen=True):
    """What somebody thinks of a movie: 0 to 10."""

    movie: int
    rating: float


class Average(msgspec.Struct, frozen=True):
    """All ratings of a movie in two numbers."""

    total: float = 0.0
    count: int = 0

    def plus(self, rating: Rating) -> Average:
        """With one more rating."""
        return Average(self.total + rating.rating, self.count + 1)

    @property
    def mean(self) -> float:
        """0 to 10."""
        return self.total / self.count


class Rated(msgspec.Struct, frozen=True):
    """A movie and what people think of it."""

    title: str
    year: int
    rating: float
    ratings: int


class Topics:
    """The topics of an app."""

    def __init__(self, app: ms.App) -> None:
        self.movies = app.topic("movies", key=int, value=Movie, key_from="id")
        self.ratings = app.topic("ratings", key=int, value=Rating, key_from="movie")
