"""How log records are written: key=value for people, or a JSON document a line for machines."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from lexico_proto import request_id

FORMATS: Final = ("text", "json")

_FIELD: Final = re.compile(r"(?:(?P<name>\b[a-z_]+)=)?%(?P<flags>[-+ #0]*\d*(?:\.\d+)?)[a-zA-Z]")


class TextFormatter(logging.Formatter):
    """`time level=… logger=… message`, the message key=value, and at its end `request=…` where the
    record belongs to a call.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s level=%(levelname)s logger=%(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        request = request_id.current()
        text = super().formatMessage(record)
        return f"{text} request={request}" if request else text


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message and request, and each `key=%d` of the
    message's pattern as a field with a type.
    """

    def format(self, record: logging.LogRecord) -> str:
        own: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := request_id.current():
            own["request"] = request
        if record.exc_info:
            own["exception"] = self.formatException(record.exc_info)
        return json.dumps({**_fields(record), **own}, ensure_ascii=False, default=str)


def formatter(form: str) -> logging.Formatter:
    """The formatter of `text` or `json`."""
    return JsonFormatter() if form == "json" else TextFormatter()


def log_to_stderr(level: str, form: str, loggers: Iterable[str]) -> None:
    """Has the records of these loggers written to standard error, and by nobody else: for a
    process that is not ours, such as a worker of Ray, which would write none.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(form))
    for name in loggers:
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        logger.handlers = [handler]
        logger.propagate = False


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the pattern names: `pages=%d` with 2 gives `{"pages": 2}`."""
    if not isinstance(record.args, tuple):
        return {}
    found: dict[str, Any] = {}
    pattern = str(record.msg).replace("%%", "")
    for place, argument in zip(_FIELD.finditer(pattern), record.args, strict=False):
        if place["name"]:
            plain = isinstance(argument, int | float | str | bool)
            found[place["name"]] = argument if plain else str(argument)
    return found
