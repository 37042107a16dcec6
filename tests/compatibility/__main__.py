"""Runs tests beside other versions than the locked ones, and writes docs/compatibility.md.

python -m tests.compatibility                          every combination: hours, GBs of downloads
python -m tests.compatibility transformers redis-6.2   those of a subject, or one
python -m tests.compatibility --page                   the page again, nothing is run
python -m tests.compatibility --check                  exit 1 if the page is not of the outcomes
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys

from tests.compatibility import page
from tests.compatibility.combinations import COMBINATIONS, ROOT
from tests.compatibility.environments import HOME, NotInstalled, outcome_of


def main() -> int:
    """Exit code 0; 1 where a test failed, a set-up failed, or --check found a difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="subjects or names; all where none is given")
    parser.add_argument("--pin", action="append", default=[], metavar="NAME==VERSION")
    parser.add_argument("--page", action="store_true", help="write the page from the outcomes")
    parser.add_argument("--check", action="store_true", help="compare the page with the outcomes")
    options = parser.parse_args()
    outcomes = page.known()
    if options.check:
        if page.PAGE.is_file() and page.PAGE.read_text() == page.page(outcomes):
            return 0
        sys.stderr.write(
            f"{page.PAGE} is not that of {page.OUTCOMES.name}: run {__package__} --page\n"
        )
        return 1
    wanted = {name.lower() for name in options.names}
    known = {name for each in COMBINATIONS for name in (each.name, each.subject.lower())}
    if wanted - known:
        parser.error(f"{', '.join(sorted(wanted - known))}: not among {', '.join(sorted(known))}")
    failed = False
    for combination in () if options.page else COMBINATIONS:
        if wanted and not wanted & {combination.name, combination.subject.lower()}:
            continue
        sys.stderr.write(f"{combination.name}\n")
        try:
            outcome = outcome_of(combination, options.pin)
            outcomes[combination.name] = outcome.to_json()
            failed |= bool(outcome.failed)
        except NotInstalled as refusal:
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            outcomes[combination.name] = {"refused": str(refusal), "date": today}
            failed = True
        page.keep(outcomes)
        shutil.rmtree(ROOT / HOME / combination.name, ignore_errors=True)
    page.keep(outcomes)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
