"""The connector's logger: below vLLM's own, so that it writes where and as vLLM does."""

from __future__ import annotations

import logging
from typing import Final

LOG: Final = logging.getLogger("vllm.lexico")
