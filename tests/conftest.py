"""For every test: Triton's interpreter, a Hypothesis without a clock, signals that end, and a
garbage collector that leaves imports alone.
"""

import gc
import os
import signal

import pytest

# What a shell in the background or nohup has us ignore, all that tests start and interrupt would
# ignore too: a handler is not inherited, and does as little.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

if os.environ.get("LEXICO_TEST_GPU") != "1":
    from hypothesis import HealthCheck, settings

    # Triton decides it when it is imported.
    os.environ["TRITON_INTERPRET"] = "1"
    # A deadline of 200 ms an example, and complaints of slow ones, are red on a busy machine.
    settings.register_profile(
        "any-speed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("any-speed")

LONGEST = ("test_tutorial", "test_train_ray", "test_serve", "test_training", "test_evaluation")
"""How the names of the files begin that take longest: begun last, one would be all that runs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those first, the rest in the order of the tree."""
    items.sort(key=lambda item: not item.path.name.startswith(LONGEST))


def pytest_collection_finish() -> None:
    """What was imported until here stays, a million objects: nobody need look for garbage in it."""
    gc.collect()
    gc.freeze()
