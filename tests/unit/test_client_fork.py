"""Forks without a service: decoding in the child, and locks that nobody is left to release."""

from __future__ import annotations

from tests.support.forking import run_program
from tests.unit.test_vllm_worker import THERE

HUGGING_FACE = """
import json, tempfile
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from lexico_client import Client, InMemoryTransport
from lexico_client.hf import HuggingFaceCache
from tests.support.client_fixtures import PATIENT, small_dictionary
from tests.support.forking import in_child

torch.set_num_threads(2)  # so that there are teams of OpenMP to miss
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16,
)).eval()
ids = torch.randint(0, 97, (1, 400))
client = Client(
    transport=InMemoryTransport(), dictionaries_dir=tempfile.mkdtemp(), timeouts=PATIENT
)
cache = model(ids).past_key_values
answers = []
for codec in ("raw", "lossless", "lexico"):
    dictionary = small_dictionary(layers=3, kv_heads=2) if codec == "lexico" else None
    shared = HuggingFaceCache(client, model, codec=codec, dictionary=dictionary)
    shared.offload(ids, cache)
    here = shared.load(ids)
    torch.zeros(1 << 20) + 1  # this thread has a team too
    there = in_child(lambda: shared.load(ids).tokens, in_order=False)
    answers.append([here.tokens, there])
print(json.dumps(answers))
"""

HELD_LOCKS = """
import json, threading
from lexico_client._runner import Runner
from lexico_codec.kernels.forms import Forms
from tests.support.forking import in_child
from tests.support.waiting import PATIENCE_S

async def seven():
    return 7

forms, runner = Forms(), Runner("forked")
runner.run(seven(), PATIENCE_S)
making, forked = threading.Event(), threading.Event()

def make():
    making.set()
    forked.wait()
    return 7

thread = threading.Thread(target=forms.once, args=("name", make))
thread.start()
making.wait()
with runner._lock, runner._closing:
    child = in_child(lambda: [forms.once("name", lambda: 8), runner.run(seven(), PATIENCE_S)])
forked.set()
thread.join()
print(json.dumps([child, forms.once("name", int), runner.run(seven(), PATIENCE_S)]))
"""

ENGINES = """
import json, tempfile
from pathlib import Path
from lexico_client.engines._counts import Counts
from lexico_client.engines.lmcache._tasks import Tasks
from lexico_client.engines.vllm._log import LOG
from tests.support.forking import in_child
from tests.support.waiting import PATIENCE_S, until, wait_until
from tests.unit.test_vllm_worker import THERE, Rig, Transport

transport = Transport()
rig = Rig(transport, Path(tempfile.mkdtemp()))
worker, service = rig.worker, rig.service
rig.compute()
rig.store()
rig.stored()
transport.open.clear()
rig.order()
rig.store(salt=b"another")
tasks = Tasks("load", lambda: None, Counts(LOG))

async def load():
    await until(transport.open.is_set, "the service to be let go on")
    return [True]

task = tasks.run(service, load(), [False], PATIENCE_S)
call = service.begin(load())
wait_until(lambda: transport.gets and transport.puts > 1, "both calls")

async def seven():
    return 7

def there():
    blocks = [sorted(worker.arrived()), sorted(worker.bad_blocks())]
    ended = [*blocks, [tasks.take(task)], call.finished]
    kept = [service.closed, worker.stores_under_way, service.wait(seven(), PATIENCE_S) == 7]
    return [ended, kept]

with worker._lock, service._lock, tasks._lock, service._watch._changed:
    child = in_child(there, in_order=False)
transport.open.set()
wait_until(lambda: call.finished and tasks.under_way == 0 and not worker._orders, "all to end")
rig.stored()
parent = [worker.arrived() == {"r"}, sorted(worker.bad_blocks()), tasks.take(task) == [True]]
worker.close()
print(json.dumps([*child, parent]))
"""


def test_a_child_decodes_though_its_parent_used_openmp() -> None:
    exact, coded = [384, 384], [336, 336]  # six pages of 64, and without 64 recent of 400 tokens
    assert run_program(HUGGING_FACE) == [exact, exact, coded]


def test_locks_that_were_held_at_the_fork() -> None:
    assert run_program(HELD_LOCKS) == [[8, 7], 7, 7]


def test_what_an_engine_waited_for_has_ended_in_a_child() -> None:
    """And goes on in the parent; the child begins anew, whatever was held at the fork."""
    load, child, parent = (
        [["r"], sorted(THERE), [[False]], False],
        [False, 0, True],
        [True, [], True],
    )
    assert run_program(ENGINES) == [load, child, parent]
