"""Dictionary sets: their kinds, their files, and the one place that chooses and checks one."""

from typing import Final

FORMATS: Final = (1, 2, 3)
"""Of their files, as this build reads them."""
