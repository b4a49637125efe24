"""Corrupted copies of your own images: `python -m robustlib.exchange my/images my-images-c`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from robustlib.exchange import command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, see `robustlib.exchange.command.main`."""
    return command.main(arguments, prog="python -m robustlib.exchange")


if __name__ == "__main__":
    sys.exit(main())
