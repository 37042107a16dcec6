"""The file in which a server says where it listens: one server's, while that server lives."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lexico_proto.errors import ConfigurationError
from lexico_services import supervisor


class AddressFile:
    """A file that appears whole once the server listens, and goes with it. Made by `claimed`."""

    def __init__(self, path: Path | None, scratch: BinaryIO | None) -> None:
        self._path = path
        self._scratch = scratch

    def write(self, addresses: Mapping[str, str]) -> None:
        """
        Args:
            addresses: service → `host:port`; written as JSON, whole or not at all.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        if self._path is None or self._scratch is None:
            return
        try:
            self._scratch.write(json.dumps(dict(addresses)).encode())
            self._scratch.flush()
            _scratch_of(self._path).replace(self._path)  # the lock goes with it
        except OSError as error:
            raise ConfigurationError(f"address file {self._path}: {error}") from error


@contextmanager
def claimed(path: Path | None) -> Iterator[AddressFile]:
    """An address file that no other server writes to; removed at the end. One that a server left
    that was killed is removed at once, or it would tell where nobody listens.

    Args:
        path: None for no file.

    Raises:
        ConfigurationError: another server uses it, or it cannot be made.
    """
    if path is None:
        yield AddressFile(None, None)
        return
    try:
        # The lock is on the file itself, from before its name is this until after it is gone.
        scratch = _open_locked(_scratch_of(path))
    except BlockingIOError:
        raise _in_use(path) from None
    except OSError as error:
        raise ConfigurationError(f"address file {path}: {error}") from error
    with scratch:
        try:
            with path.open("rb") as there:
                fcntl.flock(there, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            _scratch_of(path).unlink(missing_ok=True)
            if isinstance(error, BlockingIOError):
                raise _in_use(path) from None
            raise ConfigurationError(f"address file {path}: {error}") from error
        for name in (_scratch_of(path), path):
            supervisor.leaves(name)
        try:
            yield AddressFile(path, scratch)
        finally:
            for name in (path, _scratch_of(path)):
                with suppress(OSError):
                    if os.path.samestat(name.stat(), os.fstat(scratch.fileno())):
                        name.unlink()


def check_claim(path: Path | None) -> None:
    """What `claimed` would refuse; leaves everything as it is.

    Raises:
        ConfigurationError: see `claimed`.
    """
    if path is None:
        return
    scratch = _scratch_of(path)
    ours = not scratch.exists()
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        with _open_locked(scratch):
            if ours:
                scratch.unlink(missing_ok=True)
        if path.exists():
            with path.open("rb") as there:
                fcntl.flock(there, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(path) from None
    except OSError as error:
        raise ConfigurationError(f"address file {path}: {error}") from error


def _scratch_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _open_locked(path: Path) -> BinaryIO:
    """A new, empty file of this name, locked.

    Raises:
        BlockingIOError: another process holds the lock of the file that is there.
        OSError: it cannot be opened.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
    except BaseException:
        file.close()
        raise
    return file


def _in_use(path: Path) -> ConfigurationError:
    return ConfigurationError(f"address file {path}: another server uses it: give each its own")
