"""Redis: a hash per key, in Redis, Valkey or a Redis Cluster."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_type_hints

import msgspec
import redis
from pydantic import Field, field_validator
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError, ResponseError
from redis.retry import Retry

from app.actions.action import Action, Decision, Delivery, Sink
from app.actions.attempts import Attempts, FailedAttemptError
from app.actions.position import BEGINNING, Position, Saved
from app.actions.table import KEY_COLUMN
from app.actions.writer import Batch, Outcome, SinkWriter
from app.config import DurationMs, Settings
from app.errors import ActionError, BrokerError, DeclarationError, RetryableActionError, SinkAwayError

TIMEOUT_S = 5.0
SCHEMES = ("redis://", "rediss://", "unix://")
ERRORS = (RedisError, RedisClusterException)
STATES = re.compile(r"\b(OOM|BUSY|MISCONF|NOREPLICAS|UNKILLABLE|READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|WRONGPASS)\b")
"""What a server in no state to write answers, to whatever it is asked. redis-py has no class of its own for some."""

PUT = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and kind ~= 'hash' then return kind end
local applied = redis.call('HGET', KEYS[1], ARGV[1])
if applied and tonumber(applied) >= tonumber(ARGV[2]) then return '' end
local first = 5 + ARGV[4]
for at = 5, first - 1 do redis.call('HDEL', KEYS[1], ARGV[at]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2], unpack(ARGV, first))
if ARGV[3] == '' then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIREAT', KEYS[1], ARGV[3]) end
return ''
"""
"""Writes a hash unless it reflects this offset of the partition already. Returns the type of a key that is no hash.

ARGV: the field that says which offset is applied, the offset, when to expire in ms since the epoch or nothing, the
number of fields to remove, these, and then names and values. One key a script: in a cluster others lie elsewhere.
"""
MOVE = """
local found = redis.call('GET', KEYS[1])
if found == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2])
  return ''
end
return found or 'no place at all'
"""
"""Moves the cursor from one place to the next. Returns where it stands instead, if it does."""


class Redis(Sink, frozen=True):
    """A hash for each value of `key`, one of the action's fields: what the latest action that has it says.

    Without `key` every action is a hash of its own. Its name is a prefix and the value; its fields are the action's
    (texts as they are, the rest as JSON, a None is no field), the idempotency key, and for each source partition the
    offset that it reflects, by which one atomic script decides: a repeat, a replay or a worker that was thought dead
    changes nothing. Of several actions with the same key in one batch the last alone is written; between actions of
    different partitions the last to be carried out stays.

    The cursor is a key beside them, moved when all before it is acknowledged. What of the data is lost together with
    it (a restart without persistence or from an older copy, FLUSHALL, a failover of the server that has both) comes
    back: the decision log is carried out anew from where the cursor is then, as far back as the log goes. What is lost
    alone is not missed: an evicted key, a failover of another server of a cluster; it is there again with its next
    action. Set `maxmemory-policy noeviction`: Redis then says when it is full, and is waited for.

    A key that holds another type is refused and its actions become dead letters at once; an action that the server
    fails on otherwise, after `attempts`. A server that is away, full, read-only or lacks a right is waited for without
    end.
    """

    key: str = KEY_COLUMN


class RedisSettings(Settings):
    """url:      redis://user:password@host:port/database, rediss:// with TLS, or unix:///path; "off" does not run the
              sink.
    cluster:  whether the server is one of a Redis Cluster, which tells of the others.
    prefix:   of the keys; the sink's name and ":", if not given.
    ttl:      how long after its event was appended to the source a hash is kept, so that a repeat prolongs nothing;
              without end if not given.
    attempts: how often an action is tried that the server fails on, before it becomes a dead letter.
    """

    url: str
    cluster: bool = False
    prefix: str = Field(min_length=1)
    ttl_ms: DurationMs | None = Field(default=None, alias="ttl")
    attempts: int = Field(default=20, ge=1)

    @field_validator("url")
    @classmethod
    def _is_understood(cls, url: str) -> str:
        try:
            if not url.startswith(SCHEMES):
                raise ValueError
            redis.ConnectionPool.from_url(url)
        except ValueError as error:  # the value is not shown: it can hold a password
            raise ValueError(f"this is no address of Redis; write one of {', '.join(SCHEMES)} with the rest") from error
        return url


