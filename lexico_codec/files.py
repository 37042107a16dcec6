"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lexico_proto.errors import ConfigurationError


def write_atomically(path: Path, data: bytes) -> None:
    """Writes through a temporary file, so that a reader sees all of it or the former file.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as f:
            temporary = f.name
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as e:
        raise ConfigurationError(f"{path}: cannot write ({e.strerror or e})") from e
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
