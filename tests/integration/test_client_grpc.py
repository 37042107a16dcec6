"""The gRPC transport is a transport, over real sockets."""

from collections.abc import AsyncIterator

import pytest

from lexico_client import GrpcTransport
from tests.support.client_server import Behaviour, serving
from tests.support.client_transport_contract import TransportContract


class TestGrpcTransport(TransportContract):
    @pytest.fixture
    async def transport(self) -> AsyncIterator[GrpcTransport]:
        async with serving(Behaviour()) as address:
            yield GrpcTransport(address, address)
