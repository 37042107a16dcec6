"""One exchange with one server: commands go out, and each comes back with an outcome of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import redis
from redis import exceptions as redis_exceptions

from lexico_store.deadline import remaining_s, within
from lexico_store.redis_bulk import BulkReplies, bytearray_room
from lexico_store.redis_errors import cause_of_abort, is_lost, is_of_another_kind
from lexico_store.redis_pool import LongValue
from lexico_store.room import Runs

Argument = bytes | LongValue | str | int
Command = tuple[Argument, ...]

_PLACE_OF_KEY: Final = {"EVAL": 3, "EVALSHA": 3}
_CALLBACKS: Final[dict[str, Any]] = dict(redis.Redis(protocol=2).response_callbacks)
"""redis-py's reading of replies: HGETALL as a dict, and so on."""

FIRST_SHARE = 0.5
"""Of the time that is left, what a try gets that another one may follow. The rest is for that one,
should the network have forgotten the connection, or another server take over. A smaller share would
ask a busy server twice."""


class Unit(NamedTuple):
    """What one server carries out in one go: a command, or several within MULTI."""

    commands: tuple[Command, ...]
    atomic: bool = False
    waits: bool = True
    """Whether it is tried again while a part of its keys is on either side of a slot's move."""
    room: Callable[[int], Runs] | None = None
    """Of a single command whose reply is one long string: memory for it, by its length."""
    of_others: Any = None
    """Of a single command: its outcome where something of another kind stands under the name, if
    that is no error."""

    @property
    def name(self) -> str | None:
        """The name whose slot decides where the unit goes; None if any server will do."""
        command = self.commands[0]
        place = _PLACE_OF_KEY.get(str(command[0]), 1)
        return str(command[place]) if place < len(command) else None

    def wire(self, asking: bool) -> list[Command]:
        """The commands as they are sent; `asking` follows an ASK of a slot on the move."""
        ask: list[Command] = [("ASKING",)] if asking else []
        if not self.atomic:
            return [*ask, *self.commands]
        return [*ask, ("MULTI",), *self.commands, ("EXEC",)]

    def outcome(self, replies: Sequence[Any]) -> Any:
        """Of the replies to `wire`, the one that counts; of several errors the first."""
        if not self.atomic:
            name, reply = str(self.commands[0][0]), replies[-1]
            if self.of_others is not None and is_of_another_kind(reply):
                return self.of_others
            read = None if isinstance(reply, Exception) else _CALLBACKS.get(name)
            return reply if read is None else read(reply)
        done = replies[-1]
        answers = [*replies[:-1], *done] if isinstance(done, list) else list(replies)
        error = next((each for each in answers if isinstance(each, Exception)), None)
        return done if error is None else cause_of_abort(error)


