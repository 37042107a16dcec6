"""For every test: Triton's interpreter, and a Hypothesis that does not look at the clock."""

import os

if os.environ.get("LEXICO_TEST_GPU") != "1":
    from hypothesis import HealthCheck, settings

    # Triton decides it when it is imported.
    os.environ["TRITON_INTERPRET"] = "1"
    # A deadline of 200 ms an example, and complaints of slow ones, are red on a busy machine.
    settings.register_profile(
        "any-speed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("any-speed")
