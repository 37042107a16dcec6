"""TLS over real sockets: rotation, mutual TLS, and what goes wrong in so many words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from lexico_client import AsyncClient, Endpoint, Tls
from lexico_client._tls import StrPath
from lexico_proto import errors
from lexico_proto.metrics import CERTIFICATE_END, PROCESS
from lexico_proto.watched import look_again
from lexico_services.config import ListenConfig
from lexico_services.door_config import TlsConfig
from lexico_services.doors import check_doors
from lexico_services.server import GrpcServer
from tests.support.authorities import Authority, Issued
from tests.support.services import Prompt, Services, prompt, running_services
from tests.support.waiting import PATIENCE_S

NODE = "spiffe://cluster.local/ns/red/sa/node"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def stranger() -> Authority:
    return Authority("stranger")


@pytest.fixture
def served(tmp_path: Path, authority: Authority) -> TlsConfig:
    """A server's certificate, which is good."""
    return TlsConfig(*authority.issue().write(tmp_path, "server"))


@pytest.fixture
def known(tmp_path: Path, authority: Authority) -> Path:
    return authority.write(tmp_path)


def _client(services: Services, folder: Path, tls: Tls | None, token: str | None = None) -> Any:
    return AsyncClient(
        reload=services.reload_address,
        offload=services.offload_address,
        token=token,
        dictionaries_dir=folder / "sets",
        tls=tls,
    )


async def _asks(client: AsyncClient) -> None:
    await client.list_dictionaries(timeout=PATIENCE_S)


def _nowhere(sent: Prompt) -> Callable[[int], Any]:
    return lambda pages: lambda page, group: torch.empty(sent.spec.group_shape(group))


async def test_pages_go_up_and_down(tmp_path: Path, served: TlsConfig, known: Path) -> None:
    sent = prompt()
    got = [[torch.zeros_like(group) for group in page] for page in sent.pages]
    async with (
        running_services(tls=served) as services,
        _client(services, tmp_path, Tls(ca=known)) as client,
    ):
        await client.offload(sent.spec, sent.token_ids, lambda page, group: sent.pages[page][group])
        loaded = await client.load(
            sent.spec, sent.token_ids, lambda pages: lambda page, group: got[page][group]
        )
    assert loaded.pages == len(sent.pages)
    for page, copy in zip(sent.pages, got, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(page, copy, strict=True))


@asynccontextmanager
async def _refused(
    folder: Path, tls: TlsConfig | None, client_tls: Tls | None, said: str
) -> AsyncIterator[None]:
    """A load is a miss that says why, everything else raises it; the block follows."""
    sent = prompt()
    async with running_services(tls=tls) as services, _client(services, folder, client_tls) as own:
        loaded = await own.load(sent.spec, sent.token_ids, _nowhere(sent), timeout=PATIENCE_S)
        assert loaded.pages == 0
        assert type(loaded.reason) is errors.Unavailable
        assert said in loaded.reason.message
        with pytest.raises(errors.Unavailable, match=said):
            await own.offload(
                sent.spec, sent.token_ids, lambda page, group: sent.pages[page][group]
            )
        yield


async def test_plaintext_to_a_tls_port(tmp_path: Path, served: TlsConfig) -> None:
    async with _refused(tmp_path, served, None, "does it want TLS"):
        pass


async def test_tls_to_a_plaintext_port(tmp_path: Path, known: Path) -> None:
    async with _refused(tmp_path, None, Tls(ca=known), "the port speaks no TLS"):
        pass


async def test_an_authority_that_did_not_make_it(
    tmp_path: Path, served: TlsConfig, stranger: Authority
) -> None:
    async with _refused(tmp_path, served, Tls(ca=stranger.write(tmp_path)), "no authority of"):
        pass


async def test_another_name(tmp_path: Path, authority: Authority, known: Path) -> None:
    elsewhere = TlsConfig(*authority.issue(("elsewhere",)).write(tmp_path, "server"))
    async with _refused(tmp_path, elsewhere, Tls(ca=known), "has not this name"):
        pass
    async with (
        running_services(tls=elsewhere) as services,
        _client(services, tmp_path, Tls(ca=known, server_name="elsewhere")) as client,
    ):
        await _asks(client)


@dataclass(frozen=True)
class _Unlooked:
    """A port that shows what nobody has looked at, as one does whose certificate ends meanwhile."""

    issued: Issued

    def bind(self, server: grpc.aio.Server, target: str) -> int:
        pair = (self.issued.key, self.issued.chain)
        return server.add_secure_port(target, grpc.ssl_server_credentials([pair]))


