"""Checks of arguments, shared by every floor. Each raises before any work starts.

A check returns what the library goes on with: a NumPy integer, a whole float or a tensor without
dimensions comes back as an `int`, a list of labels as a tensor. So keep what it returns.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # importing torch takes seconds, which checks of names and numbers don't need
    from torch import Tensor, nn

SEVERITIES = (1, 2, 3, 4, 5)
_ROUNDING = 1e-5  # how far outside [0, 1] a pixel may lie and is clipped


class UnknownNameError(ValueError):
    """A name that is not in a registry. The message suggests the nearest one."""


# --- Names ---------------------------------------------------------------------------------------


def check_name(name: str, allowed: Iterable[str], kind: str) -> str:
    """Return `name` if it is one of `allowed`.

    `kind` says in the message what is being named, for example "corruption".
    Raises `UnknownNameError` with the nearest allowed name and the whole list.
    """
    allowed = list(allowed)
    if name in allowed:
        return name
    near = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownNameError(f"unknown {kind} {name!r}.{hint} Allowed: {', '.join(allowed)}.")


def check_names(names: Sequence[str], allowed: Iterable[str], kind: str) -> tuple[str, ...]:
    """Return `names` as a tuple: at least one, none twice, each one of `allowed`."""
    allowed = list(allowed)
    if isinstance(names, str):
        raise ValueError(f"give a list of names, [{names!r}], not the text {names!r}.")
    if isinstance(names, set | frozenset):
        raise ValueError("give a list of names, not a set, whose order differs from run to run.")
    check_nonempty(names, f"the list of names ({kind})")
    return tuple(check_name(name, allowed, kind) for name in names)


def check_nonempty(values: Sequence[object], what: str) -> None:
    """Raise `ValueError` if `values` is empty or repeats an entry."""
    if not len(values):
        raise ValueError(f"{what} is empty; name at least one.")
    if len(set(values)) != len(values):
        raise ValueError(f"{what} repeats an entry: {list(values)}.")


def keyword_options(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a registered function, with their defaults."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def check_options(
    given: Mapping[str, Any], defaults: Mapping[str, Any], kind: str, owner: str
) -> dict[str, Any]:
    """Return the options `given` to `owner`, each with the type of its default.

    defaults: the options that `owner` has. Where a default is a bool, an int (then 1 or more) or
    a float (0 or more), the value must be one; where it is None, a path or None; others come back
    as they are. `kind` says in the message what `owner` is, for example "attack". Raises
    `ValueError`, for an unknown option `UnknownNameError`.
    """
    checked = {}
    for name, value in given.items():
        if not defaults:
            raise ValueError(f"the {kind} {owner!r} takes no options, got {name!r}.")
        check_name(name, defaults, f"option of {owner!r}")
        default = defaults[name]
        if isinstance(default, bool):
            value = check_flag(value, name)
        elif isinstance(default, int):
            value = check_whole(value, name, low=1)
        elif isinstance(default, float):
            value = check_number(value, name, low=0)
        elif default is None and value is not None:  # an option that names a file or folder
            if not isinstance(value, str | Path):
                raise ValueError(f"{name} must be a path, str or Path, got {value!r}.")
            value = Path(value)
        checked[name] = value
    return checked


# --- Numbers -------------------------------------------------------------------------------------


def as_number(value: object) -> float:
    """A number as a finite `float`.

    Takes Python's and NumPy's numbers, tensors and arrays without dimensions, and texts such as
    "0.03", "1e-4" or "8/255". Raises `ValueError` for anything else, a bool included.
    """
    value = _plain(value)
    if isinstance(value, str):
        whole = "".join(value.split())
        value = float(Fraction(whole)) if "/" in whole else float(whole)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"not a number: {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"not finite: {value!r}")
    return float(value)


def as_whole(value: object) -> int:
    """A whole number as an `int`; 3.0 is 3. Otherwise as `as_number`, but for texts: refused."""
    value = _plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"not a whole number: {value!r}")


def as_flag(value: object) -> bool:
    """True or False; also for the texts "true", "yes", "1" and "false", "no", "0".

    Raises `ValueError` for anything else.
    """
    text = str(_plain(value)).strip().lower()
    if text in ("true", "yes", "1"):
        return True
    if text in ("false", "no", "0"):
        return False
    raise ValueError(f"not true or false: {value!r}")


def _plain(value: object) -> object:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


def check_number(
    value: object,
    what: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
    unit: str = "",
) -> float:
    """Return `value` as a finite `float` from `low` (excluded if `above`) to `high`.

    `what` names it in the message, `unit` says what it is measured in. See `as_number` for what
    is taken. Raises `ValueError`.
    """
    try:
        number = as_number(value)
        if (low < number if above else low <= number) and number <= high:
            return number
    except (ValueError, ZeroDivisionError):
        pass
    bounds = _bounds(low, high, above)
    raise ValueError(f"{what} must be a number{bounds}{unit and f' ({unit})'}, got {value!r}.")


def check_whole(value: object, what: str, *, low: float = -math.inf, high: float = math.inf) -> int:
    """Return `value` as an `int` from `low` to `high`; see `as_whole`. Raises `ValueError`."""
    try:
        number = as_whole(value)
        if low <= number <= high:
            return number
    except ValueError:
        pass
    raise ValueError(f"{what} must be an integer{_bounds(low, high)}, got {value!r}.")


def _bounds(low: float, high: float, above: bool = False) -> str:
    least = f"above {low:g}" if above else f"of at least {low:g}"
    if math.isinf(high):
        return "" if math.isinf(low) else f" {least}"
    if math.isinf(low):
        return f" of at most {high:g}"
    return f" {least}, at most {high:.6g}" if above else f" from {low:g} to {high:.6g}"


def settle(instance: object, **values: object) -> None:
    """Set attributes of a frozen dataclass, in its `__post_init__`, to what checks returned."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def check_flag(value: object, what: str) -> bool:
    """Return `value` if it is true or false, Python's or NumPy's; raise `ValueError` otherwise."""
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise ValueError(f"{what} must be True or False, got {value!r}.")
    return plain


