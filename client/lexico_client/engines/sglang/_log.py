"""The backend's logger: below SGLang's own, so that it writes where and as SGLang does."""

from __future__ import annotations

import logging
from typing import Final

LOG: Final = logging.getLogger("sglang.lexico")