async def test_a_certificate_that_ended(tmp_path: Path, authority: Authority, known: Path) -> None:
    ended = _Unlooked(authority.issue(lasts=timedelta(hours=-1)))
    server = GrpcServer(ListenConfig(drain_s=0), lambda server: None, (), ended)
    await server.start()
    address = f"127.0.0.1:{server.port}"
    async with AsyncClient(reload=address, tls=Tls(known), dictionaries_dir=tmp_path) as client:
        with pytest.raises(errors.Unavailable, match="the server's certificate ended"):
            await _asks(client)
    await server.drain()


async def test_no_certificate_or_a_strangers_where_one_is_asked_for(
    tmp_path: Path, served: TlsConfig, known: Path, stranger: Authority
) -> None:
    mutual = TlsConfig(served.certificate, served.key, known)
    own = stranger.issue(uris=(NODE,)).write(tmp_path, "node")
    for tls in (Tls(ca=known), Tls(known, *own)):
        async with _refused(tmp_path, mutual, tls, "or a client certificate"):
            pass


async def test_a_certificate_names_the_tenant(
    tmp_path: Path, authority: Authority, served: TlsConfig, known: Path
) -> None:
    names = tmp_path / "names"
    names.write_text("spiffe://cluster.local/ns/{tenant}/sa/node {tenant}\n")
    mutual = TlsConfig(served.certificate, served.key, known, names)
    sent, matched = prompt(), []
    async with running_services(tls=mutual) as services:
        for uri in (NODE, NODE.replace("red", "blue"), NODE):
            tls = Tls(known, *authority.issue((), (uri,)).write(tmp_path, "node"))
            async with _client(services, tmp_path, tls) as client:
                matched.append((await client.match(sent.spec, sent.token_ids)).pages)
                if len(matched) == 1:
                    await client.offload(
                        sent.spec, sent.token_ids, lambda page, group: sent.pages[page][group]
                    )
        tls = Tls(known, *authority.issue(("node",)).write(tmp_path, "node"))
        async with _client(services, tmp_path, tls) as client:
            with pytest.raises(errors.Unauthenticated, match="names"):
                await _asks(client)
    assert matched == [0, 0, len(sent.pages)]


def _swap(issued: Issued, certificate: Path | None, key: Path | None) -> None:
    assert certificate is not None
    assert key is not None
    certificate.write_bytes(issued.chain)
    key.write_bytes(issued.key)
    look_again()


async def test_a_servers_certificate_is_replaced(
    tmp_path: Path, served: TlsConfig, known: Path, stranger: Authority
) -> None:
    """Connections that are open go on; each handshake after it has the new pair."""
    new = tmp_path / "new"
    new.mkdir()
    async with running_services(tls=served) as services:
        async with _client(services, tmp_path, Tls(ca=known)) as before:
            await _asks(before)
            _swap(stranger.issue(), served.certificate, served.key)
            await _asks(before)
            async with _client(services, tmp_path, Tls(ca=stranger.write(new))) as after:
                await _asks(after)
            async with _client(services, tmp_path, Tls(ca=known)) as late:
                with pytest.raises(errors.Unavailable, match="no authority of"):
                    await _asks(late)
            await _asks(before)


