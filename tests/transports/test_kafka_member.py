"""What a member of a Kafka group does with each answer, against a coordinator that follows a script."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from kio.schema.describe_groups.v5 import DescribeGroupsResponse
from kio.schema.describe_groups.v5.response import DescribedGroup, DescribedGroupMember
from kio.schema.errors import ErrorCode
from kio.schema.heartbeat.v4 import HeartbeatResponse
from kio.schema.join_group.v7 import JoinGroupResponse
from kio.schema.join_group.v7.response import JoinGroupResponseMember
from kio.schema.leave_group.v4 import LeaveGroupResponse
from kio.schema.sync_group.v5 import SyncGroupResponse
from kio.schema.types import GroupId
from kio.static.primitive import i32

from millstream.errors import ConfigurationError, FencedError, SettingError, TransportError
from millstream.transports.kafka import _member
from millstream.transports.kafka._address import parse_url
from millstream.transports.kafka._cluster import Access
from millstream.transports.kafka._errors import AnswerLostError
from millstream.transports.kafka._group_words import Share, write_share
from millstream.transports.kafka._member import Member, Terms
from millstream.transports.kafka._messages import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from millstream.transports.base import Assignment

LOST = "lost"
REQUIRED = ErrorCode.member_id_required
NOTHING = duration(0)


class Coordinator:
    """A group of one member, which gives scripted answers first and friendly ones then.

    ``said`` is what the member asked, as words: ``join a`` with its member id, ``sync 2`` with the generation.
    """

    def __init__(
        self, script: Mapping[str, list[ErrorCode | str]], *, others: Mapping[str, bytes] = {}
    ) -> None:
        self.said: list[str] = []
        self._others = others
        """Members that there are besides, by what they were given; the first one leads."""
        self.over = asyncio.Event()
        """The script is at its end, and two friendly heartbeats later it may be looked at."""
        self._script = {word: deque(answers) for word, answers in script.items()}
        self._generation = 0
        self._assignment = b""
        self._metadata = b""
        self._ids = iter("abcdefgh")
        self._beats = 0

    # what the member takes for a cluster

    url = "kafka://script"

    async def __aenter__(self) -> Coordinator:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.said.append("hung up")

    async def coordinator(self, kind: int, key: str) -> int:
        return 1

    def forget_coordinator(self, kind: int, key: str) -> None:
        self.said.append("forget")

    async def send(self, node: int, request: Any, response: Any, **how: Any) -> Any:
        word = type(request).__name__.removesuffix("Request").removesuffix("Group").lower()
        word = word.removesuffix("groups")
        details: dict[str, Callable[[], object]] = {
            "join": lambda: request.member_id,
            "sync": lambda: request.generation_id,
            "heartbeat": lambda: f"{request.member_id} {request.generation_id}",
            "leave": lambda: request.members[0].member_id,
            "describe": lambda: "",
        }
        self.said.append(f"{word} {details[word]()}".strip())
        script = self._script.get(word)
        answer = script.popleft() if script else ErrorCode.none
        if answer == LOST:
            raise AnswerLostError("the answer was lost")
        assert isinstance(answer, ErrorCode)
        return getattr(self, f"_{word}")(request, answer)

    def _join(self, request: Any, code: ErrorCode) -> JoinGroupResponse:
        known = code in (ErrorCode.none, REQUIRED)
        member_id = request.member_id or (next(self._ids) if known else "")
        if not code:
            self._generation += 1
            self._metadata = request.protocols[0].metadata
        return JoinGroupResponse(
            throttle_time=NOTHING,
            error_code=code,
            generation_id=i32(self._generation if not code else -1),
            protocol_name="millstream",
            leader=next(iter(self._others), member_id),
            member_id=member_id,
            members=(JoinGroupResponseMember(member_id=member_id, metadata=self._metadata),),
        )

    def _sync(self, request: Any, code: ErrorCode) -> SyncGroupResponse:
        share = Share(self._generation, b"some")
        self._assignment = (
            write_share(share, ()) if self._others else request.assignments[0].assignment
        )
        return SyncGroupResponse(
            throttle_time=NOTHING, error_code=code, assignment=b"" if code else self._assignment
        )

    def _heartbeat(self, request: Any, code: ErrorCode) -> HeartbeatResponse:
        if not any(self._script.values()):
            self._beats += 1
            if self._beats == 2:
                self.over.set()
        return HeartbeatResponse(throttle_time=NOTHING, error_code=code)

    def _leave(self, request: Any, code: ErrorCode) -> LeaveGroupResponse:
        return LeaveGroupResponse(throttle_time=NOTHING, error_code=code, members=())

    def _describe(self, request: Any, code: ErrorCode) -> DescribeGroupsResponse:
        preparing = code is ErrorCode.rebalance_in_progress
        shares = {"a": self._assignment} | {
            name: write_share(Share(self._generation, given), ())
            for name, given in self._others.items()
        }
        members = tuple(
            DescribedGroupMember(
                member_id=name,
                client_id="c",
                client_host="h",
                member_metadata=b"" if preparing else self._metadata,
                member_assignment=b"" if preparing else share,
            )
            for name, share in shares.items()
        )
        group = DescribedGroup(
            error_code=ErrorCode.none if preparing else code,
            group_id=GroupId("g"),
            group_state="PreparingRebalance" if preparing else "Stable",
            protocol_type="consumer",
            protocol_data="millstream",
            members=members if preparing or not code else (),
        )
        return DescribeGroupsResponse(throttle_time=NOTHING, groups=(group,))


class Loop:
    """The event loop's side: what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.shares: list[Mapping[str, bytes]] = []
        self.turns = True

    def loop_turns(self) -> bool:
        return self.turns

    def assigned(self, assignment: Assignment) -> None:
        self.told.append(f"{assignment.member_id} {assignment.generation}")
        self.shares.append(assignment.shares)

    def expelled(self) -> None:
        self.told.append("expelled")


