"""These tests take minutes of every processor: `make test-scale` runs them, nothing else."""

import os

collect_ignore_glob = [] if os.environ.get("LEXICO_TEST_SCALE") == "1" else ["test_*.py"]
