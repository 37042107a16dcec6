"""What a build takes from the machine that it runs on: where packages come from, and a base.

Images are for Debian's and PyPI's mirrors wherever one builds, so that neither is named in this
project. pip's settings are handed to the build as a secret, which no layer keeps.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from k8s.images.storage import Storage

RELEASE: Final = "bookworm"
BASE: Final = f"localhost/debian:{RELEASE}"
"""The base that is made where no registry is at hand."""

FILES: Final = Path("/run/pip")
"""Where the build finds files that pip's configuration names."""

_SLIM: Final = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""


def lacking(*programs: str) -> str:
    """What is missing on this machine, as one line; empty where nothing is."""
    missing = [f"the Debian package {each}" for each in programs if shutil.which(each) is None]
    if os.geteuid():
        missing.insert(0, "root")
    return f"it needs {', '.join(missing)}" if missing else ""


def make_base(storage: Storage) -> None:
    """Makes `BASE` of Debian's packages, as small as Debian's own slim image, and up to date."""
    with storage.scratch("base") as root:
        steps = ["debootstrap", "--variant=minbase", RELEASE, str(root)]
        subprocess.run(steps, check=True, stdout=sys.stderr)
        (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(_SLIM)
        _copy_sources(root)
        inside = "apt-get update -q && apt-get upgrade -qy && apt-get clean"
        inside += " && rm -rf /var/lib/apt/lists/* /var/log/* /usr/share/locale/* /usr/share/man/*"
        inside += " && find /usr/share/doc -type f ! -name copyright -delete"
        environment = {"PATH": os.defpath + ":/usr/sbin:/sbin", "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(
            ["chroot", str(root), "sh", "-c", inside],
            check=True,
            env=environment,
            stdout=sys.stderr,
        )
        container = storage.buildah("from", "scratch")
        storage.buildah("add", container, str(root), "/")
        storage.buildah("config", "--cmd", "bash", container)
        storage.buildah("commit", "--rm", container, BASE)


def _copy_sources(root: Path) -> None:
    """This machine's own, with security updates, where it is of the same release."""
    if f"VERSION_CODENAME={RELEASE}" not in Path("/etc/os-release").read_text():
        return
    for name in ("sources.list", "sources.list.d/debian.sources"):
        source, target = Path("/etc/apt") / name, root / "etc/apt" / name
        target.unlink(missing_ok=True)
        if source.exists():
            shutil.copy(source, target)


def pip_settings() -> tuple[str, dict[Path, Path]]:
    """pip's configuration as one file, and what it names here: place within the build -> path."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    settings: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        # Those of the environment come first in the list, and win.
        settings.setdefault(name.rpartition(".")[2], ast.literal_eval(value))
    places = {}
    for name, value in settings.items():
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_dir():
                # Pages of a local index may point to files beside it.
                folder = path.parent if path.name == "simple" else path
                places[folder] = folder
            elif path.is_absolute() and path.is_file():
                # Elsewhere, as the image has certificates of its own at the usual place.
                places[FILES / path.name] = path
                settings[name] = value.replace(str(path), str(FILES / path.name))
    text = "".join(f"{name} = {value}\n" for name, value in settings.items())
    return f"[global]\n{text}", places
