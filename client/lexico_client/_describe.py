"""Asking both servers what they are."""

from __future__ import annotations

from lexico_client._deadline import Budget, with_retry
from lexico_client._results import Described
from lexico_client._transport import Server, Transport
from lexico_codec.formats import Formats, formats_from_wire, formats_to_wire, own_formats
from lexico_proto.errors import ConfigurationError, Unsupported
from lexico_proto.v1 import versions_pb2 as versions


async def describe_servers(transport: Transport, budget: Budget) -> Described:
    """What the reload server and, where the transport knows one, the offload server say.

    Raises:
        LexicoError: a server could not answer.
    """
    reload = await _formats(transport, "reload", budget)
    try:
        offload = await _formats(transport, "offload", budget)
    except ConfigurationError:  # a client that only reloads
        offload = None
    return Described(reload, offload)


async def _formats(transport: Transport, server: Server, budget: Budget) -> Formats | None:
    """None for a server that is older than the exchange."""
    request = versions.DescribeRequest(caller=formats_to_wire(own_formats()))
    try:
        response = await with_retry(
            budget, lambda: transport.describe(server, request, budget.left())
        )
    except Unsupported:
        return None
    return formats_from_wire(response.server)
