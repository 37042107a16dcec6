"""Where settings come from: options, environment, a file, and defaults, in this order.

A setting that file and environment give differently, and no option decides, is an error: nobody
could tell which one was meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lexico_proto.errors import ConfigurationError
from lexico_services.settings.schema import SETTINGS, STORE_VARIABLE, Setting
from lexico_services.settings.values import NotAValue, from_environment, from_file
from lexico_services.toml_text import read_toml

MAX_FILE_BYTES: Final = 1 << 20
DEFAULT: Final = "default"
OPTION: Final = "option"


@dataclass(frozen=True)
class Given:
    """A value, and who gave it."""

    value: Any
    source: str
    """`option`, `default`, the name of a variable, or the path of a file."""


def resolve(
    options: Mapping[str, Any], file: Path | None, environment: Mapping[str, str]
) -> dict[str, Given]:
    """Every setting's value, by its key.

    Args:
        options: what the command line gave, by key.
        file: settings in TOML, or None.
        environment: of the process.

    Raises:
        ConfigurationError: a file that cannot be read, a key or variable that is none of ours, a
            value of another type, or one that file and environment give differently.
    """
    from_files = _of_file(file) if file is not None else {}
    from_variables = _of_environment(environment)
    found = {}
    for key, setting in SETTINGS.items():
        if key in options:
            found[key] = Given(_of_option(setting, options[key]), OPTION)
            continue
        in_file, in_environment = from_files.get(key), from_variables.get(key)
        if in_file and in_environment and in_file.value != in_environment.value:
            raise ConfigurationError(
                f"{in_file.source}: {key} is given here and by {in_environment.source}, "
                "differently: keep one of them, or give the option"
            )
        found[key] = in_environment or in_file or Given(setting.default, DEFAULT)
    return found


def _of_file(path: Path) -> dict[str, Given]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read ({error.strerror or error})") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path}: over {MAX_FILE_BYTES} bytes, so no file of settings")
    document = read_toml(path, data)
    tables = sorted({setting.table for setting in SETTINGS.values()})
    found = {}
    for table, entries in document.items():
        if table not in tables:
            raise ConfigurationError(f"{path}: {_shown(table)} is no table{_meant(table, tables)}")
        if not isinstance(entries, dict):
            raise ConfigurationError(f"{path}: {table} must be a table: [{table}]")
        for name, value in entries.items():
            setting = SETTINGS.get(f"{table}.{name}")
            if setting is None:
                names = [s.name for s in SETTINGS.values() if s.table == table]
                raise ConfigurationError(
                    f"{path}: {table}.{_shown(name)} is no setting{_meant(name, names)}"
                )
            found[setting.key] = Given(_read(setting, value, f"{path}"), f"{path}")
    return found


def _of_option(setting: Setting, value: Any) -> Any:
    try:
        return from_file(setting, str(value) if isinstance(value, Path) else value)
    except NotAValue as error:
        shown = "" if setting.secret else f" {value!r:.60}"
        raise ConfigurationError(f"option for {setting.key}:{shown} {error}") from error


def _read(setting: Setting, value: object, path: str) -> Any:
    try:
        return from_file(setting, value)
    except NotAValue as error:
        shown = "" if setting.secret else f"{value!r:.60} "
        raise ConfigurationError(f"{path}: {setting.key} = {shown}{error}") from error


def _of_environment(environment: Mapping[str, str]) -> dict[str, Given]:
    variables = {setting.variable: setting for setting in SETTINGS.values()}
    found = {}
    for variable, text in environment.items():
        setting = variables.get(variable)
        if setting is None:
            if variable.startswith("LEXICO_") and "__" in variable:
                raise ConfigurationError(
                    f"environment: {_shown(variable)} is no setting{_meant(variable, variables)}"
                )
            continue
        if variable == STORE_VARIABLE and not text:
            continue
        try:
            found[setting.key] = Given(from_environment(setting, text), variable)
        except NotAValue as error:
            shown = "" if setting.secret else f"{text!r:.60} "
            raise ConfigurationError(f"environment: {variable}={shown}{error}") from error
    return found


def _shown(name: str) -> str:
    """A name of somebody else's as one short line; TOML and environment take any."""
    return name if name.isprintable() and len(name) <= 60 else f"{name!r:.60}"


def _meant(name: str, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(names))}"
