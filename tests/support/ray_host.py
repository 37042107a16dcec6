"""`ray start`, with patience: `python -m tests.support.ray_host start --head --block ...`."""

from __future__ import annotations

from lexico_worker.ray_patience import patient_start, set_limits
from tests.support.waiting import PATIENCE_S


def main() -> None:
    """Ends as `ray` does."""
    set_limits(PATIENCE_S)
    with patient_start(PATIENCE_S):
        from ray.scripts import scripts

        scripts.main()


if __name__ == "__main__":
    main()
