"""A grpcio that is too old for us is named at import."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from typing import Final

import pytest

from lexico_proto.installed import OLDEST_GRPCIO, check_grpcio
from requirements.lock import PROJECT
from tests.support.waiting import PATIENCE_S

TOO_OLD: Final = """
import lexico_proto.installed
lexico_proto.installed.OLDEST_GRPCIO = (999, 0)
try:
    import {module}
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("version", ["1.84.0", "1.85.3", "1.100.0rc1", "2.0.0.dev0"])
def test_newer_ones_are_taken(version: str) -> None:
    check_grpcio(version)


@pytest.mark.parametrize("version", ["0.99.1", "1.9.0", "1.80.0", "1.83.2"])
def test_an_older_one_is_refused_with_what_to_install(version: str) -> None:
    words = f"^grpcio {version} is too old for lexico-offload: pip install 'grpcio>=1.84'$"
    with pytest.raises(ImportError, match=words):
        check_grpcio(version)


@pytest.mark.parametrize("module", ["lexico_client", "lexico_services.server"])
def test_whoever_imports_grpc_is_told(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOO_OLD.format(module=module)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert "is too old for lexico-offload: pip install 'grpcio>=999.0'" in done.stdout


def test_the_ranges_begin_there() -> None:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    ranges = {each for extra in extras.values() for each in extra if each.startswith("grpcio>")}
    assert ranges == {f"grpcio>={'.'.join(map(str, OLDEST_GRPCIO))},<2"}
