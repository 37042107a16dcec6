"""The in-memory transport is a transport."""

import pytest

from lexico_client import InMemoryTransport
from tests.support.client_transport_contract import TransportContract


class TestInMemoryTransport(TransportContract):
    @pytest.fixture
    def transport(self) -> InMemoryTransport:
        return InMemoryTransport()
