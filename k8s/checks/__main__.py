"""Renders everything, and says what is wrong with it: exit code 1 where there is a problem."""

from __future__ import annotations

import sys
import time

from k8s.checks import containerfile, images
from k8s.checks.all_checks import CHECKS, problems
from k8s.checks.rendering import everything


def main() -> int:
    """Each problem once, with the first rendering that has it."""
    started = time.monotonic()
    objects = 0
    renderings = everything()
    of_images = (*images.check(), *containerfile.check(renderings))
    seen = {str(problem): "images" for problem in of_images}
    for rendering in renderings:
        objects += len(rendering.objects)
        for problem in problems(rendering):
            seen.setdefault(str(problem), rendering.name)
    for told, where in seen.items():
        sys.stdout.write(f"{where}: {told}\n")
    sys.stdout.write(
        f"{len(renderings)} renderings, {objects} objects, {len(CHECKS)} checks, "
        f"{len(seen)} problems, {time.monotonic() - started:.1f} s\n"
    )
    return 1 if seen else 0


if __name__ == "__main__":
    sys.exit(main())
