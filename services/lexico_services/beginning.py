"""What every start looks at before it starts anything."""

from __future__ import annotations

import logging

from lexico_proto.errors import ConfigurationError
from lexico_services.doctor.finding import State
from lexico_services.doctor.machine import machine, raise_file_limit
from lexico_services.doctor.needs import Needs
from lexico_services.settings import Settings

_log = logging.getLogger(__name__)


def check(settings: Settings, *, ray: bool = True, store: bool = False) -> None:
    """Logs a line for each thing that the machine is short of.

    Args:
        settings: of the command.
        ray: whether it runs encoders.
        store: whether it may start an embedded store.

    Raises:
        ConfigurationError: a thing without which nothing would run.
    """
    raise_file_limit()
    found = list(machine(Needs.of(settings, ray=ray, store=store)))
    fatal = [each for each in found if each.state is State.FAIL]
    if fatal:
        raise ConfigurationError("; ".join(f"{each.text}: {each.mend}" for each in fatal))
    for each in found:
        if each.state is State.WARN:
            _log.warning("%s=%s", each.name, f"{each.text}: {each.mend}")
