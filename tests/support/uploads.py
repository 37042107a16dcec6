"""A Put to running services, and the error that it ends with."""

from __future__ import annotations

from typing import Any

import pytest

from lexico_client import GrpcTransport
from lexico_proto import errors
from lexico_proto.v1 import offload_pb2 as pb
from lexico_services.auth import DEFAULT_TENANT
from lexico_store.scopes import tenant_scope
from tests.support.services import (
    Services,
    prompt,
    running_services,
    serialised,
)
from tests.support.waiting import PATIENCE_S

SCOPE = tenant_scope(DEFAULT_TENANT)


async def put(
    services: Services, messages: list[pb.PutRequest], token: str | None = None
) -> pb.PutResponse:
    """A Put through the client's transport: bare grpc.aio loses some statuses on its way."""
    transport = GrpcTransport(services.reload_address, services.offload_address, token)
    try:
        return await transport.put(serialised(messages), PATIENCE_S)
    finally:
        await transport.close()


async def refused(messages: list[pb.PutRequest], **options: Any) -> errors.LexicoError:
    """The error that a Put of these messages ends with; nothing of it may be visible."""
    async with running_services(**options) as services:
        with pytest.raises(errors.LexicoError) as caught:
            await put(services, messages)
        assert services.ingress.budget.used == 0
        assert services.store.present(SCOPE, prompt().keys) == [False, False]
        return caught.value
