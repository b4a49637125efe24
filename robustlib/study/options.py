"""Options of corruptions and attacks, as a study sets them: "cw.steps=300"."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustlib.core import paths
from robustlib.perturbations import options_of, parse_options, split_option


class Options(Mapping[str, Mapping[str, Any]]):
    """Options by corruption or attack: `{"cw": {"steps": 300}}`. They can't be changed.

    Args:
        entries: each "name.option=value". A file or folder may be given as seen from the
            project.

    Raises:
        ValueError: an entry of another form, or twice; a name, option or value that isn't allowed;
            a file or folder that doesn't exist. Unknown names come with the nearest one.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._values = parse_options(entries, (Path(), paths.project_root()))

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return dict(self._values[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Options({self})"

    def __str__(self) -> str:
        """The entries; of a file or folder only its name, for records that others read."""
        return ", ".join(
            f"{name}.{option}={value.name if isinstance(value, Path) else value}"
            for name, chosen in self._values.items()
            for option, value in chosen.items()
        )

    def of(self, name: str, **defaults: Any) -> dict[str, Any]:
        """The options of a corruption or attack; `defaults` stand where none was given."""
        return defaults | self._values.get(name, {})

    def among(self, names: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """The part for `names`, as `robustlib.perturbations.corruption_grid` takes it."""
        return {name: self[name] for name in names if name in self}

    def say_unused(self, names: Iterable[str]) -> None:
        """Print which options belong to none of `names`, the corruptions and attacks in use."""
        unused = sorted(set(self) - set(names))
        if unused:
            print(f"Without effect in this notebook: the options of {', '.join(unused)}.")


def seen_from_project(entries: Sequence[str]) -> list[str]:
    """The entries, those with a relative path as it is seen from the project.

    Raises `ValueError` for an entry of another form, or an unknown name or option.
    """
    result = []
    for name, option, text in map(split_option, entries):
        given = Path(text)
        if options_of(name)[option] is None and not given.is_absolute() and given.exists():
            text = os.path.relpath(given, paths.project_root())
        result.append(f"{name}.{option}={text}")
    return result
