"""Generates the stubs beside the .proto files, or checks that the committed ones are up to date.

python proto/compile_protos.py            write them
python proto/compile_protos.py --check    exit 1 if any differs
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PACKAGE = Path("lexico_proto/v1")


def generate(out: Path) -> list[Path]:
    """Writes every stub under `out` and returns their paths relative to it.

    The parent folder is the include root, so generated imports are right as they are.
    """
    files = sorted((ROOT / PACKAGE).glob("*.proto"))
    services = [file for file in files if "\nservice " in file.read_text()]
    outputs = {"--python_out": files, "--pyi_out": files, "--grpc_python_out": services}
    for option, sources in outputs.items():
        names = [str(source.relative_to(ROOT)) for source in sources]
        if protoc.main(["protoc", f"-I{ROOT}", f"{option}={out}", *names]) != 0:
            raise SystemExit("protoc failed; its message is above")
    return sorted(path.relative_to(out) for path in (out / PACKAGE).glob("*_pb2*.py*"))


def main() -> int:
    """Exit code 0, or 1 where --check found a stub that is out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        made = generate(Path(scratch))
        committed = sorted(path.relative_to(ROOT) for path in (ROOT / PACKAGE).glob("*_pb2*.py*"))
        stale = [
            path
            for path in made
            if not (ROOT / path).exists()
            or (ROOT / path).read_bytes() != (Path(scratch) / path).read_bytes()
        ]
        extra = [path for path in committed if path not in made]
        if check:
            for path in stale + extra:
                sys.stderr.write(f"{path} is out of date: run make proto\n")
            return 1 if stale or extra else 0
        for path in made:
            shutil.copyfile(Path(scratch) / path, ROOT / path)
        for path in extra:
            (ROOT / path).unlink()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
