"""The seam between the client and what carries its calls.

A transport speaks the messages of lexico_proto.v1, those of an upload as bytes, and raises the
error tree, nothing else. The definition is tests/support/client_transport_contract.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal, Protocol

from google.protobuf.message import Message

from lexico_proto.errors import MessageTooLarge
from lexico_proto.limits import MESSAGE_BYTES
from lexico_proto.v1 import dictionaries_pb2 as dictionaries
from lexico_proto.v1 import offload_pb2 as offload
from lexico_proto.v1 import reload_pb2 as reload
from lexico_proto.v1 import versions_pb2 as versions

Server = Literal["reload", "offload"]
"""One of the two servers that a client speaks to."""


class Transport(Protocol):
    """The services of both servers. Each call ends within `timeout` seconds, or raises
    `DeadlineExpired`.

    Every method raises errors of `lexico_proto.errors` alone; a cancellation of the running task
    passes.
    """

    async def match(self, request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        """Reload.Match."""
        ...

    async def namespaces(
        self, request: reload.NamespacesRequest, timeout: float
    ) -> reload.NamespacesResponse:
        """Reload.Namespaces. `Unsupported` where the server is of an earlier release."""
        ...

    def get(
        self, request: reload.GetRequest, timeout: float
    ) -> AsyncGenerator[reload.GetResponse, None]:
        """Reload.Get. Closing the generator ends the call."""
        ...

    async def put(
        self, messages: AsyncGenerator[bytes, None], timeout: float
    ) -> offload.PutResponse:
        """Offload.Put, of serialised PutRequests: `lexico_codec.put_messages` writes and reads
        them. Stops taking messages where the service has answered already.
        """
        ...

    async def register(
        self, messages: AsyncGenerator[dictionaries.RegisterRequest, None], timeout: float
    ) -> dictionaries.RegisterResponse:
        """Dictionaries.Register."""
        ...

    def fetch(
        self, request: dictionaries.FetchRequest, timeout: float
    ) -> AsyncGenerator[dictionaries.FetchResponse, None]:
        """Dictionaries.Fetch."""
        ...

    async def list_dictionaries(self, timeout: float) -> dictionaries.ListResponse:
        """Dictionaries.List."""
        ...

    async def publish(
        self, request: dictionaries.PublishRequest, timeout: float
    ) -> dictionaries.PublishResponse:
        """Dictionaries.Publish. `Unsupported` where the server is of an earlier release."""
        ...

    async def find(
        self, request: dictionaries.FindRequest, timeout: float
    ) -> dictionaries.FindResponse:
        """Dictionaries.Find. `Unsupported` where the server is of an earlier release."""
        ...

    async def describe(
        self, server: Server, request: versions.DescribeRequest, timeout: float
    ) -> versions.DescribeResponse:
        """Versions.Describe, of one server."""
        ...

    async def close(self) -> None:
        """Ends calls that still run. May be called more than once."""
        ...


def check_size(message: Message | bytes, what: str) -> None:
    """Raises:
    MessageTooLarge: the message would be refused on the wire.
    """
    size = len(message) if isinstance(message, bytes) else message.ByteSize()
    if size > MESSAGE_BYTES:
        raise MessageTooLarge(
            f"{what}: {size} bytes, at most {MESSAGE_BYTES} fit into one message: "
            "use larger pages or a shorter prefix"
        )
