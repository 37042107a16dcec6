"""Endpoints, their tokens, and channels whose security changes."""

from __future__ import annotations

import grpc
import pytest

from lexico_client import AsyncClient, Endpoint, GrpcTransport
from lexico_client._channels import _RETIRED_SECONDS, Channels
from lexico_client._endpoint import Plaintext
from lexico_proto.errors import ConfigurationError
from tests.support.changing_security import Changing
from tests.support.waiting import settle, skip_ahead, until

SECRET = "t0ken-nobody-may-see"


@pytest.mark.parametrize(
    "address",
    [
        "localhost:1",
        "[::1]:65535",
        "unix:/run/lexico",
        "dns:reload.lexico:7412",
        "dns:///reload.lexico:7412",
        "dns://10.0.0.10/reload.lexico:7412",
        "dns://[::1]:53/reload.lexico:7412",
        "ipv4:10.0.0.1:7412,10.0.0.2:7413",
        "ipv6:[::1]:7412,[fe80::2]:7412",
    ],
)
def test_an_endpoint_stands_for_an_address(address: str) -> None:
    assert Endpoint(address) == Endpoint(address, None, Plaintext())
    AsyncClient(reload=Endpoint(address), offload=address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        "localhost:0",
        ":80",
        "unix:",
        "http://x/",
        "http://x:80",
        "::1:80",
        "x:80/path",
        "x:80,y:80",
        "dns:///x",
        "dns:///x:0",
        "dns:///x:80,y:80",
        "ipv4:10.0.0.1:7412,10.0.0.2:70000",
        "ipv4:10.0.0.1",
        "x:80\n",
    ],
)
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(ConfigurationError, match="host:port or unix:path"):
        Endpoint(address)


@pytest.mark.parametrize("token", [f"{SECRET}\n", f"{SECRET}é", f"{SECRET}\0"])
def test_tokens_that_cannot_be_sent(token: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Endpoint("localhost:1", token)
    assert SECRET not in str(caught.value)


def test_a_token_is_not_shown() -> None:
    assert SECRET not in repr(Endpoint("localhost:1", SECRET))


@pytest.mark.parametrize("where", ["reload", "offload"])
def test_one_token_in_two_places(where: str) -> None:
    addresses: dict[str, str | Endpoint] = {"reload": "localhost:1", "offload": "localhost:1"}
    addresses[where] = Endpoint("localhost:1", SECRET)
    with pytest.raises(ConfigurationError, match=f"endpoint of {where}=") as caught:
        GrpcTransport(**addresses, token=SECRET)  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


async def test_endpoints_share_a_channel_where_security_is_equal() -> None:
    channels, changing = Channels(), Changing()
    first = channels.to(Endpoint("localhost:1"))
    assert channels.to(Endpoint("localhost:1", SECRET)) is first
    assert channels.to(Endpoint("localhost:2")) is not first
    assert channels.to(Endpoint("localhost:1", None, changing)) is not first
    await channels.close()


async def test_a_channel_is_replaced_when_its_security_changes() -> None:
    channels, changing = Channels(), Changing()
    endpoint = Endpoint("localhost:1", None, changing)
    old = channels.to(endpoint)
    assert channels.to(endpoint) is old
    changing.now = 1
    new = channels.to(endpoint)
    assert new is not old
    assert channels.to(endpoint) is new
    assert changing.made == [0, 1]
    assert list(channels._retired.values()) == [old]  # calls that were begun go on
    await settle()  # the wait has begun
    skip_ahead(2 * _RETIRED_SECONDS)
    await until(lambda: not channels._retired, "the old channel closed")
    assert old.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    changing.now = 2
    assert channels.to(endpoint) is not new
    await channels.close()  # waits for no retired one
    assert new.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    assert not channels._retired
