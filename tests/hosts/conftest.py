"""These tests take minutes of every processor: `make test-hosts` runs them, nothing else."""

import os

collect_ignore_glob = [] if os.environ.get("LEXICO_TEST_HOSTS") == "1" else ["test_*.py"]
