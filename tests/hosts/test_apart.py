"""The service with each part on a host of its own, with a slow link and hosts that are cut off.

Network namespaces, real Redis over TLS, a real cluster of Ray with an ingress on each of two nodes,
mutual TLS. Minutes of two processors: `make test-hosts`, and no part of `make test`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from lexico_client import Timeouts
from tests.support import apart, hosts
from tests.support.apart import FAR, INGRESS, NEAR, RELOAD, STORE, WORKERS, Apart
from tests.support.health import SERVING
from tests.support.waiting import PATIENCE_S, wait_until

LACKING = hosts.lacking()
pytestmark = [
    pytest.mark.timeout(6 * PATIENCE_S),
    pytest.mark.skipif(bool(LACKING), reason=LACKING),
]

PAGES = 2
SEEDS = count(1)
"""Each prompt has one of its own."""
SHORT = {"match": 2.0, "load": 5.0, "idle": 3.0, "offload": 8.0}
"""Deadlines that must pass, or be met by a machine that is free for a moment."""
AWAY = ("deadline-expired", "circuit-open", "store-unavailable", "unavailable")
"""What a miss may be put down to while somebody cannot be reached."""


@pytest.fixture(scope="module")
def service() -> Iterator[Apart]:
    with apart.running() as service:
        yield service


def offload(by: dict[str, Any], seed: int, pages: int = PAGES) -> dict[str, Any]:
    return {"do": "offload", "seed": seed, "pages": pages, "by": by}


def load(by: dict[str, Any], seed: int, pages: int = PAGES) -> dict[str, Any]:
    return {"do": "load", "seed": seed, "pages": pages, "by": by}


def loaded(answer: dict[str, Any], pages: int = PAGES) -> bool:
    """Whether all of a prompt came; what came must be right."""
    assert answer["equal"], answer
    return bool(answer["pages"] == pages)


def stored(answer: dict[str, Any]) -> bool:
    """Whether all of a prompt is stored; a page must be, or an error named."""
    return "error" not in answer and set(answer["pages"]) <= {"stored", "present"}


def wait_until_stored(
    service: Apart, seed: int | None = None, ingress: str = INGRESS, pages: int = PAGES
) -> None:
    """Offloads a prompt, a new one each time where none is given, until that ends well."""
    by = service.client(ingress)

    def is_stored() -> bool:
        prompt = next(SEEDS) if seed is None else seed
        return stored(service.call(NEAR, offload(by, prompt, pages))[0])

    wait_until(is_stored, f"an upload through {ingress}")


def begin_uploads(service: Apart, host: str) -> list[int]:
    """Has a node begin eight uploads, and returns their seeds once this host encodes for them."""
    by, seeds, before = service.client(), [next(SEEDS) for _ in range(8)], service.encoded(host)
    service.begin(NEAR, *(offload(by, seed, pages=4) for seed in seeds))
    wait_until(lambda: service.encoded(host) > before, f"a page encoded on {host}")
    return seeds


def all_run(service: Apart) -> bool:
    """Whether there is an ingress and an encoder on each node of Ray."""
    there = dict.fromkeys(WORKERS, "RUNNING")
    return service.replicas("Ingress") == there == service.replicas("Encoder")


def test_each_node_of_ray_has_an_ingress_that_is_ready(service: Apart) -> None:
    assert all_run(service)
    places = [f"{host}:7413" for host in (*WORKERS, RELOAD)]
    answers = service.call(NEAR, *({"do": "health", "by": place} for place in places))
    assert [answer["health"] for answer in answers] == [SERVING] * len(places)


@pytest.mark.parametrize("ingress", WORKERS)
def test_a_prompt_is_loaded_by_a_node_that_never_saw_it(service: Apart, ingress: str) -> None:
    by, seed = service.client(ingress), next(SEEDS)
    assert stored(service.call(NEAR, offload(by, seed))[0])
    assert loaded(service.call(FAR, load(by, seed))[0])


@pytest.mark.parametrize("ingress", WORKERS)
def test_an_ingress_has_its_own_node_encode(service: Apart, ingress: str) -> None:
    by, before = service.client(ingress), {host: service.encoded(host) for host in WORKERS}
    for _ in range(6):  # one page at a time: no queue that another node would help with
        assert stored(service.call(NEAR, offload(by, next(SEEDS), pages=1))[0])

    def told() -> dict[str, int]:
        return {host: service.encoded(host) - before[host] for host in WORKERS}

    wait_until(lambda: sum(told().values()) == 6, "six pages in the encoders' logs", told)
    assert told()[ingress] == 6


def test_the_ingresses_share_what_is_sent_to_their_name(service: Apart) -> None:
    by, before = service.client(INGRESS), {host: service.encoded(host) for host in WORKERS}

    def both_encoded() -> bool:
        calls = [offload(by, next(SEEDS)) for _ in range(4)]
        assert all(map(stored, service.call(NEAR, *calls)))
        return all(service.encoded(host) > before[host] for host in WORKERS)

    wait_until(both_encoded, "work for the encoders of both nodes")


def test_a_slow_and_lossy_link_is_good_enough_for_the_usual_deadlines(service: Apart) -> None:
    """25 ms each way, one frame in a hundred lost."""
    by, seed = service.client(INGRESS, timeouts=vars(Timeouts())), next(SEEDS)
    wait_until(lambda: stored(service.call(FAR, offload(by, seed))[0]), "an offload")
    wait_until(lambda: loaded(service.call(FAR, load(by, seed))[0]), "a load")
    assert loaded(service.call(NEAR, load(service.client(), seed))[0])


@pytest.mark.parametrize("shown", ["stranger", ""], ids=["of another authority", "none"])
def test_a_node_without_a_certificate_of_ours_is_refused(service: Apart, shown: str) -> None:
    by, seed = service.client(shown=shown), next(SEEDS)
    ours = service.client()
    assert stored(service.call(NEAR, offload(ours, seed))[0])
    there, hit = service.call(NEAR, offload(by, next(SEEDS)), load(by, seed))
    assert there["error"] == hit["reason"] == "unavailable"
    assert hit["pages"] == 0
    assert "client certificate" in there["message"]


def test_the_ingress_refuses_a_stranger_by_itself(service: Apart) -> None:
    """An offload asks the reload server first: here that one is shown a certificate of ours."""
    seed = next(SEEDS)
    by = service.client(shown_to_ingress="stranger")
    (answer,) = service.call(NEAR, offload(by, seed))
    assert answer["error"] == "unavailable"
    assert "client certificate" in answer["message"]
    assert service.call(NEAR, load(service.client(), seed))[0]["pages"] == 0


def test_a_server_that_another_authority_vouches_for_is_told_nothing(service: Apart) -> None:
    by = service.client(trusted="strangers-ca")
    (answer,) = service.call(NEAR, load(by, next(SEEDS)))
    assert "no authority of Tls(ca=)" in answer["message"]


@pytest.mark.parametrize("host", [STORE, RELOAD])
def test_a_host_that_is_cut_off_costs_misses_until_it_is_back(service: Apart, host: str) -> None:
    ours, short, seed = service.client(), service.client(timeouts=SHORT), next(SEEDS)
    assert stored(service.call(NEAR, offload(ours, seed))[0])
    assert loaded(service.call(NEAR, load(ours, seed))[0])
    with service.cut(host):

        def at_once() -> bool:
            """A miss, and in the end one that waits for nobody."""
            (answer,) = service.call(NEAR, load(short, seed))
            assert answer["pages"] == 0
            assert answer["reason"] in AWAY
            return answer["reason"] in ("circuit-open", "store-unavailable")

        wait_until(at_once, "a miss at once")
        (answer,) = service.call(NEAR, offload(short, next(SEEDS)))
        assert answer["error"] in AWAY
    wait_until(lambda: loaded(service.call(NEAR, load(short, seed))[0]), "hits again")
    for ingress in WORKERS:
        wait_until_stored(service, ingress=ingress)


@pytest.mark.parametrize("cut", WORKERS)
def test_uploads_go_by_the_other_ingress_while_a_node_is_cut_off(service: Apart, cut: str) -> None:
    """Nobody is told an error: an upload that is cut off is made once more, by the other."""
    by, seeds = service.client(), begin_uploads(service, cut)
    with service.cut(cut):
        ended = dict(zip(seeds, service.end_of(NEAR), strict=True))
        assert not [answer for answer in ended.values() if "error" in answer]
        wait_until_stored(service)
        for seed in (seed for seed, answer in ended.items() if stored(answer)):
            assert loaded(service.call(NEAR, load(by, seed, pages=4))[0], pages=4)

    def back() -> bool:
        service.restart_worker_if_ended(cut)  # as Kubernetes does, if Ray gave its node up
        return all_run(service)

    wait_until(back, "both ingresses, both encoders")
    for ingress in WORKERS:
        wait_until_stored(service, ingress=ingress)
    for seed in seeds:  # no lease of a lost upload is in the way for ever
        wait_until_stored(service, seed, pages=4)


def test_a_node_that_dies_takes_no_upload_with_it(service: Apart) -> None:
    """Power off, at the end of this file: the host does not come back."""
    by, (stays, dies) = service.client(), WORKERS
    seeds = begin_uploads(service, dies)
    service.hosts[dies].end()
    ended = dict(zip(seeds, service.end_of(NEAR), strict=True))
    assert not [answer for answer in ended.values() if "error" in answer]
    for seed in (seed for seed, answer in ended.items() if stored(answer)):
        assert loaded(service.call(NEAR, load(by, seed, pages=4))[0], pages=4)
    for seed in seeds:
        wait_until_stored(service, seed, pages=4)
    assert loaded(service.call(FAR, load(by, seeds[0], pages=4))[0], pages=4)
    assert service.replicas("Ingress")[stays] == "RUNNING"
