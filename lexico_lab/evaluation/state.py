"""The state folder of an evaluation: `run.json`, and one file for each text and way to store it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lexico_codec.canonical import canonical_json
from lexico_codec.files import write_atomically
from lexico_lab.run_state import RunState
from lexico_proto.errors import ConfigurationError, NonFiniteCache

Unit = dict[str, Any]


def encoded(way: str, unit: Unit) -> bytes:
    """A unit, or a part of one, as it is stored.

    Raises:
        NonFiniteCache: a figure that is NaN or infinite.
    """
    try:
        return canonical_json({"way": way, **unit}).encode()
    except ValueError as error:
        raise NonFiniteCache(f"{way}: predictions on its cache are NaN or infinite") from error


@dataclass(frozen=True, slots=True)
class Units:
    """Finished parts of one run."""

    folder: Path

    @classmethod
    def claim(cls, folder: Path, decides: Mapping[str, Any]) -> Units:
        """Opens the state of this very run, or starts one where there is none.

        Raises:
            ConfigurationError: the folder belongs to a run of other settings, or cannot be used.
        """
        RunState.claim(folder, dict(decides))
        return cls(folder)

    def has(self, source: int, text: int, way: str) -> bool:
        """Whether a unit is finished."""
        return self._path(source, text, way).exists()

    def put(self, source: int, text: int, way: str, unit: Unit) -> None:
        """Writes a finished unit, whole or not at all.

        Raises:
            NonFiniteCache: a figure that is NaN or infinite.
        """
        write_atomically(self._path(source, text, way), encoded(way, unit))

    def get(self, source: int, text: int, way: str) -> Unit:
        """A finished unit.

        Raises:
            ConfigurationError: the file is none of ours.
        """
        path = self._path(source, text, way)
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: not a finished unit ({error})") from error
        if not isinstance(found, dict) or found.pop("way", None) != way:
            raise ConfigurationError(f"{path}: not the unit of {way}; remove it")
        return found

    def _path(self, source: int, text: int, way: str) -> Path:
        name = hashlib.blake2b(way.encode(), digest_size=6).hexdigest()
        return self.folder / f"{source:02d}-{text:04d}-{name}.json"
