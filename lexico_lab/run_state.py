"""The folder in which a run keeps what it has done, so that a stopped one goes on from there."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from lexico_codec.canonical import canonical_json
from lexico_codec.files import write_atomically
from lexico_proto.errors import ConfigurationError

_MARK: Final = "run.json"


@dataclass(frozen=True, slots=True)
class RunState:
    """The state folder: `run.json`, with all that decides the result, beside what is finished."""

    folder: Path

    @classmethod
    def claim(cls, folder: Path, decides: dict[str, Any]) -> Self:
        """Opens the state of this very run, or starts one where there is none.

        Raises:
            ConfigurationError: the folder belongs to another configuration, or cannot be used.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ConfigurationError(f"state {folder}: cannot use ({e})") from e
        if not cls.check(folder, decides):
            write_atomically(folder / _MARK, canonical_json(decides).encode())
        return cls(folder)

    @classmethod
    def check(cls, folder: Path, decides: dict[str, Any]) -> bool:
        """Whether the folder has the state of this very run. Writes nothing.

        Raises:
            ConfigurationError: see `claim`.
        """
        mark = folder / _MARK
        try:
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError("is no folder")
            found = json.loads(mark.read_text()) if mark.exists() else None
        except (OSError, ValueError) as e:
            raise ConfigurationError(f"state {folder}: cannot use ({e})") from e
        if found is None:
            return False
        if found != json.loads(canonical_json(decides)):
            known = found if isinstance(found, dict) else {}
            other = sorted(k for k in {*known, *decides} if known.get(k) != decides.get(k))
            raise ConfigurationError(
                f"state {folder}: belongs to a run with another {', '.join(other)}; "
                "choose another folder, or remove it"
            )
        return True

    def remove(self) -> None:
        """Removes it, but for folders in it that other runs have claimed.

        Raises:
            OSError: something cannot be removed.
        """
        kept = False
        mine = self.folder / _MARK  # last: what is left must not pass for another run's
        for path in [*(p for p in self.folder.iterdir() if p != mine), mine]:
            if (path / _MARK).exists():
                kept = True
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if not kept:
            self.folder.rmdir()