def check_severity(severity: object) -> int:
    """Return `severity` as an `int` from 1 to 5; raise `ValueError` otherwise."""
    return check_whole(severity, "severity", low=1, high=5)


def check_seed(seed: object) -> int:
    """Return `seed` as an `int`; raise `ValueError` if it is no whole number."""
    return check_whole(seed, "seed")


# --- Images and what belongs to them --------------------------------------------------------------


def check_images(images: Tensor) -> Tensor:
    """Return `images` if it is an image batch: float32, (N, 3, H, W), RGB, in [0, 1].

    What rounding has carried out of [0, 1], up to 1e-5, is clipped, in a copy.
    Raises `ValueError` that says what was found and how to convert it.
    """
    import torch

    if not isinstance(images, torch.Tensor):
        raise ValueError(
            f"images must be a torch.Tensor, got {type(images).__name__}; "
            "convert a NumPy array with torch.from_numpy(array)."
        )
    if images.ndim != 4 or images.shape[1] != 3:
        hint = ""
        if images.ndim == 4 and images.shape[3] == 3:
            hint = " It looks like (N, H, W, 3): use images.permute(0, 3, 1, 2)."
        elif images.ndim == 3:
            hint = " For a single image use images.unsqueeze(0)."
        raise ValueError(f"images must have shape (N, 3, H, W), got {tuple(images.shape)}.{hint}")
    if images.dtype != torch.float32:
        hint = "images.float() / 255" if images.dtype == torch.uint8 else "images.float()"
        raise ValueError(f"images must be float32 in [0, 1], got {images.dtype}: use {hint}.")
    if images.numel() == 0:
        return images
    low, high = (value.item() for value in torch.aminmax(images.detach()))
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # false for NaN, too
        raise ValueError(
            f"images must lie in [0, 1] without NaN, found values from {low:.7g} to {high:.7g}; "
            "divide by 255 or undo the normalisation (models here normalise inside)."
        )
    return images.clamp(0, 1) if low < 0 or high > 1 else images


