"""Commands as bytes: what goes the short way is what redis-py would have sent."""

from __future__ import annotations

import pytest
from redis.connection import PythonRespSerializer

from lexico_store.redis_pool import PACK_CUTOFF_BYTES, LongValue, _encode, _Packer

LONG = bytes(range(256)) * (PACK_CUTOFF_BYTES // 256 + 1)

COMMANDS = (
    ("PING",),
    ("EXISTS", "lx1:p:{00ff}"),
    ("PEXPIRE", "lx1:p:{00ff}", 86_399_990, "XX"),
    ("HSET", "lx1:p:{é}", "g0", b"\x00\r\n\xff" * 63, "g1", b""),
    ("EVAL", "return 1\n-- é", 2, "a b", "c", -5),
    ("HSET", "page", "g0", LongValue((memoryview(LONG), memoryview(b"end")))),
    ("HSET", "page", "g0", LONG),
    ("CONFIG GET", "maxmemory"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command[0]}-{len(command)}")
def test_packed_as_redis_py_would(command: tuple[object, ...]) -> None:
    plain = [b"".join(a.parts) if isinstance(a, LongValue) else a for a in command]
    theirs = PythonRespSerializer(PACK_CUTOFF_BYTES, _encode)
    expected = theirs.pack(*plain)
    packed = _Packer(PACK_CUTOFF_BYTES, _encode).pack(*command)
    assert b"".join(packed) == b"".join(expected)


def test_long_values_are_not_copied() -> None:
    view = memoryview(LONG)
    packed = _Packer(PACK_CUTOFF_BYTES, _encode).pack("HSET", "p", "g0", LongValue((view,)))
    assert any(part is view for part in packed)