async def live(
    monkeypatch: pytest.MonkeyPatch, script: Mapping[str, list[ErrorCode | str]], **more: Any
) -> tuple[list[str], list[str]]:
    """A member's life through a script, to its leaving: what it said, and what its loop was told."""
    coordinator, loop = Coordinator(script), Loop()
    return await live_with(monkeypatch, coordinator, loop, **more), loop.told


async def live_with(
    monkeypatch: pytest.MonkeyPatch,
    coordinator: Coordinator,
    loop: Loop,
    *,
    pauses_s: tuple[float, float] = (0.0, 0.0),
    **more: Any,
) -> list[str]:
    """The same, with this coordinator: what it said."""
    monkeypatch.setattr(_member, "Cluster", lambda access: coordinator)
    monkeypatch.setattr(_member, "HEARTBEAT_S", 0.0)
    for pause, seconds in zip(("PAUSE_FIRST_S", "PAUSE_LONGEST_S"), pauses_s, strict=True):
        monkeypatch.setattr(_member, pause, seconds)
    terms = Terms(
        group="g",
        assign=lambda members: dict.fromkeys(members, b"all"),
        session_timeout_s=5,
        max_poll_interval_s=5,
        **more,
    )
    member = Member(Access(addresses=parse_url("kafka://script")), terms, b"m", loop)
    leaving = asyncio.Event()
    serving = asyncio.ensure_future(member.serve(leaving))
    waiting = asyncio.ensure_future(coordinator.over.wait())
    async with asyncio.timeout(10):
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        leaving.set()
        await serving
    heartbeats = [word for word in coordinator.said if word.startswith("heartbeat")]
    said = [
        word
        for at, word in enumerate(coordinator.said)
        if not word.startswith("heartbeat") or coordinator.said[at - 1] != word
    ]
    assert heartbeats
    return said


JOINED = ["join", "join a", "sync 1", "heartbeat a 1"]
LEFT = ["leave a", "hung up"]


