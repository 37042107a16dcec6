"""Interceptors that note each call they see. Those of a client may add to its metadata."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

Pair = tuple[str, str]


class _Notes:
    def __init__(self, name: str, notes: list[str], metadata: tuple[Pair, ...]) -> None:
        self._name = name
        self._notes = notes
        self._metadata = metadata

    def _noted(self, details: Any) -> Any:
        method = details.method
        text = method.decode() if isinstance(method, bytes) else method
        self._notes.append(f"{self._name} {text.rpartition('/')[2]}")
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *self._metadata)
        return details._replace(metadata=metadata)


class _Unary(_Notes, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(self._noted(client_call_details), request)


class _Download(_Notes, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(self._noted(client_call_details), request)


class _Upload(_Notes, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]
    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(self._noted(client_call_details), request_iterator)


def client_interceptors(
    name: str, notes: list[str], *metadata: Pair
) -> list[grpc.aio.ClientInterceptor]:
    """One for each kind of call: gRPC uses an object for one kind alone, whatever it could do."""
    kinds: tuple[Any, ...] = (_Unary, _Download, _Upload)
    return [kind(name, notes, metadata) for kind in kinds]


class ServerNotes(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Notes each call."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self._name = name
        self._notes = notes

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        self._notes.append(f"{self._name} {handler_call_details.method.rpartition('/')[2]}")
        return await continuation(handler_call_details)
