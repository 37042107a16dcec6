"""`make image`: builds an image by buildah, and says what it weighs.

python -m k8s.images.build cpu --base debian:bookworm-slim@sha256:...
python -m k8s.images.build cpu            on a base that debootstrap makes here
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from k8s.checks.containerfile import FILE as CONTAINERFILE
from k8s.checks.containerfile import instructions
from k8s.images import machine
from k8s.images.storage import Storage

ROOT: Final = Path(__file__).parents[2]
NAMES: Final = {"cpu": "lexico-offload", "cuda": "lexico-offload-cuda"}
"""Names of the images, by flavour."""
BILL: Final = "opt/lexico/sbom.cdx.json"
"""Where an image has its bill of materials."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where the image was built; 1 where a step failed, 2 where none can be begun."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("flavour", choices=sorted(NAMES))
    parser.add_argument("--base", help="image of Debian 12 by its digest; none: debootstrap's")
    parser.add_argument("--source", default="", help="URL of the repository, for a label")
    options = parser.parse_args(arguments)
    if options.base and "@sha256:" not in options.base:
        sys.stderr.write(f"make image: BASE={options.base} names no digest (@sha256:...)\n")
        return 2
    needs = ["buildah"] if options.base else ["buildah", "debootstrap"]
    if lacking := machine.lacking(*needs):
        sys.stderr.write(f"make image: {lacking}\n")
        return 2
    storage = Storage()
    try:
        image = build(storage, options.flavour, options.base, options.source)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"make image: {error.cmd[0]} failed with code {error.returncode}\n")
        return 1
    sys.stdout.write(report(storage, image))
    return 0


def build(storage: Storage, flavour: str, base: str | None = None, source: str = "") -> str:
    """Builds an image and returns its name; its bill of materials lies in the storage's folder.

    Raises:
        subprocess.CalledProcessError: a step failed, and has said why.
    """
    if base is None and not storage.has(machine.BASE):
        machine.make_base(storage)
    image = f"localhost/{NAMES[flavour]}:{version()}"
    pip, places = machine.pip_settings()
    with storage.scratch("secret") as folder:
        (folder / "pip.conf").write_text(pip)
        command = ["build", "--layers", "--isolation=chroot", "--format=oci"]
        command += ["--pull-never"] if base is None else ["--pull"]
        command += [f"--file={CONTAINERFILE}", f"--tag={image}"]
        command += [f"--secret=id=pip,src={folder / 'pip.conf'}"]
        command += [f"--volume={path}:{place}:ro" for place, path in places.items()]
        values = {"BASE": base or machine.BASE, "FLAVOUR": flavour, "REVISION": revision()}
        values |= {"SOURCE": source, "VERSION": version()}
        command += [f"--build-arg={name}={value}" for name, value in values.items()]
        storage.buildah(*command, str(ROOT), quiet=False)
    with storage.mounted(image) as root:
        bill = storage.folder / f"{NAMES[flavour]}-{version()}.cdx.json"
        bill.write_bytes((root / BILL).read_bytes())
    return image


def report(storage: Storage, image: str) -> str:
    """Lines with the size of every layer, and of all."""
    sizes = storage.layers(image)
    # buildah names digests where something is copied from another stage.
    made = [each.text for each in instructions(CONTAINERFILE.read_text())]
    copies = [text for text in made if text.startswith("--from=")]
    names = [*("Debian, and what is installed of it",) * (len(sizes) - len(copies)), *copies]
    lines = [f"{size / 1e6:9.1f} MB  {name}" for size, name in zip(sizes, names, strict=True)]
    return "\n".join([*lines, f"{sum(sizes) / 1e6:9.1f} MB  {image}"]) + "\n"


def version() -> str:
    """The project's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def revision() -> str:
    """The commit that is checked out, with `-dirty` where the tree differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--match=", "--dirty"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
