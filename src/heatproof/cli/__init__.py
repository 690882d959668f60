"""The command line: a thin face that parses, calls and prints. A command imports only what it uses."""

import os
import sys

from heatproof.cli.app import app
from heatproof.cli.common import BAD_INPUT
from heatproof.errors import HeatproofError

__all__ = ["app", "main"]


def main() -> None:
    """The program `heatproof`."""
    # Read by OpenMP when torch is loaded. Threads that wait by spinning slow a small model down fifty times on a machine
    # that does anything else besides; threads that sleep cost an idle one little.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(prog_name="heatproof")
    except HeatproofError as error:
        sys.stderr.write(f"heatproof: {error}\n")
        raise SystemExit(BAD_INPUT) from None
