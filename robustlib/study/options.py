"""Options of corruptions and attacks, as a study sets them: "cw.steps=300"."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustlib import attacks, corruptions
from robustlib.core import paths
from robustlib.core.checks import check_name
from robustlib.perturbations import Attack, Corruption
from robustlib.study.values import coerce


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
        self._values: dict[str, dict[str, Any]] = {}
        for entry in entries:
            name, option, text = _parts(entry)
            chosen = self._values.setdefault(name, {})
            if option in chosen:
                raise ValueError(f"the option {name}.{option} is given twice.")
            chosen[option] = _value(name, option, text)
        for name, chosen in self._values.items():
            _check(name, chosen)

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
    for name, option, text in map(_parts, entries):
        given = Path(text)
        if _default(name, option) is None and not given.is_absolute() and given.exists():
            text = os.path.relpath(given, paths.project_root())
        result.append(f"{name}.{option}={text}")
    return result


def _parts(entry: str) -> tuple[str, str, str]:
    left, _, text = (part.strip() for part in entry.partition("="))
    name, _, option = left.partition(".")
    if not (name and option and text):
        raise ValueError(
            f"an option must have the form name.option=value, such as cw.steps=300, got {entry!r}."
        )
    check_name(name, [*corruptions.names(), *attacks.names()], "corruption or attack")
    known = _info(name).options
    if not known:
        raise ValueError(f"{name!r} takes no options, got {option!r}.")
    return name, check_name(option, known, f"option of {name!r}"), text


def _info(name: str) -> corruptions.CorruptionInfo | attacks.AttackInfo:
    return corruptions.info(name) if name in corruptions.names() else attacks.info(name)


def _default(name: str, option: str) -> Any:
    return _info(name).options[option]


def _value(name: str, option: str, text: str) -> Any:
    """`text` with the type of the option's default; where that is None, an existing path."""
    default = _default(name, option)
    if default is not None:
        if not isinstance(default, bool | int | float | str):
            raise ValueError(f"the option {name}.{option} can't be given as text.")
        return coerce(f"{name}.{option}", text, type(default).__name__)
    for found in (Path(text).expanduser(), paths.project_root() / text):
        if found.exists():
            return found.resolve()
    raise ValueError(f"{name}.{option}: there is no file or folder {text!r}.")


def _check(name: str, given: Mapping[str, Any]) -> None:
    """Raise `ValueError` if `Corruption` or `Attack` don't take these options."""
    if name in corruptions.names():
        Corruption(name, 1, **given)
    else:
        Attack(name, 0.1, **given)
