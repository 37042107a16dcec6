"""The logger of what runs in LMCache's server, below LMCache's own."""

from __future__ import annotations

import logging
from typing import Final

LOG: Final = logging.getLogger("lmcache.lexico")
