"""Several topics that are read as one: those of a list, or all whose names match a pattern."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from typing_extensions import TypeVar

from millstream.agents._topic import Topic
from millstream.errors import ConfigurationError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TopicGroup"]

V = TypeVar("V")
K = TypeVar("K", default=str)


class TopicGroup(Topic[V, K], Generic[V, K]):
    """What ``app.topic("a", "b")`` and ``app.topic(pattern="orders-.*")`` give: a source, and nothing to send to.

    Its name is for people. That of a pattern begins with a tilde, which no topic's name holds.
    """

    def __init__(self, names: Sequence[str], *, pattern: str | None, **described: Any) -> None:
        """
        Args:
            names: the topics; none where there is a pattern.
            pattern: a regular expression for the whole name.
            described: what all of them have in common, as for `Topic`.

        Raises:
            ConfigurationError: the pattern is no regular expression.
        """
        super().__init__(f"~{pattern}" if pattern is not None else ", ".join(names), **described)
        try:
            self._pattern = None if pattern is None else re.compile(pattern)
        except re.error as exc:
            raise ConfigurationError(
                f"topic: pattern={pattern!r} is not a regular expression: {exc}"
            ) from exc
        self.pattern = pattern
        self._described = described
        self._made: dict[str, Topic[V, K]] = {}
        for name in names:
            self._made[name] = Topic(name, **described)
        self.names = tuple(names) if pattern is None else (self.name,)

    @property
    def members(self) -> tuple[Topic[V, K], ...]:
        """The topics of a list; a pattern stands for itself."""
        return (self,) if self._pattern is not None else tuple(map(self.named, self.names))

    def reads(self, name: str) -> bool:
        """Whether the topic of that name is one of them."""
        if self._pattern is None:
            return name in self.names
        return self._pattern.fullmatch(name) is not None

    def named(self, name: str) -> Topic[V, K]:
        """One of the topics, by its name: to send to it.

        Raises:
            ConfigurationError: it is none of them.
        """
        if not self.reads(name):
            raise self._no_such_topic(name)
        if name not in self._made:
            self._made[name] = Topic(name, **self._described)
        return self._made[name]

    def forget_placement(self) -> None:
        for topic in self._made.values():
            topic.forget_placement()

    def encode(self, *_: Any, **__: Any) -> NoReturn:
        example = self.names[0] if self._pattern is None else "..."
        raise ProgramError(
            f"topic {self.name!r} stands for several topics that are read as one: say which of them to"
            f" send to, for example with topic.named({example!r}).send(...)"
        )

    async def send(self, *_: Any, **__: Any) -> NoReturn:
        self.encode()

    async def send_many(self, *_: Any, **__: Any) -> NoReturn:
        self.encode()

    def put(self, *_: Any, **__: Any) -> NoReturn:
        self.encode()

    def put_result(self, *_: Any, **__: Any) -> NoReturn:
        self.encode()
