"""Debian's packages of a suite, downloaded and unpacked without being installed.

apt has a state of its own below a folder, so that nothing of the machine changes and nobody must be
root. Where packages come from is the machine's own configuration: neither is named here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Debian's, of the package debian-archive-keyring."""
PROGRAMS: Final = {"apt-get": "apt", "dpkg-deb": "dpkg", "dpkg-source": "dpkg-dev"}
"""What this needs, and the Debian package that has it."""


class Unavailable(Exception):
    """Something that is needed is not to be had on this machine."""


def mirror(release: Path = Path("/etc/os-release")) -> str:
    """Where this machine takes Debian's packages from, as a URL.

    Raises:
        Unavailable: it is no machine of Debian's, or it lacks a program.
    """
    text = release.read_text() if release.exists() else ""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if fields.get("ID") != "debian":
        raise Unavailable("this machine is not Debian's, whose packages have the servers' sources")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise Unavailable(f"it needs {program}, of Debian's package {package}")
    release_name = fields.get("VERSION_CODENAME", "").strip('"')
    shape = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    listed = _run(["apt-get", "indextargets", "--format", shape], "apt's sources").splitlines()
    for name, component, url in (line.split(" ", 2) for line in sorted(set(listed))):
        if (name, component) == (release_name, "main"):
            return url
    raise Unavailable(f"apt's sources have no main of {release_name}")


@dataclass(frozen=True)
class Suite:
    """A suite of Debian, such as `sid`."""

    name: str
    mirror: str
    folder: Path
    """For apt's state and what it downloads."""

    def update(self) -> None:
        """Reads what the suite has.

        Raises:
            Unavailable: it cannot be read.
        """
        for name in ("lists/partial", "archives/partial", "sources"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        signed = f"[signed-by={KEYS}] " if KEYS.exists() else ""
        where = f"{signed}{self.mirror} {self.name} main\n"
        (self.folder / "sources.list").write_text(f"deb {where}deb-src {where}")
        (self.folder / "apt.conf").write_text(_configuration(self.folder))
        self._apt("update", "--quiet", "--error-on=any")

    def fetch(self, names: Sequence[str], target: Path, only: str = "") -> dict[str, str]:
        """Unpacks packages, and all that they depend on, into a folder.

        Args:
            names: of packages.
            target: the folder, their root.
            only: a package that they depend on is taken where its name begins so.

        Returns:
            Versions of the packages named.

        Raises:
            Unavailable: the suite lacks one, or it cannot be downloaded.
        """
        planned = installed(self._apt("install", "--simulate", *names))
        wanted = sorted(each for each in planned if each in names or each.startswith(only))
        self._apt("download", *wanted, inside=self.folder / "archives")
        for package in sorted((self.folder / "archives").glob("*.deb")):
            _run(["dpkg-deb", "--extract", str(package), str(target)], package.name)
            package.unlink()
        return {name: planned[name] for name in names}

    def source(self, name: str, target: Path) -> str:
        """Unpacks a source package as the folder `target`; returns its version.

        Raises:
            Unavailable: the suite lacks it, or it cannot be downloaded.
        """
        place = self.folder / "sources"
        self._apt("source", "--download-only", name, inside=place)
        found = sorted(place.glob(f"{name}_*.dsc"))
        if len(found) != 1:
            raise Unavailable(f"{self.name} has no one source package {name}")
        # apt has compared them with what the suite's signature says.
        command = ["dpkg-source", "--no-check", "--extract", str(found[0]), str(target)]
        _run(command, found[0].name)
        lines = found[0].read_text().splitlines()
        (version,) = (line.split()[1] for line in lines if line.startswith("Version: "))
        return version

    def _apt(self, *arguments: str, inside: Path | None = None) -> str:
        command = ["apt-get", "--config-file", str(self.folder / "apt.conf"), *arguments]
        return _run(command, f"{self.name}: apt-get {' '.join(arguments)}"[:120], inside)


def installed(text: str) -> dict[str, str]:
    """Package → version, from what `apt-get install --simulate` prints."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["Inst"]:
            found[words[1].partition(":")[0]] = words[2].strip("([]")
    return found


def _configuration(folder: Path) -> str:
    settings = {
        "Dir::State": folder,
        "Dir::State::Lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::Archives": folder / "archives",
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": os.devnull,
        "Dir::Etc::Preferences": os.devnull,
        "Dir::Etc::PreferencesParts": os.devnull,
        "Acquire::Languages": "none",
        "APT::Install-Recommends": "false",
        # Whoever runs this owns the folder, and apt's own user does not.
        "APT::Sandbox::User": "root",
    }
    return "".join(f'{name} "{value}";\n' for name, value in settings.items())


def _run(command: Sequence[str], what: str, inside: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=inside, env=environment, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise Unavailable(f"{what}: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout
