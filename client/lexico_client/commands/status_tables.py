"""The document of `lexico status` as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lexico_client.commands.output import Part, Table, part_of, size, span

Document = Mapping[str, Any]


def status_parts(servers: Sequence[Document]) -> tuple[Part, ...]:
    """What is known of all servers."""
    return tuple(_parts(servers))


def _parts(servers: Sequence[Document]) -> Iterator[Part]:
    rows = tuple(
        (
            server["address"],
            server["part"] or "-",
            server["release"] or "-",
            span(server["running_s"]) if server["reachable"] else "-",
            _state(server),
        )
        for server in servers
    )
    yield Table("Servers", ("address", "part", "release", ">up", "state"), rows)
    yield from _ingresses([each for each in servers if each["ingress"]])
    yield from _reloads([each for each in servers if each["reload"]])
    stores = [each["reload"]["store"] for each in servers if each["reload"]]
    yield from _store([each for each in stores if each is not None])
    told = [each["tenants"] for each in servers if each["tenants"] is not None]
    if told:
        yield from _tenants("Tenants", [tenant for tenants in told for tenant in tenants])
    else:
        own = [each["own"] for each in servers if each["own"]]
        yield from _tenants("This tenant; its role sees no other numbers", own)


def _state(server: Document) -> str:
    if not server["reachable"]:
        return str(server["error"])
    return "serves" if server["counting"] else "serves, and counts nothing (metrics.count)"


def _ingresses(servers: Sequence[Document]) -> Iterator[Part]:
    rows = []
    for server in servers:
        one = server["ingress"]
        lost = one["pages_failed"] + one["pages_cancelled"]
        limit = one["inflight_limit_bytes"]
        rows.append(
            (
                server["address"],
                _rate(one, "pages_stored"),
                _size_rate(one, "received_bytes"),
                _size_rate(one, "stored_bytes"),
                f"{size(one['inflight_bytes'])} ({part_of(one['inflight_bytes'], limit)})",
                str(one["pages_encoding"]),
                str(one["pages_waiting"]),
                "-" if one["encoders"] is None else str(one["encoders"]),
                str(one["pages_stored"]),
                str(lost),
            )
        )
    if rows:
        columns = (
            *("address", ">pages/s", ">in", ">stored", ">in flight", ">encoding", ">waiting"),
            *(">encoders", ">pages", ">lost"),
        )
        yield Table("Offload", columns, tuple(rows))


def _reloads(servers: Sequence[Document]) -> Iterator[Part]:
    rows = []
    for server in servers:
        one = server["reload"]
        misses = one["misses_absent"] + one["misses_damaged"] + one["misses_newer"]
        buffered = part_of(one["buffered_bytes"], one["buffered_limit_bytes"])
        rows.append(
            (
                server["address"],
                _rate(one, "sent_pages"),
                _size_rate(one, "sent_bytes"),
                _hits([one]),
                f"{one['streams']} of {one['streams_limit']}",
                str(one["store_calls"]),
                f"{size(one['buffered_bytes'])} ({buffered})",
                str(one["sent_pages"]),
                str(misses),
            )
        )
    if rows:
        columns = (
            *("address", ">pages/s", ">out", ">hits", ">streams", ">store calls", ">buffered"),
            *(">pages", ">frames missed"),
        )
        yield Table("Reload", columns, tuple(rows))
    waiting = _total([each["reload"] for each in servers], "sets_missing")
    if waiting:
        yield (
            f"Nodes asked {waiting} times for the set of their model while none was published, "
            "since the servers began: such nodes run lossless (`lexico train --register`)"
        )


def _store(stores: Sequence[Document]) -> Iterator[Part]:
    """Every reload server of a store says the same of it: the first that knows counts."""
    if not stores:
        return
    one = next((each for each in stores if each["numbers"]), stores[0])
    if not one["up"] or one["numbers"] is None:
        yield "Store: " + ("up, tells no numbers" if one["up"] else "did not answer")
        return
    numbers = one["numbers"]
    used, most = numbers["used_bytes"], numbers["max_bytes"]
    row = (
        f"{size(used)} ({part_of(used, most)})",
        size(most) if most else "no bound",
        _rate(numbers, "evictions"),
        str(numbers["evictions"]),
        str(numbers["expiries"]),
        str(numbers["connections"]),
    )
    columns = (">memory", ">limit", ">evictions/s", ">evictions", ">expiries", ">connections")
    yield Table("Store", columns, (row,))


def _tenants(title: str, entries: Iterable[Document]) -> Iterator[Part]:
    """One row a tenant, over all servers."""
    by_name: dict[str, list[Document]] = {}
    for entry in entries:
        by_name.setdefault(entry["tenant"], []).append(entry)
    rows = tuple(
        (
            name,
            _size_sum(found, "received_bytes"),
            _size_sum(found, "sent_bytes"),
            _hits(found),
            size(_total(found, "received_bytes")),
            size(_total(found, "stored_bytes")),
            size(_total(found, "sent_bytes")),
        )
        for name, found in by_name.items()
    )
    if rows:
        columns = ("tenant", ">in", ">out", ">hits", ">received", ">stored", ">sent")
        yield Table(title, columns, rows)


def _hits(entries: Sequence[Document]) -> str:
    """Share of tokens asked for that were there: of the time between the looks, or, where nothing
    was asked then, of all since the servers began."""
    rates = [each["per_s"] for each in entries if each["per_s"]]
    asked = sum(each["match_tokens"] for each in rates)
    if asked:
        return part_of(sum(each["hit_tokens"] for each in rates), asked)
    return part_of(_total(entries, "hit_tokens"), _total(entries, "match_tokens"))


def _total(entries: Sequence[Document], name: str) -> int:
    return int(sum(each[name] for each in entries))


def _rate(entry: Document, name: str) -> str:
    rates = entry["per_s"]
    return "-" if rates is None else f"{rates[name]:.1f}"


def _size_rate(entry: Document, name: str) -> str:
    rates = entry["per_s"]
    return "-" if rates is None else f"{size(rates[name])}/s"


def _size_sum(entries: Sequence[Document], name: str) -> str:
    rates = [each["per_s"][name] for each in entries if each["per_s"]]
    return f"{size(sum(rates))}/s" if rates else "-"