@pytest.mark.parametrize(
    ("script", "said", "told"),
    [
        # as it should be
        ({"join": [REQUIRED]}, [*JOINED, *LEFT], ["a 1"]),
        ({}, ["join", "sync 1", "heartbeat a 1", *LEFT], ["a 1"]),
        # a rebalance: again, under the same id
        (
            {"join": [REQUIRED], "heartbeat": [ErrorCode.rebalance_in_progress]},
            [*JOINED, "join a", "sync 2", "heartbeat a 2", *LEFT],
            ["a 1", "a 2"],
        ),
        # a generation was missed: the same
        (
            {"join": [REQUIRED], "heartbeat": [ErrorCode.illegal_generation]},
            [*JOINED, "join a", "sync 2", "heartbeat a 2", *LEFT],
            ["a 1", "a 2"],
        ),
        # removed: a new id
        (
            {"join": [REQUIRED], "heartbeat": [ErrorCode.unknown_member_id]},
            [*JOINED, "join", "sync 2", "heartbeat b 2", "leave b", "hung up"],
            ["a 1", "expelled", "b 2"],
        ),
        # removed while joining
        (
            {"join": [REQUIRED, ErrorCode.unknown_member_id, REQUIRED]},
            ["join", "join a", "join", "join b", "sync 1", "heartbeat b 1", "leave b", "hung up"],
            ["expelled", "b 1"],
        ),
        # the next rebalance begins before the shares are there
        (
            {"join": [REQUIRED], "sync": [ErrorCode.rebalance_in_progress]},
            ["join", "join a", "sync 1", "join a", "sync 2", "heartbeat a 2", *LEFT],
            ["a 2"],
        ),
        (
            {"join": [REQUIRED], "sync": [ErrorCode.unknown_member_id]},
            ["join", "join a", "sync 1", "join", "sync 2", "heartbeat b 2", "leave b", "hung up"],
            ["expelled", "b 2"],
        ),
        # another broker coordinates the group now, and knows its members
        (
            {"join": [REQUIRED], "heartbeat": [ErrorCode.not_coordinator, LOST]},
            [*JOINED, "forget", "heartbeat a 1", "forget", "heartbeat a 1", *LEFT],
            ["a 1"],
        ),
        (
            {"join": [ErrorCode.coordinator_load_in_progress, LOST, REQUIRED]},
            ["join", "forget", "join", "forget", *JOINED, *LEFT],
            ["a 1"],
        ),
        (
            {"join": [REQUIRED, ErrorCode.coordinator_not_available]},
            ["join", "join a", "forget", "join a", "sync 1", "heartbeat a 1", *LEFT],
            ["a 1"],
        ),
        # the shares may have been taken, or not: both end with joining again
        (
            {"join": [REQUIRED], "sync": [LOST]},
            ["join", "join a", "sync 1", "forget", "join a", "sync 2", "heartbeat a 2", *LEFT],
            ["a 2"],
        ),
    ],
)
async def test_what_follows(
    monkeypatch: pytest.MonkeyPatch,
    script: Mapping[str, list[ErrorCode | str]],
    said: list[str],
    told: list[str],
) -> None:
    """Each answer has its consequence, and the loop hears what it has to."""
    found_said, found_told = await live(monkeypatch, script)
    assert found_said == said
    assert found_told == told


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        ({"join": [ErrorCode.inconsistent_group_protocol]}, ConfigurationError, "no Millstream"),
        ({"join": [ErrorCode.group_max_size_reached]}, ConfigurationError, r"group\.max\.size"),
        ({"join": [ErrorCode.invalid_session_timeout] * 2}, SettingError, "session_timeout"),
        ({"join": [ErrorCode.group_authorization_failed]}, ConfigurationError, "join group 'g'"),
        ({"heartbeat": [ErrorCode.fenced_instance_id]}, FencedError, "two workers share place 'p'"),
        ({"heartbeat": [ErrorCode.invalid_group_id]}, TransportError, "stay in group 'g'"),
    ],
)
async def test_what_ends_a_membership(
    monkeypatch: pytest.MonkeyPatch,
    script: Mapping[str, list[ErrorCode | str]],
    error: type[Exception],
    says: str,
) -> None:
    """There is no use in trying again, and the error says why."""
    with pytest.raises(error, match=says):
        await live(monkeypatch, script, instance_id="p")


