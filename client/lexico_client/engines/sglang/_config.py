"""`--hicache-storage-backend-extra-config`: settings of ours beside those of SGLang."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from lexico_client.engines._settings import EngineSettings
from lexico_codec.spec import DEFAULT_RECENT_TOKENS

SGLANGS: Final = frozenset(
    {
        "backend_name",
        "module_path",
        "class_name",
        "interface_v1",
        "prefetch_threshold",
        "prefetch_timeout_base",
        "prefetch_timeout_per_ki_token",
        "prefetch_timeout_max",
        "hicache_storage_pass_prefix_keys",
        "tp_lcm_size",
    }
)
"""Keys of the same mapping that are SGLang's own."""


@dataclass(frozen=True)
class StorageConfig(EngineSettings):
    """Checked settings of the backend.

    Raises:
        ConfigurationError: one line that names the key.
    """

    where: ClassVar[str] = "hicache_storage_backend_extra_config"

    model: str | None = None
    """Folder of the weights that were loaded, in place of the engine's `--model-path`."""
    recent_tokens: int = DEFAULT_RECENT_TOKENS
    """Newest tokens of a prompt that are computed in any case, where the codec is lossy."""
    concurrent_pages: int = 8
    """Pages of a call that are on their way at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("recent_tokens", 1, None)
        self._check_range("concurrent_pages", 1, 256)

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Self:
        """As of every adapter; keys of SGLang's own are passed over."""
        return super().of({key: value for key, value in extra.items() if key not in SGLANGS})
