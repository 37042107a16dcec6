"""Bytes that are no message: every RPC refuses them as input, and counts and logs no defect."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from lexico_proto.errors import InvalidInput
from lexico_proto.metrics import CALLS
from tests.fuzz.rpcs import attack, methods
from tests.support.channels import service_channel
from tests.support.services import error_of, running_services
from tests.support.waiting import PATIENCE_S

NO_MESSAGE = b"\x0a\xff"
"""A field that is longer than the message."""


async def test_every_rpc(caplog: pytest.LogCaptureFixture) -> None:
    async with running_services() as services:
        for path, method in methods():
            offload = ".Offload/" in path
            address = services.offload_address if offload else services.reload_address
            async with service_channel(address) as channel:
                kind: Any = {
                    (False, False): channel.unary_unary,
                    (False, True): channel.unary_stream,
                    (True, False): channel.stream_unary,
                }[method.client_streaming, method.server_streaming]
                sent: Any = iter([NO_MESSAGE]) if method.client_streaming else NO_MESSAGE
                call: Any = kind(path)(sent, timeout=PATIENCE_S)
                answer = call.read() if method.server_streaming else call
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await answer
                assert isinstance(error_of(refused.value), InvalidInput), path
        assert not any(outcome == "internal-error" for _, outcome in services.counts(CALLS))
    assert "a call failed" not in caplog.text


async def test_messages_that_are_nearly_sound() -> None:
    result = await attack(calls=150, seed=7)
    assert result["findings"] == []