@pytest.mark.parametrize(
    ("describe", "heard"),
    [
        # the answer is lost, the group has moved: it is asked again
        ([LOST, ErrorCode.not_coordinator], [{"a": b"some", "z": b"rest"}]),
        # the next rebalance has begun: what there is to know comes with its outcome
        (
            [ErrorCode.rebalance_in_progress],
            [{"a": b"some"}, {"a": b"some", "z": b"rest"}],
        ),
        # it may not ask
        ([ErrorCode.group_authorization_failed], [{"a": b"some"}]),
    ],
)
async def test_what_the_others_have(
    monkeypatch: pytest.MonkeyPatch,
    describe: list[ErrorCode | str],
    heard: list[Mapping[str, bytes]],
) -> None:
    """A member that does not lead asks for it; its own share never waits for that."""
    script: dict[str, list[ErrorCode | str]] = {"describe": describe}
    if len(heard) > 1:
        script["heartbeat"] = [ErrorCode.rebalance_in_progress]
    loop = Loop()
    await live_with(monkeypatch, Coordinator(script, others={"z": b"rest"}), loop)
    assert loop.shares == heard


async def test_a_group_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked again and again, and the program's log says why nothing happens: once."""
    silent = Coordinator({"join": [LOST] * 8})
    await live_with(monkeypatch, silent, Loop(), pauses_s=(0.001, 0.004))
    (line,) = [r.getMessage() for r in caplog.records if "does not answer" in r.getMessage()]
    assert line == "group 'g' does not answer: the answer was lost"


@pytest.mark.parametrize(("place", "leaves"), [(None, ["leave a", "hung up"]), ("p", ["hung up"])])
async def test_leaving(
    monkeypatch: pytest.MonkeyPatch, place: str | None, leaves: list[str]
) -> None:
    """The group is told, unless the member has a place to come back to."""
    said, _ = await live(monkeypatch, {}, instance_id=place)
    assert said == ["join", "sync 1", "heartbeat a 1", *leaves]


async def test_a_short_session_is_lengthened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the broker asks for it."""
    said, told = await live(monkeypatch, {"join": [ErrorCode.invalid_session_timeout]})
    assert said == ["join", "join", "sync 1", "heartbeat a 1", *LEFT]
    assert told == ["a 1"]


async def test_an_assign_function_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group is left before the error is told."""
    coordinator, loop = Coordinator({}), Loop()
    monkeypatch.setattr(_member, "Cluster", lambda access: coordinator)

    def fail(members: Mapping[str, bytes]) -> dict[str, bytes]:
        raise ZeroDivisionError

    terms = Terms(group="g", assign=fail, session_timeout_s=5, max_poll_interval_s=5)
    member = Member(Access(addresses=parse_url("kafka://script")), terms, b"m", loop)
    with pytest.raises(ZeroDivisionError):
        await member.serve(asyncio.Event())
    assert coordinator.said == ["join", "leave a", "hung up"]


async def test_a_loop_that_does_not_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its member says nothing at all, and goes on where it was once the loop turns again."""
    coordinator, loop = Coordinator({}), Loop()
    monkeypatch.setattr(_member, "Cluster", lambda access: coordinator)
    monkeypatch.setattr(_member, "LOOP_S", 0.0)
    monkeypatch.setattr(_member, "HEARTBEAT_S", 0.0)
    terms = Terms(group="g", assign=lambda m: {}, session_timeout_s=5, max_poll_interval_s=5)
    member = Member(Access(addresses=parse_url("kafka://script")), terms, b"m", loop)
    loop.turns = False
    leaving = asyncio.Event()
    serving = asyncio.ensure_future(member.serve(leaving))
    for _ in range(20):
        await asyncio.sleep(0)
    assert coordinator.said == []
    loop.turns = True
    async with asyncio.timeout(10):
        await coordinator.over.wait()
    loop.turns = False
    silent = len(coordinator.said)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(coordinator.said) <= silent + 1
    leaving.set()
    await serving
    assert coordinator.said[-2:] == ["leave a", "hung up"]
