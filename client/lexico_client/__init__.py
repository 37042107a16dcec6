"""What inference nodes import to share their prompt caches.

`Client` and `AsyncClient` match, offload and load pages of any engine's cache; `lexico_client.hf`
does it for Hugging Face models (it imports transformers, so it is imported by its name). Errors are
those of `lexico_proto.errors`.
"""

from typing import TYPE_CHECKING, Any

from lexico_client._async_client import AsyncClient, Wait
from lexico_client._coding import Coding, WithoutSet
from lexico_client._endpoint import Endpoint
from lexico_client._explain import Absence, AbsenceCause, Explanation
from lexico_client._grpc import GrpcTransport
from lexico_client._load import CodesReceiver, PageView, Target
from lexico_client._nearest import Difference, StoredNamespace
from lexico_client._observer import CallEnded, LoadEnded, Observer, OffloadEnded
from lexico_client._offload import PageSource
from lexico_client._results import (
    Described,
    DictionaryEntry,
    Loaded,
    LoadSeconds,
    Match,
    PageOutcome,
    PutReport,
    PutSeconds,
)
from lexico_client._set_calls import ToLoad
from lexico_client._settings import Timeouts
from lexico_client._sync_client import Client
from lexico_client._tls import Tls
from lexico_client._transport import Transport
from lexico_client._weights_files import fingerprint_files
from lexico_codec.inputs import PageInputs, input_digests
from lexico_codec.memory import CacheMemory
from lexico_proto.errors import LexicoError
from lexico_proto.request_id import request

if TYPE_CHECKING:  # `__getattr__` gives it
    from lexico_client._memory import InMemoryTransport

__all__ = [
    "Absence",
    "AbsenceCause",
    "AsyncClient",
    "CacheMemory",
    "CallEnded",
    "Client",
    "CodesReceiver",
    "Coding",
    "Described",
    "DictionaryEntry",
    "Difference",
    "Endpoint",
    "Explanation",
    "GrpcTransport",
    "InMemoryTransport",
    "LexicoError",
    "LoadEnded",
    "LoadSeconds",
    "Loaded",
    "Match",
    "Observer",
    "OffloadEnded",
    "PageInputs",
    "PageOutcome",
    "PageSource",
    "PageView",
    "PutReport",
    "PutSeconds",
    "StoredNamespace",
    "Target",
    "Timeouts",
    "Tls",
    "ToLoad",
    "Transport",
    "Wait",
    "WithoutSet",
    "fingerprint_files",
    "input_digests",
    "request",
]


def __getattr__(name: str) -> Any:
    if name == "InMemoryTransport":  # half a service, for tests: nodes do without
        from lexico_client._memory import InMemoryTransport

        return InMemoryTransport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
