"""For every test: Triton's interpreter, a Hypothesis without a clock, signals that end, and a
garbage collector that leaves imports alone.
"""

import gc
import os
import signal

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


def pytest_collection_finish() -> None:
    """What was imported until here stays, a million objects: nobody need look for garbage in it."""
    gc.collect()
    gc.freeze()