def check_labels(
    labels: object, n: int, classes: int | None = None, what: str = "labels"
) -> Tensor:
    """Return `labels` as int64 of shape (`n`,) in 0 .. `classes` - 1.

    Takes whole numbers in a tensor, an array or a list. classes: None if their number isn't known
    yet. Raises `ValueError`.
    """
    found = _whole_numbers(labels, n, what)
    if n and int(found.min()) < 0:
        raise ValueError(f"{what} must not be negative, found {int(found.min())}.")
    if n and classes is not None and int(found.max()) >= classes:
        raise ValueError(
            f"{what} must lie in 0 .. {classes - 1}, found {int(found.min())} to "
            f"{int(found.max())}."
        )
    return found


def check_ids(ids: object, n: int) -> Tensor:
    """Return `ids` as int64 of shape (`n`,), positions 0 .. n - 1 for None.

    Takes whole numbers in a tensor, an array or a list. Raises `ValueError`.
    """
    import torch

    return torch.arange(n, device="cpu") if ids is None else _whole_numbers(ids, n, "ids")


def _whole_numbers(values: Any, n: int, what: str) -> Tensor:
    import torch

    try:
        found = values if isinstance(values, torch.Tensor) else torch.as_tensor(np.array(values))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{what} must be int64 of shape ({n},), got a {type(values).__name__} of other things."
        ) from None
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if found.shape != (n,) or not (whole or n == 0):
        raise ValueError(
            f"{what} must be int64 of shape ({n},), one for each image, got {found.dtype} of "
            f"{tuple(found.shape)}."
        )
    return found.to(torch.int64)


# --- Models ---------------------------------------------------------------------------------------


def check_module(model: object) -> nn.Module:
    """Return `model` if it is a `torch.nn.Module`; raise `ValueError` otherwise."""
    from torch import nn

    if not isinstance(model, nn.Module):
        inner = isinstance(getattr(model, "model", None), nn.Module)
        hint = "; give its attribute .model" if inner else ""
        raise ValueError(f"the model must be a torch.nn.Module, got {type(model).__name__}{hint}.")
    return model


def check_logits(output: object, n: int, labels: Tensor | None = None) -> Tensor:
    """Return a model's output for `n` images if it is logits, floating (n, classes).

    labels: if given, int64 (n,); there must be a class for each of them.
    Raises `ValueError` that says what came instead and how to pick the logits.
    """
    from torch import Tensor

    if not isinstance(output, Tensor):
        raise ValueError(
            f"the model must map {n} images to logits, a tensor ({n}, classes), but it returns "
            f"{_described(output)}. Pick them: robustlib.models.wrap(model, name=..., "
            'output="logits"), or the key, position or attribute where they stand.'
        )
    if output.ndim != 2 or len(output) != n:
        raise ValueError(
            f"the model must map {n} images to logits ({n}, classes), but its output has shape "
            f"{tuple(output.shape)}."
        )
    if not output.is_floating_point():
        raise ValueError(
            f"the model must return logits, floating numbers, but its output is {output.dtype}: "
            "classes instead of logits?"
        )
    classes = output.shape[1]
    if classes < 2:
        raise ValueError(
            f"the model has {classes} output, but a classifier needs one for each of two or more "
            "classes; make two logits of a single one z by stacking (0, z)."
        )
    if labels is not None and n and int(labels.max()) >= classes:
        raise ValueError(
            f"the model has {classes} outputs, but the labels go up to {int(labels.max())}: it "
            "knows other classes than the images have."
        )
    return output


def _described(output: object) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with the keys {', '.join(map(str, output))}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
