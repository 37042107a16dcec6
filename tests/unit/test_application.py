"""Arguments of the application that a cluster imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.serve.exceptions import RayServeException

from lexico_proto.errors import ConfigurationError
from lexico_services.offload.application import BuildArguments, build


def test_all_arguments_have_defaults() -> None:
    assert BuildArguments.of({}) == BuildArguments(None, 1)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"ingreses": 2}, "ingreses: there are config and ingresses"),
        ({"config": 3}, "config must be the path of a file"),
        ({"config": ""}, "config must be the path of a file"),
        ({"ingresses": "2"}, "ingresses must be a whole number"),
        ({"ingresses": True}, "ingresses must be a whole number"),
        ({"ingresses": 0}, "give 1 or more"),
    ],
)
def test_what_is_no_argument_is_refused(args: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        BuildArguments.of(args)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("[store]\nurl = 'redis://h'\n", "encoder.num_gpus is not given"),
        ("[encoder]\nnum_gpus = 0\n[store]\nurl = 'embedded://'\n", "processes of their own"),
        ("[encoder]\nnum_gpus = 0\n", "no page store is given"),
        (
            "[encoder]\nnum_gpus = 0\n[store]\nurl = 'redis://h'\n[offload]\nport = 0\n",
            "nobody would know",
        ),
        (
            "[encoder]\nnum_gpus = 0\n[store]\nurl = 'redis://h'\n[listen]\nhost = '0.0.0.0'\n",
            "listening on 0.0.0.0 without tokens",
        ),
    ],
)
def test_settings_that_no_cluster_can_use_are_refused(
    lines: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEXICO_STORE", raising=False)
    file = tmp_path / "lexico.toml"
    file.write_text(lines)
    with pytest.raises(RayServeException, match=told):
        build({"config": str(file)})


def test_arguments_are_refused_in_the_words_that_serve_passes_on() -> None:
    with pytest.raises(RayServeException, match="ingreses: there are config and ingresses"):
        build({"ingreses": 2})
