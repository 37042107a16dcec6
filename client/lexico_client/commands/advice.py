"""An error of a call as one line for whoever typed the command, with what to do about it."""

from __future__ import annotations

import re
from typing import Final

from lexico_proto.errors import (
    DeadlineExpired,
    LexicoError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

_OPTIONS: Final = (
    ("does it want TLS, tls=Tls(), or", "does it want TLS (--tls or --tls-ca FILE), or"),
    ("so give no tls=", "so leave --tls and --tls-ca out"),
    ("Tls(ca=)", "--tls-ca"),
    ("Tls(server_name=)", "--tls-server-name"),
)
"""What a program is told to do → what to do here."""
_CONNECTING: Final = re.compile(
    r"(failed to connect to all addresses|connections to all backends failing)"
    r"; last error: (UNKNOWN: )?"
)
_SAYS_ALREADY: Final = re.compile(r"--tls|--bearer-file")
_OF_A_NAME: Final = re.compile(r"[\w.-]*[a-z][\w.-]*:\d+: ", re.IGNORECASE)
"""How the line begins where HOST is no address: gRPC tells of the last of its addresses alone."""


def advised(error: LexicoError) -> str:
    """The line."""
    text = " ".join(error.message.split())
    for said, meant in _OPTIONS:
        text = text.replace(said, meant)
    if isinstance(error, Unsupported) and "Method not found" in text:
        text = text.replace("Method not found!", "it does not know this call")
        return f"{text}: the server is of an earlier release, upgrade it"
    if isinstance(error, Unauthenticated):
        return f"{text.partition(': send ')[0]}: give it in LEXICO_TOKEN, or in --bearer-file FILE"
    if isinstance(error, PermissionDenied):
        return f"{text}: have it added to the token's roles, see docs/tenants.md"
    if isinstance(error, DeadlineExpired):
        return f"{text}: try again, or raise --timeout"
    if isinstance(error, Unavailable) and _CONNECTING.search(text):
        text = _CONNECTING.sub("", text)
        if not _SAYS_ALREADY.search(text):
            of_a_name = _OF_A_NAME.match(text) is not None
            text += ": does it run there" + ", and does it want TLS (--tls-ca)" * of_a_name + "?"
    return text
