"""What the packages promise to whoever installs them."""

from __future__ import annotations

import importlib
import inspect
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lexico_codec import codecs
from lexico_codec.codecs import CODECS
from lexico_codec.codecs.codec import Codec
from lexico_codec.kernels import library
from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [
    ROOT / path for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
]
IDS = {
    "raw": 1,
    "lexico": 2,
    "lexico-packed": 3,
    "lexico-residual": 7,
    "lossless": 5,
    "lexico-adaptive": 6,
}
"""Ids lie in stored frames: one that is given is never given again. 4 was given."""

# service: method -> (client streams, server streams)
SERVICES = {
    "lexico_proto.v1.Offload": {"Put": (True, False)},
    "lexico_proto.v1.Reload": {
        "Match": (False, False),
        "Namespaces": (False, False),
        "Get": (False, True),
    },
    "lexico_proto.v1.Dictionaries": {
        "Register": (True, False),
        "Fetch": (False, True),
        "List": (False, False),
        "Publish": (False, False),
        "Find": (False, False),
    },
    "lexico_proto.v1.Admin": dict.fromkeys(
        ("Usage", "Pin", "Unpin", "Forget", "Inspect", "Tenants"), (False, False)
    ),
    "lexico_proto.v1.Versions": {"Describe": (False, False)},
    "lexico_proto.v1.Operations": {"Status": (False, False)},
}
NOT_OF_KERNELS = (
    "ray",
    "redis",
    "grpc",
    "triton",
    "transformers",
    "xxhash",
    "google.protobuf",
    "safetensors",
    "lexico_proto.v1",
    "lexico_store",
    "lexico_worker",
    "lexico_services",
    "lexico_client",
)


@pytest.mark.parametrize("folder", ["proto", "services", "client"])
def test_folders_of_one_package_are_no_packages(folder: str) -> None:
    """A top-level `proto` would shadow proto-plus."""
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_wheel_holds_every_package() -> None:
    found = {path.parent for path in ROOT.glob("lexico_*/__init__.py")}
    for folder in ("proto", "services", "client"):
        found |= {path.parent for path in (ROOT / folder).glob("*/__init__.py")}
    assert set(PACKAGES) == found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_packages_are_typed(package: Path) -> None:
    assert (package / "py.typed").is_file()
    for folder in {path.parent for path in package.rglob("*.py")}:
        assert (folder / "__init__.py").is_file(), f"{folder} is left out by strict tools"


def test_ids_of_codecs_are_pinned() -> None:
    assert {name: cls.codec_id for name, cls in CODECS.items()} == IDS
    assert {cls.name: name for name, cls in CODECS.items()} == {name: name for name in CODECS}
    assert len({*IDS.values(), 4}) == len(IDS) + 1


def test_what_the_package_of_codecs_names_is_imported_when_it_is_asked_for() -> None:
    classes = set(codecs.__all__) - {"CODECS", "codec_from_config"}
    assert {cls.__name__ for cls in CODECS.values()} <= classes
    for name in classes:
        assert getattr(codecs, name).__name__ == name
    assert not hasattr(codecs, "NoCodec")
    assert "no codec" not in CODECS
    assert len(CODECS) == len(IDS)


def test_every_codec_class_is_registered() -> None:
    found = set()
    for path in sorted((ROOT / "lexico_codec" / "codecs").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(name.removesuffix(".__init__"))
        for value in vars(module).values():
            is_codec = isinstance(value, type) and issubclass(value, Codec)
            if is_codec and not inspect.isabstract(value):
                found.add(value)
    assert found == set(CODECS.values())


def test_services_are_those_of_the_design() -> None:
    found = {}
    for name in ("offload", "reload", "dictionaries", "admin", "versions", "operations"):
        stub = importlib.import_module(f"lexico_proto.v1.{name}_pb2")
        for service in stub.DESCRIPTOR.services_by_name.values():
            found[service.full_name] = {
                method.name: (method.client_streaming, method.server_streaming)
                for method in service.methods
            }
        grpc_stub = importlib.import_module(f"lexico_proto.v1.{name}_pb2_grpc")
        assert hasattr(grpc_stub, f"{name.capitalize()}Servicer")
        assert hasattr(grpc_stub, f"{name.capitalize()}Stub")
    assert found == SERVICES


def test_compiled_kernels_are_there_where_a_compiler_is() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here: the torch twin serves")
    assert library.available(), "run `python hatch_build.py` and read what it says"
    sources = [path for path in library.LIBRARY.parent.iterdir() if ".so" not in path.name]
    newest = max(path.stat().st_mtime for path in sources)
    assert library.LIBRARY.stat().st_mtime >= newest, "stale: run `python hatch_build.py`"


def test_kernels_import_with_torch_and_numpy_alone() -> None:
    """They run where nothing else of ours does: a notebook, a kernel benchmark, a GPU machine."""
    program = f"""
import sys
for name in {NOT_OF_KERNELS!r}:
    sys.modules[name] = None
import torch
from lexico_codec.kernels.pursuit import coding as kernels
atoms = torch.eye(4)
codes = kernels.encode(torch.ones(2, 4), atoms, 2)
assert kernels.reconstruct(codes, atoms).shape == (2, 4)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