class Exchange:
    """Units that go to one server on one connection. `send`, `receive`, and in any case `end`."""

    def __init__(
        self,
        pool: redis.ConnectionPool,
        units: Mapping[int, Unit],
        timeout_s: float,
        *,
        anew: bool,
        last: bool,
    ) -> None:
        """
        Args:
            pool: the server's connections.
            units: by their place in the call.
            timeout_s: longest wait for one send or receive.
            anew: on a connection that no one has used before.
            last: no other try follows one on a new connection, so it has all the time that is left.
        """
        self.pool = pool
        self.units = units
        self.asking: frozenset[int] = frozenset()
        """Those of `units` that follow an ASK."""
        self.outcomes: dict[int, Any] = {}
        """By place: a reply, the replies of a MULTI, or the error."""
        self.heard: bool | None = None
        """Whether the server answered, if only that it will not; None where it was not asked."""
        self.reused = False
        """The connection had answered before."""
        self._timeout_s = timeout_s
        self._anew = anew
        self._last = last
        self._connection: Any = None

    def send(self) -> None:
        """Sends everything; a failure is the outcome of every unit."""
        try:
            with within(remaining_s() * (1 if self._last else FIRST_SHARE)):
                connection: Any = self.pool.get_connection()
                self._connection = connection
                if connection.exchanges and (self._anew or connection.rested):
                    connection.disconnect()
                    connection.connect()
            self.reused = connection.exchanges > 0
            connection.update_current_socket_timeout(self._first_wait_s())
            wire = [c for i, unit in self.units.items() for c in unit.wire(i in self.asking)]
            connection.send_packed_command(connection.pack_commands(wire), check_health=False)
        except (redis.RedisError, OSError) as error:
            self._fail(error)

    def receive(self) -> None:
        """Reads the outcome of every unit that was sent."""
        if len(self.outcomes) == len(self.units):
            return
        connection, first = self._connection, True
        try:
            replies = _Replies(connection, self.units.values())
            for i, unit in self.units.items():
                # A MULTI is confirmed before all of it has arrived there: EXEC is the answer.
                parts = len(unit.wire(i in self.asking)) if unit.atomic or self.asking else 1
                self.outcomes[i] = unit.outcome([replies.next(unit) for _ in range(parts)])
                if first:
                    connection.update_current_socket_timeout(self._timeout_s)
                    first = False
            replies.end()
            connection.answered()
            self.heard = True
        except (redis.RedisError, OSError) as error:
            self._fail(error)

    def end(self) -> None:
        """Gives the connection back; one that owes us replies is closed first."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if len(self.outcomes) < len(self.units):
                connection.disconnect()
            self.pool.release(connection)

    def _first_wait_s(self) -> float:
        wait = remaining_s() * (1 if self._last and not self.reused else FIRST_SHARE)
        return min(self._timeout_s, max(0.01, wait))

    def _fail(self, error: Exception) -> None:
        """Units without an outcome have this one. A lost connection takes the idle ones along:
        what befell it, a restart or a cut, befell them too."""
        if self._connection is not None:
            self._connection.disconnect()
        if not isinstance(error, redis_exceptions.MaxConnectionsError):
            loading = isinstance(error, redis_exceptions.BusyLoadingError)
            self.heard = loading or not is_lost(error)
        if is_lost(error):
            self.pool.disconnect(inuse_connections=False)
        for i in self.units:
            self.outcomes.setdefault(i, error)


class _Replies:
    """Of one exchange: read by redis-py, or without its copies where the units have room."""

    def __init__(self, connection: Any, units: Iterable[Unit]) -> None:
        self._connection = connection
        self._bulk: BulkReplies | None = None
        if any(unit.room is not None for unit in units):
            self._bulk = connection.bulk_replies()

    def next(self, unit: Unit) -> Any:
        """A reply of the unit's, or an error of the server's as a value."""
        if self._bulk is None:
            return _reply(self._connection)
        return self._bulk.next(unit.room or bytearray_room)

    def end(self) -> None:
        """
        Raises:
            redis.InvalidResponse: there is more than was asked for.
        """
        if self._bulk is not None:
            self._bulk.end()


@contextmanager
def interview(
    pool: redis.ConnectionPool, timeout_s: float
) -> Iterator[Callable[[Sequence[Command]], list[Any]]]:
    """One connection for several questions, closed afterwards, with whatever state it has then.

    Yields a call that gives the replies to commands; those that are errors too.
    """
    connection: Any = pool.get_connection()
    try:
        if connection.exchanges:
            connection.disconnect()
            connection.connect()
        connection.update_current_socket_timeout(timeout_s)

        def ask(commands: Sequence[Command]) -> list[Any]:
            packed = connection.pack_commands(commands)
            connection.send_packed_command(packed, check_health=False)
            return [_reply(connection) for _ in commands]

        yield ask
    finally:
        connection.disconnect()
        pool.release(connection)


def _reply(connection: Any) -> Any:
    """A reply; an error of the server's comes back as a value, so that those after it are read."""
    try:
        return connection.read_response()
    except redis_exceptions.ResponseError as error:
        return error
