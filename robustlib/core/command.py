"""What the commands share: warnings and bad input in a line each, and exit codes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from tqdm import tqdm


def exit_code(work: Callable[[], str], prog: str) -> int:
    """Do the work of a command, and print the sentence that it returns.

    prog: what messages call the command. Returns 0; 2 for bad input (`ValueError`), 1 if the
    machine failed, say for a full disk, and 130 if interrupted.
    """

    def show(message: Warning | str, *_where: object, **_more: object) -> None:
        tqdm.write(f"{prog}: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            sentence = work()
    except ValueError as error:
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or "not enough memory"
        print(f"{prog}: {reason}; put that right, and the same command goes on.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    print(sentence)
    return 0
