"""The smoke test, as its Job runs it, against running services."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from k8s.checks.pods import pods
from k8s.checks.rendering import COMPONENTS, base_with
from k8s.new_secrets import SMOKE_TEST, secrets_of
from tests.support.services import running_services


@pytest.fixture(scope="module")
def smoke_test() -> ModuleType:
    path = COMPONENTS / "smoke-test" / "smoke_test.py"
    spec = importlib.util.spec_from_file_location("smoke_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(offload: str, reload: str, token: Path) -> list[str]:
    """Those of the Job, with addresses and a token of this machine."""
    (pod,) = (pod for pod in pods(base_with("smoke-test")) if pod.component == SMOKE_TEST)
    line = " ".join(["smoke_test.py", *pod.containers[0]["args"]])
    line = line.replace("lexico-offload:7411", offload).replace("lexico-reload:7412", reload)
    return line.replace("/etc/lexico/token/token", str(token)).split()


async def test_what_comes_back_is_what_was_sent(
    smoke_test: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = {each["metadata"]["name"]: each["stringData"] for each in secrets_of([])}
    (tmp_path / "tokens").write_text(data["lexico-tokens"]["tokens"])
    (tmp_path / "token").write_text(data["lexico-smoke-test"]["token"])
    async with running_services(token_file=tmp_path / "tokens") as services:
        argv = arguments(services.offload_address, services.reload_address, tmp_path / "token")
        monkeypatch.setattr("sys.argv", argv)
        assert await asyncio.to_thread(smoke_test.main) == 0
    assert "loaded pages=2" in capsys.readouterr().out
