"""Records of a store: small hashes beside the pages, which never expire and are not evicted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence


class Records(ABC):
    """Reads and writes records, by names of `keys`. For this package; errors are those of
    `PageStore`."""

    @abstractmethod
    def read_record(self, name: str, fields: Sequence[bytes] | None = None) -> dict[bytes, bytes]:
        """Fields of a record, those of them that are there; None for all."""

    @abstractmethod
    def write_record(self, name: str, values: Mapping[bytes, bytes]) -> None:
        """Sets fields of a record, at least one."""

    @abstractmethod
    def remove_fields(self, name: str, fields: Sequence[bytes]) -> None:
        """Removes fields of a record, at least one; a record without any is gone."""

    @abstractmethod
    def sample_record(self, name: str, count: int) -> tuple[int, dict[bytes, bytes]]:
        """How many fields a record has, and up to `count` of them, drawn by chance."""
