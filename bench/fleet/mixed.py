"""How long a Match takes at worst while 64 clients make mixed calls.

    python -m bench.fleet.mixed [--clients 64] [--rounds 5] [--seconds 6]

`lexico serve` with its defaults, and `AsyncClient`s in four processes, each with connections of its
own. Of their calls one half are a Match of a prompt of 64 pages, three tenths load four pages of
it, two tenths offload two new pages. The pages have 16 KiB and are stored as they are, so that
calls and not bytes are measured. Times are those that a client waits, its own work included.

`p99_over_p50` is the median over rounds of the 99th percentile of Match over its median, while
every client calls again at once: 64 calls are under way at any time. Rounds of that take turns with
rounds in which each rests between its calls, half a second on average: `rested_p99_over_p50`.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import statistics
import time
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from bench.fleet.rounds import spread
from bench.fleet.servers import small_spec
from examples.two_nodes.service import Service
from lexico_client import AsyncClient, Timeouts
from lexico_lab.record import finish, gate, machine, table

TESTS: Final = ("tests/integration/test_reload.py", "tests/integration/test_put.py")
PROCESSES: Final = 4
PROMPTS: Final = 16
PAGES: Final = 64
LOADED, OFFERED = 4, 2
RESTS_S: Final = (0.0, 0.5)
KINDS: Final = {"match": 5, "load": 3, "offload": 2}
PATIENT: Final = Timeouts(match=60.0, load=60.0, idle=60.0, offload=60.0)

Seconds = dict[str, list[float]]


class Caller:
    """One client, and what it asks for."""

    def __init__(self, client: AsyncClient, seed: int) -> None:
        self._client = client
        self._random = random.Random(seed)
        self._spec = small_spec()
        shape = self._spec.group_shape(0)
        self._page = torch.zeros(shape, dtype=torch.bfloat16)
        self._landing = torch.zeros(LOADED, *shape, dtype=torch.bfloat16)

    async def store(self, prompt: int) -> None:
        """Offloads a whole prompt."""
        await self._offload(prompt_ids(prompt, PAGES))

    async def call(self, kind: str) -> None:
        """One call; what a fleet does not expect is raised.

        Raises:
            SystemExit: it did not find what is stored.
        """
        prompt = self._random.randrange(PROMPTS)
        if kind == "match":
            found = (await self._client.match(self._spec, prompt_ids(prompt, PAGES))).pages
            expected = PAGES
        elif kind == "load":
            ids = prompt_ids(prompt, LOADED)
            found = (await self._client.load(self._spec, ids, lambda _: self._view)).pages
            expected = LOADED
        else:
            ids = prompt_ids(self._random.randrange(PROMPTS, 1 << 20), OFFERED)
            found = await self._offload(ids)
            expected = OFFERED
        if found != expected:
            raise SystemExit(f"{kind}: {found} of {expected} pages")

    async def run(self, seconds: float, rest_s: float, took: Seconds) -> None:
        """Calls one after another, with rests of a length drawn by chance."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            if rest_s:
                await asyncio.sleep(self._random.expovariate(1 / rest_s))
            (kind,) = self._random.choices(list(KINDS), list(KINDS.values()))
            started = time.perf_counter()
            await self.call(kind)
            took[kind].append(time.perf_counter() - started)

    async def _offload(self, ids: np.ndarray[Any, Any]) -> int:
        return len((await self._client.offload(self._spec, ids, lambda *_: self._page)).pages)

    def _view(self, page: int, group: int) -> Tensor:
        return self._landing[page]


def prompt_ids(prompt: int, pages: int) -> np.ndarray[Any, Any]:
    """Token ids of the first pages of a prompt."""
    first = prompt * PAGES * 16
    return np.arange(first, first + pages * 16, dtype=np.uint32)


def run_clients(pipe: Connection, addresses: tuple[str, str], clients: int, seed: int) -> None:
    """A process of clients: for each length of a round and of its rests, what calls took."""

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            reload, offload = addresses
            callers = []
            for number in range(clients):
                client = AsyncClient(reload=reload, offload=offload, timeouts=PATIENT)
                await stack.enter_async_context(client)
                callers.append(Caller(client, seed * 1000 + number))
            if seed == 0:
                for prompt in range(PROMPTS):
                    await callers[0].store(prompt)
            pipe.send(None)
            while round_ := await asyncio.to_thread(pipe.recv):
                seconds, rest_s = round_
                took: Seconds = {kind: [] for kind in KINDS}
                await asyncio.gather(*(each.run(seconds, rest_s, took) for each in callers))
                pipe.send(took)

    torch.set_num_threads(1)
    asyncio.run(serve())


def measure(clients: int, rounds: int, seconds: float) -> dict[float, list[Seconds]]:
    """What calls took, in each round, by the length of rests."""
    context = multiprocessing.get_context("spawn")
    found: dict[float, list[Seconds]] = {rest_s: [] for rest_s in RESTS_S}
    with Service() as service:
        pipes, processes = [], []
        try:
            for seed in range(PROCESSES):
                here, there = context.Pipe()
                addresses = (service.reload, service.offload)
                arguments = (there, addresses, clients // PROCESSES, seed)
                processes.append(context.Process(target=run_clients, args=arguments, daemon=True))
                processes[-1].start()
                there.close()  # so that one that fails is noticed
                pipes.append(here)
            for pipe in pipes:
                pipe.recv()
            for number in range(rounds + 1):
                for rest_s in RESTS_S:
                    for pipe in pipes:
                        pipe.send((seconds, rest_s))
                    parts: list[Seconds] = [pipe.recv() for pipe in pipes]
                    took = {k: [s for part in parts for s in part[k]] for k in KINDS}
                    if number:  # the first warms up
                        found[rest_s].append(took)
            for pipe in pipes:
                pipe.send(None)
            for process in processes:
                process.join()
        finally:
            for process in processes:
                process.terminate()
                process.join()
    return found


def row_of(kind: str, rest_s: float, rounds: list[Seconds], seconds: float) -> dict[str, Any]:
    """A kind of call: its rate and times, and the ratio of its percentiles."""
    ordered = [sorted(took[kind]) for took in rounds]
    middle = [statistics.median(times) for times in ordered]
    slow = [times[len(times) * 99 // 100] for times in ordered]
    ratios = spread([high / mid for high, mid in zip(slow, middle, strict=True)])
    return {
        "call": kind,
        "rest s": rest_s,
        "a second": sum(map(len, ordered)) / seconds / len(rounds),
        "p50 ms": statistics.median(middle) * 1e3,
        "p99 ms": statistics.median(slow) * 1e3,
        **ratios,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each round")
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate(*TESTS)
    described = machine()
    took = measure(options.clients, options.rounds, options.seconds)
    rows = [
        row_of(kind, rest_s, rounds, options.seconds)
        for rest_s, rounds in took.items()
        for kind in KINDS
    ]
    print(table(rows))
    result = {
        "p99_over_p50": rows[0]["median"],
        "rested_p99_over_p50": rows[len(KINDS)]["median"],
        "clients": options.clients,
        "rounds": options.rounds,
        "rows": rows,
    }
    finish("fleet_mixed", result, described)


if __name__ == "__main__":
    main()
