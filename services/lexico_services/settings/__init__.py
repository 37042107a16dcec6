"""Settings of the service, from options, environment and files.

`schema` names them, `values` reads one, `sources` brings them together, and `effective` has the
dataclasses that servers are built from.
"""

from lexico_services.settings.effective import Settings

__all__ = ["Settings"]
