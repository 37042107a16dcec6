"""etcd and the two API servers, built from Debian's packages once and kept in a cache.

The extension server serves custom resources by their definitions, as Kubernetes of today does: its
source is a package of sid. The last kube-apiserver whose source Debian has in whole is bookworm's.
etcd is sid's, as it is. Each of them that is not to be had is named, and the others are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from k8s.server.packages import Suite, Unavailable, mirror

ETCD: Final = "etcd"
CUSTOM: Final = "apiextensions-apiserver"
"""Serves custom resources."""
BUILT_IN: Final = "kube-apiserver"
"""Serves built-in kinds."""

RECIPE: Final = 1
"""One more where the same packages would be built into something else."""
SID_GO: Final = "1.27"
BOOKWORM_GO: Final = "1.19"


_GO_CACHE: Final = "go-cache"
_EXAMPLES: Final = ("staging/src/k8s.io/code-generator/", "staging/src/k8s.io/sample-apiserver/")


@dataclass(frozen=True)
class Program:
    """A server's file."""

    path: str
    version: str
    """Of the Debian package that it is, or that its source is."""
    toolchain: str
    """Of Go's package that built it; empty where Debian did."""
    sha256: str


@dataclass(frozen=True)
class Programs:
    """What there is, and why the rest is not."""

    found: dict[str, Program]
    lacking: dict[str, str]


def folder() -> Path:
    """Where programs are kept, by the recipe that built them."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "lexico-offload" / "k8s-servers" / f"{os.uname().machine}-{RECIPE}"


def programs(kept: Path, anew: bool = False) -> Programs:
    """Those of the cache, whole by their checksums; what it lacks is built.

    Args:
        kept: the folder of the cache.
        anew: build again what is there, of the packages of today.
    """
    found, lacking = {}, {}
    for name, build in _BUILDS.items():
        program = None if anew else _kept(kept, name)
        if program is None:
            try:
                program = _built(kept, name, build)
            except Unavailable as error:
                lacking[name] = str(error)
                continue
        found[name] = program
    if not lacking:
        shutil.rmtree(kept / _GO_CACHE, ignore_errors=True)
    return Programs(found, lacking)


def _kept(kept: Path, name: str) -> Program | None:
    record = kept / f"{name}.json"
    if not record.is_file():
        return None
    program = Program(**json.loads(record.read_text()))
    path = Path(program.path)
    return program if path.is_file() and _digest(path) == program.sha256 else None


def _built(kept: Path, name: str, build: Callable[[str, Path, Path], tuple[str, str]]) -> Program:
    place = mirror()
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=kept) as scratch:
        made = Path(scratch) / name
        version, toolchain = build(place, Path(scratch), made)
        made.chmod(0o755)
        path = kept / name
        made.replace(path)
    program = Program(str(path), version, toolchain, _digest(path))
    (kept / f"{name}.json").write_text(json.dumps(asdict(program), indent=1) + "\n")
    return program


def _etcd(place: str, scratch: Path, made: Path) -> tuple[str, str]:
    suite, root = Suite("sid", place, scratch / "apt"), scratch / "root"
    suite.update()
    version = suite.fetch(["etcd-server"], root, only="etcd-server")["etcd-server"]
    shutil.copy(root / "usr/bin/etcd", made)
    return version, ""


def _custom(place: str, scratch: Path, made: Path) -> tuple[str, str]:
    suite, root = Suite("sid", place, scratch / "apt"), scratch / "root"
    suite.update()
    source, go = "golang-k8s-apiextensions-apiserver-dev", f"golang-{SID_GO}-go"
    versions = suite.fetch([source, go], root)
    tool = _Go(root / f"usr/lib/go-{SID_GO}", root / "usr/share/gocode", scratch, scratch)
    tool.build("k8s.io/apiextensions-apiserver", made)
    return versions[source], versions[go]


def _built_in(place: str, scratch: Path, made: Path) -> tuple[str, str]:
    suite, root = Suite("bookworm", place, scratch / "apt"), scratch / "root"
    suite.update()
    go = f"golang-{BOOKWORM_GO}-go"
    versions = suite.fetch([go], root, only="golang-")
    tree = scratch / "gopath/src/k8s.io/kubernetes"
    tree.parent.mkdir(parents=True)
    version = suite.source("kubernetes", tree)
    tool = _Go(root / f"usr/lib/go-{BOOKWORM_GO}", scratch / "gopath", tree, scratch)
    # Debian leaves out what upstream's Makefile generates: the schemas of built-in kinds.
    generator, package = scratch / "openapi-gen", "k8s.io/kubernetes"
    tool.build(f"{package}/vendor/k8s.io/kube-openapi/cmd/openapi-gen", generator)
    inputs = ",".join(described(tree))
    tool.run(
        *(str(generator), "--go-header-file", os.devnull, "--report-filename", os.devnull),
        *("--output-file-base", "zz_generated.openapi", "--input-dirs", inputs),
        *("--output-package", f"{package}/pkg/generated/openapi"),
        *("--output-base", str(scratch / "gopath/src")),
    )
    # Without clouds' own code, which is most of it and of no use here.
    tool.build(f"{package}/cmd/kube-apiserver", made, "-tags", "providerless")
    return version, versions[go]


def described(tree: Path) -> list[str]:
    """Packages of Kubernetes' source that ask for a schema of their types."""
    found = set()
    for top in ("pkg", "staging/src/k8s.io", "cmd"):
        for path in (tree / top).rglob("*.go"):
            if b"// +k8s:openapi-gen=" in path.read_bytes() and not path.name.endswith("_test.go"):
                found.add(path.parent.relative_to(tree).as_posix())
    staged = "staging/src/"
    return sorted(
        "k8s.io/kubernetes/" + (f"vendor/{each.removeprefix(staged)}" if staged in each else each)
        for each in found
        if not each.startswith(_EXAMPLES)
    )


@dataclass(frozen=True)
class _Go:
    """Go's toolchain, with a workspace of sources and nothing from the network."""

    root: Path
    workspace: Path
    inside: Path
    """Where it is run: what is below finds the packages that are vendored there."""
    scratch: Path

    def build(self, package: str, made: Path, *options: str) -> None:
        command = [str(self.root / "bin/go"), "build", "-trimpath", "-ldflags", "-s -w"]
        self.run(*command, *options, "-o", str(made), package)

    def run(self, *command: str) -> None:
        log = self.scratch / "build.log"
        sys.stderr.write(f"{Path(command[0]).name} {command[1]} {command[-1][-60:]}, minutes\n")
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "CGO_ENABLED": "0",
            "GO111MODULE": "off",
            # It outlives the scratch, so that a build that was cut short goes on.
            "GOCACHE": str(self.scratch.parent / _GO_CACHE),
            "GOENV": "off",
            "GOFLAGS": "",
            "GOPATH": str(self.workspace),
            "GOPROXY": "off",
            "GOROOT": str(self.root),
            "GOTMPDIR": str(self.scratch),
            "GOTOOLCHAIN": "local",
        }
        with log.open("wb") as output:
            done = subprocess.run(
                command,
                env=environment,
                cwd=self.inside,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise Unavailable(f"{Path(command[0]).name} failed: {' | '.join(lines[-3:])[-300:]}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_BUILDS: Final = {ETCD: _etcd, CUSTOM: _custom, BUILT_IN: _built_in}
