"""`python -m lexico_services` is `lexico`."""

from lexico_services.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
