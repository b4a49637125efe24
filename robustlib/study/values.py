"""Values as papermill, YAML and a shell hand them over, made into the type that is meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from robustlib.core.checks import as_flag, as_number, as_whole


def coerce(name: str, value: object, kind: str) -> Any:
    """Return `value` as `kind`: "int", "float", "bool", "str", or a list of one: "list[int]".

    Accepts what papermill and YAML turn well-meant values into: 'false' for a bool, '1e-4' or
    '8/255' for a float, 3.0 for an int, a scalar or a comma-separated string for a list.

    Raises `ValueError` that names the parameter, what was given and what is expected.
    """
    element = re.fullmatch(r"list\[(\w+)\]", kind)
    try:
        if element is None:
            return _SCALARS[kind](value)
        return [_SCALARS[element[1]](entry) for entry in _entries(value)]
    except (ValueError, TypeError, ZeroDivisionError, yaml.YAMLError):
        expected = _EXPECTED[element[1] if element else kind]
        form = f"a list, each entry {expected}" if element else expected
        raise ValueError(f"parameter {name!r} must be {form}; got {value!r}.") from None


def _entries(value: object) -> list[object]:
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, str):
        return [value]
    if value.strip().startswith("["):
        return list(yaml.safe_load(value))
    return [entry.strip() for entry in value.split(",")] if value.strip() else []


def _int(value: object) -> int:
    return as_whole(as_number(value) if isinstance(value, str) else value)


def _str(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError
    return str(value)


_SCALARS: dict[str, Callable[[object], Any]] = {
    "int": _int,
    "float": as_number,
    "bool": as_flag,
    "str": _str,
}
_EXPECTED = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
}
