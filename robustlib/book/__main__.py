"""`python -m robustlib.book`: build the book, and record the notebooks that it is made of.

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
    parser.add_argument(
        "--record",
        metavar="RUN",
        help=f"first copy this finished run to reports/record ({', '.join(record.RUNS)})",
    )
    parser.add_argument(
        "--text",
        action="store_true",
        help="first bring text that was edited in notebooks/ into reports/record",
    )
    args = parser.parse_args(arguments)
    try:
        written = record.record(args.record) if args.record else []
        written += record.take_over_text() if args.text else []
    except ValueError as error:
        print(f"python -m robustlib.book: {error}", file=sys.stderr)
        return 2
    for file in written:
        print(f"recorded: {os.path.relpath(file)}")
    print(f"book: {os.path.relpath(site.build())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
