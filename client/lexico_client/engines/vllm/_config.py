"""`kv_connector_extra_config`: what every adapter has, and what pages and loads are in vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lexico_client.engines._settings import EngineSettings
from lexico_codec.limits import MAX_PAGE_TOKENS
from lexico_codec.spec import DEFAULT_PAGE_TOKENS, DEFAULT_RECENT_TOKENS


@dataclass(frozen=True)
class ConnectorConfig(EngineSettings):
    """Checked settings of the connector.

    Raises:
        ConfigurationError: one line that names the key.
    """

    where: ClassVar[str] = "kv_connector_extra_config"

    page_tokens: int = DEFAULT_PAGE_TOKENS
    """Tokens a page. Nodes that share pages agree on it; block sizes may differ."""
    recent_tokens: int = DEFAULT_RECENT_TOKENS
    """Newest tokens of a prompt that are computed in any case, where the codec is lossy."""
    min_load_tokens: int = 1
    """Fewest tokens that are worth a load."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("page_tokens", 1, MAX_PAGE_TOKENS)
        self._check_range("recent_tokens", 1, None)
        self._check_range("min_load_tokens", 1, None)
