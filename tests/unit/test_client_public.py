"""The public door, and settings."""

import inspect

import pytest

import lexico_client
from lexico_client import AsyncClient, Client, InMemoryTransport, Timeouts
from lexico_proto.errors import ConfigurationError


def test_public_names() -> None:
    assert lexico_client.__all__ == [
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
    assert all(hasattr(lexico_client, name) for name in lexico_client.__all__)


def test_both_faces_have_the_same_methods() -> None:
    def methods(cls: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(cls, inspect.isfunction)
            if name == "__init__" or not name.startswith("_")
        }

    assert methods(AsyncClient) == methods(Client)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf"), True, "3"])
def test_a_timeout_is_a_positive_number(seconds: object) -> None:
    with pytest.raises(ConfigurationError, match="match"):
        Timeouts(match=seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"offload": "localhost:1"},
        {"reload": "localhost"},
        {"reload": "localhost:99999"},
        {"reload": ":80"},
        {"reload": "localhost:80", "offload": "http://x/"},
        {"reload": "localhost:80", "transport": InMemoryTransport()},
        {"transport": InMemoryTransport(), "threads": 0},
    ],
    ids=lambda arguments: "+".join(arguments) or "nothing",
)
def test_clients_that_cannot_be_built(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        AsyncClient(**arguments)  # type: ignore[arg-type]
