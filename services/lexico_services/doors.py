"""Who may come in: looked at before anything starts, said in one line.

The files themselves are watched without this: see `lexico_proto.watched`.
"""

from __future__ import annotations

import logging

from lexico_proto.metrics import Metrics
from lexico_services.auth import DEFAULT_TENANT, Tenants
from lexico_services.config import ListenConfig
from lexico_services.policies import Policies
from lexico_services.security import check_files

_log = logging.getLogger(__name__)


def check_doors(listen: ListenConfig) -> None:
    """Reads every file that says who may come in, and what they may have, once, so that what is
    wrong is said at once.

    Raises:
        ConfigurationError: one cannot be read or used; it is named, and so is what is wrong.
    """
    check_files(listen.tls)
    Tenants.of(listen, Metrics())
    Policies(listen.policy_file)


def warn_of_doors(listen: ListenConfig) -> None:
    """Logs what an operator may not have meant, a line for each."""
    for line in open_doors(listen):
        _log.warning("%s", line)


def open_doors(listen: ListenConfig) -> list[str]:
    """What others than the tenants' own nodes can do at these doors."""
    if listen.is_loopback:
        return []
    lines = []
    encrypted = listen.tls.certificate is not None
    if not listen.knows_callers:
        known = listen.tls.client_ca is not None
        whoever = "whoever has a certificate of client_ca and" if known else "whoever"
        lines.append(
            f"anonymous host={listen.host}: {whoever} reaches this port can read and write every "
            f"page and dictionary set of the tenant {DEFAULT_TENANT}, and nothing of other tenants"
        )
    if not encrypted:
        what = "tokens and caches" if listen.sends_tokens else "caches"
        lines.append(
            f"plaintext host={listen.host}: {what} travel in clear; give --tls-certificate and "
            "--tls-key, or keep others out of this network"
        )
    return lines
