"""Puts a page of random numbers and gets it back, through the service and bit for bit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from lexico_client import Client, Timeouts, Tls
from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec, make_spec

PAGES = 2


def main() -> int:
    """Exit code 0 where what came back is what was sent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--offload", required=True, help="HOST:PORT of the ingresses")
    parser.add_argument("--reload", required=True, help="HOST:PORT of the reload servers")
    parser.add_argument("--token-file", type=Path, help="counts where it is there")
    parser.add_argument("--tls", type=Path, help="folder of ca.crt, tls.crt, tls.key, if there")
    options = parser.parse_args()
    token = options.token_file.read_text().strip() if _there(options.token_file) else None
    # Its own prompt each time, or a page that is stored already would say nothing of encoders.
    seed = int.from_bytes(torch.randint(256, (4,), dtype=torch.uint8).numpy().tobytes(), "little")
    generator = torch.Generator().manual_seed(seed)
    spec = _spec()
    tokens = torch.randint(1 << 16, (PAGES * spec.page_tokens,), generator=generator).tolist()
    groups = [spec.group_shape(group) for group in range(spec.groups)]
    made = [[torch.randn(g, generator=generator).half() for g in groups] for _ in range(PAGES)]
    loaded = [[torch.empty_like(group) for group in page] for page in made]
    timeouts = Timeouts(match=30.0)
    with Client(
        offload=options.offload,
        reload=options.reload,
        token=token,
        tls=_tls(options.tls),
        timeouts=timeouts,
    ) as client:
        report = client.offload(spec, tokens, lambda page, group: made[page][group])
        sys.stdout.write(f"offloaded {report}\n")
        found = client.load(spec, tokens, lambda _: lambda page, group: loaded[page][group])
    sys.stdout.write(f"loaded pages={found.pages} reason={found.reason}\n")
    same = all(
        torch.equal(a, b)
        for one, other in zip(made, loaded, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    if found.pages != PAGES or not same:
        sys.stdout.write("what came back is not what was sent\n")
        return 1
    sys.stdout.write("ok\n")
    return 0


def _spec() -> CacheSpec:
    return make_spec(
        weights=b"smoke test".ljust(32, b"."),
        geometry=Geometry(layers=4, kv_heads=2, head_dim=64, dtype="float16"),
        codec="raw",
        page_tokens=16,
    )


def _there(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _tls(folder: Path | None) -> Tls | None:
    if folder is None or not (folder / "ca.crt").is_file():
        return None
    return Tls(ca=folder / "ca.crt", certificate=folder / "tls.crt", key=folder / "tls.key")


if __name__ == "__main__":
    sys.exit(main())
