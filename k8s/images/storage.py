"""buildah with a storage of its own, below `.cache/images`, and what images in it consist of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parents[2] / ".cache" / "images"


@dataclass(frozen=True)
class Storage:
    """Images and containers below a folder."""

    folder: Path = FOLDER
    driver: str = os.environ.get("STORAGE_DRIVER", "overlay")
    """`overlay`; `vfs`, which takes several times the room, where that cannot be mounted."""

    def buildah(self, *arguments: str, quiet: bool = True) -> str:
        """Runs buildah and returns what it printed; unless `quiet`, it prints to stderr.

        Raises:
            subprocess.CalledProcessError: it failed; it has said why on stderr.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "storage.conf"
        configuration.write_text(
            f'[storage]\ndriver = "{self.driver}"\n'
            f'graphroot = "{self.folder / "storage"}"\nrunroot = "{self.folder / "run"}"\n'
        )
        environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(configuration)}
        # The variable would win over the file, and drop the folders along with the driver.
        environment.pop("STORAGE_DRIVER", None)
        stdout = subprocess.PIPE if quiet else sys.stderr
        command = ["buildah", *arguments]
        done = subprocess.run(command, check=True, env=environment, text=True, stdout=stdout)
        return (done.stdout or "").strip()

    def has(self, image: str) -> bool:
        """Whether there is an image of that name."""
        names = self.buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()
        return image in names

    def configuration(self, image: str) -> dict[str, Any]:
        """The `config` of an image by the specification of OCI: `Env`, `User`, `Labels`, ..."""
        found: dict[str, Any] = self._inspected(image)["config"]
        return found

    def layers(self, image: str) -> list[int]:
        """Bytes of the files of each layer, uncompressed, the base's first."""
        folder = self.folder / "storage" / f"{self.driver}-layers"
        listed = json.loads((folder / "layers.json").read_text())
        sizes = {each["diff-digest"]: each["diff-size"] for each in listed if "diff-size" in each}
        return [sizes[digest] for digest in self._inspected(image)["rootfs"]["diff_ids"]]

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """A container of the image, its root mounted there; gone afterwards."""
        container = self.buildah("from", "--pull-never", image)
        try:
            yield Path(self.buildah("mount", container))
        finally:
            self.buildah("rm", container)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A folder for a while."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=self.folder) as folder:
            yield Path(folder)

    def _inspected(self, image: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.buildah("inspect", "--type=image", image))["OCIv1"]
        return found
