"""The command `robustlib`: `robustlib card ...`, `robustlib corrupt ...` and so on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from robustlib.core.checks import check_name


def _study(arguments: Sequence[str], prog: str) -> int:
    from robustlib.study import main

    return main(arguments, prog=prog)


def _corrupt(arguments: Sequence[str], prog: str) -> int:
    from robustlib.exchange.command import main

    return main(arguments, prog=prog)


def _card(arguments: Sequence[str], prog: str) -> int:
    from robustlib.card.command import main

    return main(arguments, prog=prog)


_COMMANDS = {
    "card": (_card, "make a report card of a classifier on your images"),
    "study": (_study, "run the notebooks in order and make a report"),
    "corrupt": (_corrupt, "write corrupted copies of a folder of images"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 for bad input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0].startswith("-"):
        parser = argparse.ArgumentParser(
            prog="robustlib",
            usage="robustlib COMMAND ...",
            description="How robust is an image classifier, and to what?",
            epilog="commands:\n"
            + "".join(f"  {name:<10}{text}\n" for name, (_, text) in _COMMANDS.items())
            + "\nrobustlib COMMAND --help tells more of a command.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        version = f"robustlib {metadata.version('robustlib')}"
        parser.add_argument("--version", action="version", version=version)
        parser.parse_args(given)
        parser.print_help()
        return 0
    try:
        run, _ = _COMMANDS[check_name(given[0], _COMMANDS, "command")]
    except ValueError as error:
        print(f"robustlib: {error}", file=sys.stderr)
        return 2
    return run(given[1:], f"robustlib {given[0]}")