def check_key(action: type[Action], sink: Redis) -> None:
    """Raises DeclarationError when the action has no such field, or one that makes no name for a hash."""
    types = {"id": str, "time": int, "reason": str} if action is Decision else get_type_hints(action)
    if KEY_COLUMN in types:
        raise DeclarationError(f"{action.__name__}.{KEY_COLUMN} is a field that Redis itself adds; rename it")
    usable = [KEY_COLUMN, *(name for name, of_field in types.items() if of_field in (str, int))]
    if sink.key not in usable:
        raise DeclarationError(
            f"Redis({sink.name!r}, key={sink.key!r}): {action.__name__} has no such field of type str or int; "
            f"use one of {', '.join(usable)}"
        )


class HashWriter(SinkWriter[Delivery]):
    """See Redis. `cursor` names the cursors: `headrace:{cursor}:{partition}`, a text like "[applied,log_offset]"."""

    def __init__(self, cursor: str, key: str, settings: RedisSettings, attempts: Attempts) -> None:
        self._cursor = cursor
        self._key = key
        self._settings = settings
        self._attempts = attempts
        self._client: Any = None
        self._places: dict[int, bytes] = {}

    def resume(self, saved: Mapping[int, Saved | None]) -> dict[int, Position]:
        with self._errors_told():
            pipe = self._connected().pipeline(transaction=False)
            for partition in saved:
                pipe.set(self._cursor_key(partition), _encode(BEGINNING), nx=True)
                pipe.get(self._cursor_key(partition))
            found = pipe.execute()[1::2]
        self._places |= dict(zip(saved, found, strict=True))
        return {partition: self._decode(partition) for partition in saved}

    def _decode(self, partition: int) -> Position:
        try:
            return msgspec.json.decode(self._places[partition] or b"", type=Position)
        except msgspec.DecodeError as error:
            raise RetryableActionError(
                f"{self._cursor_key(partition)} holds {self._places[partition]!r}, which is no cursor; delete it, and "
                "the sink carries its log out anew"
            ) from error

    def write(self, batches: Sequence[Batch[Delivery]]) -> list[Outcome]:
        return [self._write_or_fail(batch) for batch in batches]

    def _write_or_fail(self, batch: Batch[Delivery]) -> Outcome:
        try:
            return self._write(batch)
        except (RetryableActionError, BrokerError) as error:
            return Outcome(batch.start, error)

    def _write(self, batch: Batch[Delivery]) -> Outcome:
        answers = self._put_latest(batch)
        outcome = Outcome(batch.end)
        for delivery in batch.deliveries:
            try:
                given_up = self._gives_up(delivery, answers)
            except FailedAttemptError as error:
                outcome = Outcome(batch.before(delivery), error, outcome.dead_letters)
                break
            outcome = outcome._replace(dead_letters=outcome.dead_letters + given_up)
        self._move(batch.partition, outcome.position)
        return outcome

    def _put_latest(self, batch: Batch[Delivery]) -> dict[str, Any]:
        """What the server said of each hash: nothing, the type of a key that is none, or an error."""
        latest = {name: each for each in batch.deliveries if (name := self._name(each)) is not None}
        if not latest:
            return {}
        with self._errors_told():
            pipe = self._connected().pipeline(transaction=False)
            for name, delivery in latest.items():
                pipe.execute_command("EVAL", PUT, 1, name, *self._arguments(delivery))  # a cluster's has no eval()
            answers = pipe.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, ERRORS) and _is_away(answer):
                    raise answer
        return dict(zip(latest, answers, strict=True))

    def _name(self, delivery: Delivery) -> str | None:
        """The hash of a delivery; None when its key is no text or number."""
        value = delivery.key if self._key == KEY_COLUMN else delivery.fields.get(self._key)
        fits = isinstance(value, (str, int)) and not isinstance(value, bool)
        return f"{self._settings.prefix}{value}" if fits else None

    def _arguments(self, delivery: Delivery) -> list[str | int | bytes]:
        fields = {name: value for name, value in delivery.fields.items() if name != "type"}
        fields[KEY_COLUMN] = delivery.key
        absent = [name for name, value in fields.items() if value is None]
        present = [part for name, value in fields.items() if value is not None for part in (name, _text(value))]
        ttl_ms = self._settings.ttl_ms
        expires_ms: int | str = "" if ttl_ms is None else delivery.append_ms + ttl_ms
        applied = f"applied:{self._cursor}:{delivery.partition}"
        return [applied, delivery.offset, expires_ms, len(absent), *absent, *present]

    def _gives_up(self, delivery: Delivery, answers: Mapping[str, Any]) -> bool:
        """Whether it becomes a dead letter now. Raises FailedAttemptError when it is still to be carried out."""
        if self._attempts.is_given_up(delivery):
            return False
        problem = self._problem(delivery, answers)
        if problem is None:
            return False
        if isinstance(problem, FailedAttemptError):
            self._attempts.failed(delivery, problem)
        else:
            self._attempts.refused(delivery, str(problem))
        return True

    def _problem(self, delivery: Delivery, answers: Mapping[str, Any]) -> ActionError | None:
        name = self._name(delivery)
        if name is None:
            return ActionError(f"{self._key} is {delivery.fields.get(self._key)!r}, which makes no name of a hash")
        if isinstance(answers[name], ERRORS):
            return FailedAttemptError(f"Redis failed on {name}: {answers[name]}")
        if answers[name]:
            return ActionError(f"{name} holds a {answers[name].decode()}, which is no hash")
        return None

    def deliver(self, delivery: Delivery) -> None:
        """A hash that a later action has written in the meantime stays as it is."""
        batch = Batch(delivery.partition, BEGINNING, BEGINNING, [delivery])
        problem = self._problem(delivery, self._put_latest(batch))
        if problem is not None:
            raise ActionError(str(problem))

    def _move(self, partition: int, position: Position) -> None:
        """Raises RetryableActionError when the cursor is not where this worker left it."""
        expected, place = self._places[partition], _encode(position)
        with self._errors_told():
            found = self._connected().eval(MOVE, 1, self._cursor_key(partition), expected, place)
        if found:
            raise RetryableActionError(
                f"the cursor {self._cursor_key(partition)} stands at {found.decode()}, not where this worker left it, "
                f"at {expected.decode()}: another worker has gone on from there, or Redis has lost data; going on there"
            )
        self._places[partition] = place

    def _cursor_key(self, partition: int) -> str:
        return f"headrace:{self._cursor}:{partition}"

    def _connected(self) -> Any:
        """Without retries of its own: the loop has them."""
        if self._client is None:
            kind = redis.RedisCluster if self._settings.cluster else redis.Redis
            self._client = kind.from_url(
                self._settings.url,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
            )
        return self._client

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except ERRORS as error:
            raise SinkAwayError(f"Redis says: {' '.join(str(error).split())}") from error

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._attempts.close()


def _is_away(error: Exception) -> bool:
    """A plain answer concerns what was asked, unless it names a state of the server."""
    return type(error) is not ResponseError or STATES.search(str(error)) is not None


def _encode(position: Position) -> bytes:
    return msgspec.json.encode(position)


def _text(value: Any) -> str | bytes:
    return value if isinstance(value, str) else msgspec.json.encode(value)
