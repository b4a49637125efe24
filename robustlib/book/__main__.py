"""`python -m robustlib.book`: build the book, or record the notebooks that it is made of.

Exit codes: 0, or 2 for bad input.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from robustlib.book import record, site


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m robustlib.book",
        description="Build the book from reports/record, results and the library: reports/book.",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--record",
        metavar="RUN",
        help=f"copy this finished run to reports/record: {' or '.join(record.RUNS)}",
    )
    instead.add_argument(
        "--text",
        action="store_true",
        help="bring text that was edited in notebooks/ into reports/record",
    )
    args = parser.parse_args(arguments)
    try:
        if args.record or args.text:
            written = record.record(args.record) if args.record else record.take_over_text()
            print(f"recorded: {', '.join(map(os.path.relpath, written)) or 'nothing to do'}")
        else:
            print(f"book: {os.path.relpath(site.build())}")
    except ValueError as error:
        print(f"python -m robustlib.book: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
