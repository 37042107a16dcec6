"""Policies of tenants, and what they bound."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_proto.errors import ConfigurationError, QuotaExceeded
from lexico_proto.watched import look_again
from lexico_services.policies import Policies, TenantPolicy
from lexico_services.quotas import CallRates, FairTurns, TenantBytes
from lexico_store.scopes import tenant_scope
from tests.support.waiting import settle

RED, BLUE = tenant_scope("red"), tenant_scope("blue")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def test_a_table_says_what_differs_from_the_default(file: Path) -> None:
    file.write_text(
        "[default]\npage_ttl_s = 60\nmax_calls_per_s = 5\n"
        '[tenants.red]\npage_ttl_s = 1.5\nmax_stored_bytes = "2 KiB"\n'
    )
    policies = Policies(file)
    assert policies.of(RED) == TenantPolicy(1.5, max_stored_bytes=2048, max_calls_per_s=5)
    assert policies.of(BLUE) == TenantPolicy(60.0, max_calls_per_s=5)
    assert Policies().of(RED) == TenantPolicy()


def test_a_file_that_changes_is_read_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text("[default]\npage_ttl_s = 1\n")
    policies = Policies(file)

    def rewritten(text: str) -> float | None:
        replacement = file.with_suffix(".new")
        replacement.write_text(text)
        os.replace(replacement, file)
        look_again()
        return policies.of(RED).page_ttl_s

    assert rewritten("[default]\npage_ttl_s = 2\n") == 2
    assert rewritten("[default]\npage_ttl_s = -2\n") == 2
    assert "page_ttl_s is -2" in caplog.text
    assert rewritten("[default]\npage_ttl_s = 3\n") == 3
    file.unlink()
    look_again()
    assert policies.of(RED).page_ttl_s == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[default]\npage_ttl = 1\n", "default.page_ttl is none of"),
        ("[tenants.red]\nmax_stored_bytes = '1 MB'\n", "tenants.red.max_stored_bytes"),
        ("[tenants.red]\nmax_calls_per_s = 0\n", "tenants.red: max_calls_per_s is 0"),
        ("[default]\npage_ttl_s = 1e9\n", "page_ttl_s is 1000000000.0: give at most 315360000"),
        ("[tenants]\nred = 3\n", "tenants.red must be a table"),
        ("tenants = 3\n", r"\[default\] and \[tenants.NAME\]"),
        ("[others]\n", r"\[default\] and \[tenants.NAME\]"),
        ("[tenants.red\n", "no TOML"),
        ('[tenants.""]\n', "is no tenant's name"),
        ('[tenants."\\ufeffred"]\n', "is no tenant's name"),
        (f"[default]\nmax_stored_bytes = {'9' * 400}\n", "default.max_stored_bytes"),
        (f"[default]\nmax_calls_per_s = {'9' * 400}\n", "default.max_calls_per_s"),
        (f"[default]\nmax_stored_bytes = {'9' * 5000}\n", "no TOML"),
    ],
)
def test_bad_files_are_refused(file: Path, text: str, named: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=named) as refusal:
        Policies(file)
    assert str(file) in refusal.value.message
    with pytest.raises(ConfigurationError, match="No such file"):
        Policies(file.with_name("nothing"))
    os.mkfifo(file.with_name("pipe"))
    with pytest.raises(ConfigurationError, match="is no file"):
        Policies(file.with_name("pipe"))


def test_calls_a_second(file: Path) -> None:
    now = [0.0]
    file.write_text("[tenants.red]\nmax_calls_per_s = 2\n[tenants.slow]\nmax_calls_per_s = 0.5\n")
    rates = CallRates(Policies(file), lambda: now[0])
    for _ in range(100):
        rates.count(BLUE)
    for _ in range(2):
        rates.count(RED)
    with pytest.raises(QuotaExceeded, match=r"2 calls a second: come back in 0\.5 s"):
        rates.count(RED)
    now[0] = 0.5
    rates.count(RED)
    with pytest.raises(QuotaExceeded):
        rates.count(RED)
    now[0] = 100.0
    for _ in range(2):
        rates.count(RED)
    with pytest.raises(QuotaExceeded):
        rates.count(RED)
    rates.count(tenant_scope("slow"))
    with pytest.raises(QuotaExceeded):
        rates.count(tenant_scope("slow"))


def test_calls_of_any_number_of_tenants_are_counted_in_bounded_memory(file: Path) -> None:
    file.write_text("[default]\nmax_calls_per_s = 1\n")
    rates = CallRates(Policies(file), lambda: 0.0)
    rates.count(RED)
    tracemalloc.start()
    try:
        for number in range(20_000):
            rates.count(number.to_bytes(16, "big"))
            with pytest.raises(QuotaExceeded):
                rates.count(number.to_bytes(16, "big"))
        assert tracemalloc.get_traced_memory()[0] < 2 << 20
    finally:
        tracemalloc.stop()


def test_bytes_in_flight(file: Path) -> None:
    file.write_text("[tenants.red]\nmax_inflight_bytes = 25\n")
    held = TenantBytes(Policies(file))
    assert held.room(RED, 10, 3) == 2
    held.take(RED, 20)
    with pytest.raises(QuotaExceeded, match="20 of the tenant's 25"):
        held.room(RED, 10, 3)
    assert held.room(BLUE, 10, 3) == 3
    held.give_back(RED, 20)
    assert held.room(RED, 10, 1) == 1


async def test_one_page_does_not_wait_for_a_thousand() -> None:
    turns = FairTurns(2)
    done: list[bytes] = []

    async def work(scope: bytes) -> None:
        async with turns.turn(scope):
            await asyncio.sleep(0)
            done.append(scope)

    many = [asyncio.create_task(work(RED)) for _ in range(1000)]
    await asyncio.sleep(0)
    few = asyncio.create_task(work(BLUE))
    await asyncio.gather(few, *many)
    assert len(done) == 1001
    assert done.index(BLUE) < 6


@given(
    tasks=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=20),
    limit=st.integers(1, 3),
)
def test_turns_are_bounded_and_none_is_lost(tasks: list[tuple[int, bool]], limit: int) -> None:
    async def run() -> None:
        turns, running, most, ended = FairTurns(limit), 0, 0, 0
        gate = asyncio.Event()

        async def work(scope: bytes) -> None:
            nonlocal running, most, ended
            async with turns.turn(scope):
                running += 1
                most = max(most, running)
                try:
                    await gate.wait()
                finally:
                    running -= 1
                ended += 1

        made = [asyncio.create_task(work(bytes([number]))) for number, _ in tasks]
        await settle()
        for task, (_, cancelled) in zip(made, tasks, strict=True):
            if cancelled:
                task.cancel()
        gate.set()
        await asyncio.gather(*made, return_exceptions=True)
        assert most <= limit
        assert ended == sum(not cancelled for _, cancelled in tasks)
        async with turns.turn(b"after"):
            assert not turns._waiting
            assert turns._running == 1

    asyncio.run(run())
