"""Run while an image is built: its bill of materials in CycloneDX, and whether it is the right one.

Python's packages are cyclonedx-py's work, with their versions, licences and what needs what. It
knows none of Debian's: those are added here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

PYTHON: Final = "/opt/lexico/bin/python"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 with a line where the image would not be what its flavour says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=Path, required=True, help="folder of the layers")
    parser.add_argument("--debian", type=Path, required=True, help="lines of dpkg-query")
    parser.add_argument("--flavour", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    folders = sorted(options.layers.glob("*/opt/lexico/lib/python3*/site-packages"))
    for problem in problems(folders, options.flavour):
        sys.stderr.write(f"{problem}\n")
        return 1
    bill = of_python(folders)
    bill["components"] += of_debian(options.debian.read_text())
    options.out.write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n")
    return 0


def problems(folders: Sequence[Path], flavour: str) -> Iterator[str]:
    """What is wrong with the packages in these folders."""
    for folder in folders:
        version = folder / "torch" / "version.py"
        if version.exists():
            cuda = "+cpu" not in version.read_text()
            if cuda != (flavour == "cuda"):
                which = "a CUDA" if cuda else "a CPU"
                yield f"pip found {which} build of torch for FLAVOUR={flavour}: see k8s/README.md"
    if not any(
        (folder / "lexico_codec/kernels/native/liblexico.so").exists() for folder in folders
    ):
        yield "the CPU kernels were not compiled: hatch_build.py says why, above"


def of_python(folders: Sequence[Path]) -> dict[str, Any]:
    """The bill of all packages in these folders, by cyclonedx-py."""
    command = [str(Path(sys.executable).with_name("cyclonedx-py")), "environment", PYTHON]
    command += ["--pyproject=pyproject.toml", "--mc-type=application", "--output-reproducible"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    bill: dict[str, Any] = json.loads(done.stdout)
    return bill


def of_debian(listed: str) -> list[dict[str, str]]:
    """Components of lines `name<tab>version<tab>architecture`."""
    release = Path("/etc/debian_version").read_text().strip()
    return [_package(line, release) for line in sorted(listed.splitlines())]


def _package(line: str, release: str) -> dict[str, str]:
    name, version, architecture = line.split("\t")
    url = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}"
    url += f"?arch={architecture}&distro=debian-{quote(release, safe='')}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


if __name__ == "__main__":
    sys.exit(main())