async def test_half_a_pair_and_one_that_ended_are_not_taken(
    tmp_path: Path,
    authority: Authority,
    served: TlsConfig,
    known: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert served.key is not None
    assert served.certificate is not None
    async with running_services(tls=served) as services:
        for spoil, said in (
            (lambda: served.key.write_bytes(authority.issue().key), "is not the key of"),
            (lambda: served.certificate.write_bytes(b"half"), "is no certificate in PEM"),
            (
                lambda: _swap(
                    authority.issue(lasts=timedelta(hours=-1)), served.certificate, served.key
                ),
                "ended at",
            ),
        ):
            caplog.clear()
            spoil()
            look_again()
            for _ in range(2):
                async with _client(services, tmp_path, Tls(ca=known)) as client:
                    await _asks(client)
            lines = [each.message for each in caplog.records if said in each.message]
            assert len(lines) == 1  # of the port that was asked: once
            assert "stays in force" in lines[0]
        issued = authority.issue(lasts=timedelta(hours=7))
        _swap(issued, served.certificate, served.key)
        async with _client(services, tmp_path, Tls(ca=known)) as client:
            await _asks(client)
        ends = PROCESS.gauge(CERTIFICATE_END).number
        async with running_services(tls=served):
            assert PROCESS.gauge(CERTIFICATE_END).number == ends > 0


async def test_authorities_of_clients_are_replaced(
    tmp_path: Path, authority: Authority, served: TlsConfig, known: Path, stranger: Authority
) -> None:
    clients = tmp_path / "clients.pem"
    clients.write_bytes(authority.pem)
    mutual = TlsConfig(served.certificate, served.key, clients)
    old = Tls(known, *authority.issue().write(tmp_path, "old"))
    new = Tls(known, *stranger.issue().write(tmp_path, "new"))
    async with running_services(tls=mutual) as services:
        for good, bad in ((old, new), (new, old)):
            async with _client(services, tmp_path, good) as client:
                await _asks(client)
            async with _client(services, tmp_path, bad) as client:
                with pytest.raises(errors.Unavailable):
                    await _asks(client)
            clients.write_bytes(stranger.pem)
            look_again()


async def test_a_clients_files_are_replaced(
    tmp_path: Path, authority: Authority, served: TlsConfig, known: Path, stranger: Authority
) -> None:
    """The client goes on with the service whatever is rotated first; half a pair counts for
    nothing."""
    clients = tmp_path / "clients.pem"
    clients.write_bytes(authority.pem)
    mutual = TlsConfig(served.certificate, served.key, clients)
    files = authority.issue().write(tmp_path, "node")
    tls = Tls(known, *files)
    async with running_services(tls=mutual) as services:
        async with _client(services, tmp_path, tls) as client:
            await _asks(client)
            first = tls.state()
            clients.write_bytes(stranger.pem)
            issued = stranger.issue()
            files[1].write_bytes(issued.key)
            look_again()
            await _asks(client)  # on the connection that is open
            assert tls.state() == first
            files[0].write_bytes(issued.chain)
            look_again()
            await _asks(client)
            assert tls.state() != first
            # Nothing but the new connection can have been made with what the port now takes.
            async with _client(services, tmp_path, Tls(known, *files)) as fresh:
                await _asks(fresh)


@pytest.mark.parametrize("which", ["certificate", "key", "client_ca"])
@pytest.mark.parametrize("how", ["absent", "junk"])
async def test_at_the_start_the_file_is_named(
    tmp_path: Path, served: TlsConfig, known: Path, which: str, how: str
) -> None:
    files: dict[str, StrPath | None] = {
        "certificate": served.certificate,
        "key": served.key,
        "client_ca": known,
    }
    files[which] = tmp_path / how
    (tmp_path / "junk").write_text("-----BEGIN JUNK-----")
    tls = TlsConfig(**files)  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigurationError, match=str(tmp_path / how)):
        check_doors(ListenConfig(tls=tls))
    with pytest.raises(errors.ConfigurationError, match=str(tmp_path / how)):
        await GrpcServer(ListenConfig(tls=tls), lambda server: None, ()).start()
    with pytest.raises(errors.ConfigurationError, match=str(tmp_path / how)):
        Tls(files["client_ca"], files["certificate"], files["key"])


@pytest.mark.parametrize(
    ("lasts", "said"), [(timedelta(hours=-1), "ended at"), (timedelta(hours=1), "is not the key")]
)
def test_at_the_start_a_pair_that_is_of_no_use(
    tmp_path: Path, authority: Authority, lasts: timedelta, said: str
) -> None:
    certificate, key = authority.issue(lasts=lasts).write(tmp_path, "server")
    if said == "is not the key":
        key.write_bytes(authority.issue().key)
    for make in (
        lambda: check_doors(ListenConfig(tls=TlsConfig(certificate, key))),
        lambda: Tls(certificate=certificate, key=key),
    ):
        with pytest.raises(errors.ConfigurationError, match=said):
            make()


def test_tls_is_given_once(known: Path) -> None:
    tls = Tls(ca=known)
    AsyncClient(reload=Endpoint("localhost:1", None, tls))
    AsyncClient(reload=Endpoint("localhost:1"), tls=tls)
    with pytest.raises(errors.ConfigurationError, match="TLS once"):
        AsyncClient(reload=Endpoint("localhost:1", None, tls), tls=Tls(ca=known))
    for wrong in ({"certificate": known}, {"key": known}, {"server_name": ""}):
        with pytest.raises(errors.ConfigurationError, match="Tls"):
            Tls(**wrong)


def test_equal_tls_is_equal(known: Path) -> None:
    assert Tls(ca=known) == Tls(ca=known)
    assert len({Tls(ca=known), Tls(ca=known), Tls()}) == 2
