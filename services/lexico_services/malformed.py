"""Requests that are no message of theirs: refused as input, not answered as a defect.

gRPC parses a request before a servicer has it, and answers UNKNOWN with the name of a Python class
where it cannot. Messages of a stream are parsed as they are read: `status.translated` has those.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from lexico_proto.errors import InvalidInput
from lexico_services.status import abort

_OURS: Final = "/lexico_proto."
_MALFORMED: Final = object()


class MalformedRequests(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Stands between every other interceptor and the servicers."""

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of a call, or one that refuses what cannot be parsed."""
        handler = await continuation(handler_call_details)
        if (
            handler is None
            or handler.request_streaming
            or handler.request_deserializer is None
            or not handler_call_details.method.startswith(_OURS)
        ):
            return handler
        parse = _careful(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _refusing(handler.unary_stream), parse, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _refusing(handler.unary_unary), parse, handler.response_serializer
        )


def _careful(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parsed(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _MALFORMED

    return parsed


def _refusing(behaviour: Any) -> Any:
    """As `behaviour`, but for what was not parsed."""
    refusal = InvalidInput("the request cannot be parsed: it is no message of this method")
    if inspect.isasyncgenfunction(behaviour):

        async def generate(request: Any, context: Any) -> Any:
            if request is _MALFORMED:
                await abort(context, refusal)
            async for message in behaviour(request, context):
                yield message

        return generate

    async def answer(request: Any, context: Any) -> Any:
        if request is _MALFORMED:
            await abort(context, refusal)
        return await behaviour(request, context)

    return answer
