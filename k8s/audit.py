"""`make k8s-audit`: checkov over the pods of every overlay, those of RayServices among them.

It is installed beside this project, in `.venv-audit`, as its packages are not ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from k8s.checks.pods import pods
from k8s.checks.rendering import HERE, OVERLAYS, overlay

CHECKOV: Final = "checkov==3.3.30"
FOLDER: Final = HERE.parent / ".venv-audit"

PASSED_OVER: Final = {
    "CKV_K8S_15": "IfNotPresent is enough for images by version, and needs no registry to start",
    "CKV_K8S_35": "Ray and Valkey take some passwords from the environment alone",
    "CKV_K8S_38": "Ray's autoscaler needs its token, and pods.py says that nobody else has one",
    "CKV_K8S_43": "digests are the installation's: images of this project are in no registry",
    "CKV_K8S_8": "KubeRay adds the probes of Ray's containers",
    "CKV_K8S_9": "KubeRay adds the probes of Ray's containers",
    "CKV_K8S_21": "pods that are taken out of a RayService have no namespace of their own",
}
"""Rules that do not hold here, and why."""


def main() -> int:
    """Exit code 1 where checkov finds something else."""
    checkov = _installed()
    failed = []
    for path in sorted(OVERLAYS.iterdir()):
        with tempfile.TemporaryDirectory() as scratch:
            for number, item in enumerate(_objects(path.name)):
                (Path(scratch) / f"{number}.json").write_text(json.dumps(item))
            failed += [f"{path.name}: {each}" for each in _failed(checkov, scratch)]
    sys.stdout.write("".join(f"{each}\n" for each in failed) + f"{len(failed)} failed\n")
    return 1 if failed else 0


def _objects(name: str) -> Iterator[dict[str, Any]]:
    rendering = overlay(name)
    yield from (item for item in rendering.objects if item["kind"] != "RayService")
    yield from (pod.as_object() for pod in pods(rendering) if pod.kind == "RayService")


def _installed() -> Path:
    checkov = FOLDER / "bin" / "checkov"
    if not checkov.exists():
        venv.create(FOLDER, with_pip=True)
        pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "-qq", CHECKOV]
        subprocess.run(pip, check=True)
    return checkov


def _failed(checkov: Path, folder: str) -> list[str]:
    command = [str(checkov), "--directory", folder, "--framework", "kubernetes", "--quiet"]
    command += ["--compact", "--output", "json", "--skip-download"]
    command += ["--skip-check", ",".join(PASSED_OVER)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}
    )
    report = json.loads(done.stdout)
    checks = report["results"]["failed_checks"] if isinstance(report, dict) else []
    return [f"{each['resource']} {each['check_id']} {each['check_name']}" for each in checks]


if __name__ == "__main__":
    sys.exit(main())
