"""One interface for everything that changes an image: corruptions and attacks alike.

An attack is a perturbation that needs the model. So adversarial and common perturbations enter
the same tables and the same overlapping score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from robustlib import attacks, corruptions
from robustlib.core.checks import (
    as_flag,
    as_number,
    as_whole,
    check_name,
    check_options,
    check_severity,
    settle,
)
from robustlib.core.identity import digest_of_path, fingerprint


class Perturbation(Protocol):
    """A change of images that keeps their classes.

    Attributes:
        name: of the corruption or attack.
        label: what tables and plots show, by default the name. Rows of one label are averaged
            over severities and training seeds, so what differs otherwise needs labels of its own.
        family: "clean", a family of corruptions, "stored" (images from files whose corruption
            is not known), or "adversarial".
        severity: 1 to 5, or 0 where severities don't apply.
        needs_model: whether the result depends on the model.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def severity(self) -> int: ...  # noqa: D102
    @property
    def needs_model(self) -> bool: ...  # noqa: D102

    def key(self) -> dict[str, Any]:
        """What determines the result besides model, images, labels, ids and seed, for JSON.

        One without this method counts by its own code and attributes.
        """
        ...

    def apply(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> Tensor:
        """Perturbed copies of `images`, float32 (N, 3, H, W) in [0, 1]."""
        ...


class Options(Mapping[str, Any]):
    """Named options that can't be changed, and so can be part of a key."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(sorted(values.items()))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._values.items())

    def for_key(self) -> dict[str, Any]:
        """The options for JSON; a file or folder stands for its content, wherever it lies."""
        return {
            name: digest_of_path(Path(value)) if isinstance(value, Path) else value
            for name, value in self._values.items()
        }


@dataclass(frozen=True)
class Clean:
    """The identity."""

    name: str = "clean"
    label: str = "clean"
    family: str = "clean"
    severity: int = 0
    needs_model: bool = False

    def key(self) -> dict[str, Any]:
        """Nothing."""
        return {"perturbation": "clean"}

    def apply(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> Tensor:
        """`images` themselves."""
        return images


@dataclass(frozen=True, init=False)
class Corruption:
    """A common perturbation from `robustlib.corruptions`.

    Attributes:
        name: one of `robustlib.corruptions.names()`.
        severity: 1 to 5.
        options: those of the corruption, `robustlib.corruptions.info(name).options`, given as
            keywords, for example `Corruption("frost", 3, photographs="folder")`.
        label: what tables show.
    """

    name: str
    severity: int
    options: Options
    label: str

    def __init__(self, name: str, severity: int, *, label: str = "", **options: Any) -> None:
        check_name(name, corruptions.names(), "corruption")
        known = corruptions.info(name).options
        checked = check_options(options, known, "corruption", name)
        settle(self, name=name, severity=check_severity(severity), label=label or name)
        settle(self, options=Options(checked))

    @property
    def family(self) -> str:
        """The corruption's family, such as "noise"."""
        return corruptions.info(self.name).family

    @property
    def needs_model(self) -> bool:
        """False."""
        return False

    def key(self) -> dict[str, Any]:
        """Name, severity, options, and the code that makes the pixels."""
        return {
            "perturbation": self.name,
            "severity": self.severity,
            "options": self.options.for_key(),
            "code": corruptions.code_of([self.name]),
        }

    def apply(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> Tensor:
        """`robustlib.corruptions.corrupt` of the images."""
        return corruptions.corrupt(images, self.name, self.severity, seed, ids, **self.options)


@dataclass(frozen=True, init=False)
class Attack:
    """An adversarial perturbation from `robustlib.attacks`.

    Attributes:
        name: one of `robustlib.attacks.names()`.
        eps: radius in the attack's norm, in [0, 1] pixel units; None for a minimal attack whose
            perturbations count whatever their size.
        options: those of the attack, `robustlib.attacks.info(name).options`, given as keywords,
            for example `Attack("pgd", 2 / 255, steps=20, restarts=3)`.
        label: what tables show.
    """

    name: str
    eps: float | None
    options: Options
    label: str

    def __init__(
        self, name: str, eps: float | str | None = None, *, label: str = "", **options: Any
    ) -> None:
        known = attacks.info(name)
        # The largest L2 radius depends on the images, and is checked with them.
        radius = known.check_radius(eps, 0.5 if known.norm == "Linf" else math.inf)
        settle(self, name=name, eps=None if eps is None else radius, label=label or name)
        settle(self, options=Options(known.check_options(options)))

    @property
    def family(self) -> str:
        """ "adversarial"."""
        return "adversarial"

    @property
    def severity(self) -> int:
        """0: attacks have a radius instead."""
        return 0

    @property
    def needs_model(self) -> bool:
        """True."""
        return True

    @property
    def norm(self) -> str:
        """What the radius is measured in, "Linf" or "L2"."""
        return attacks.info(self.name).norm

    def key(self) -> dict[str, Any]:
        """Name, radius, options, and the code of the attack."""
        return {
            "perturbation": self.name,
            "eps": self.eps,
            "options": self.options.for_key(),
            "code": fingerprint(attacks.run, attacks.info(self.name)),
        }

    def run(
        self,
        images: Tensor,
        labels: Tensor,
        ids: Tensor,
        model: nn.Module | None,
        seed: int,
        *,
        batch_size: int = attacks.BATCH_SIZE,
    ) -> attacks.AttackResult:
        """`robustlib.attacks.run` on the images, `batch_size` at a time, which changes no result.

        Raises:
            ValueError: no model was given.
        """
        if model is None:
            raise ValueError(f"the attack {self.name!r} needs the model that it attacks.")
        return attacks.run(
            model,
            images,
            labels,
            self.name,
            eps=self.eps,
            seed=seed,
            ids=ids,
            batch_size=batch_size,
            **self.options,
        )

    def apply(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> Tensor:
        """The adversarial images of `run`."""
        return self.run(images, labels, ids, model, seed).adversarial


def corruption_grid(
    names: Iterable[str],
    severities: Iterable[int] | Mapping[str, Iterable[int]],
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Corruption]:
    """Every named corruption at every severity, or at its own ones where they are given by name.

    options: by corruption, where some are wanted. Raises `ValueError` for options or severities of
    a corruption that isn't named, and for a named one without severities.
    """
    names, options = list(names), options or {}
    if not isinstance(severities, Mapping):
        severities = dict.fromkeys(names, tuple(severities))
    for name in names:
        check_name(name, severities, "corruption with severities; given are")
    for name in (*severities, *options):
        check_name(name, names, "corruption with options or severities; named are")
    return [
        Corruption(name, severity, **options.get(name, {}))
        for name in names
        for severity in severities[name]
    ]


def split_option(entry: str) -> tuple[str, str, str]:
    """Name, option and value, as text, of an entry "name.option=value" such as "cw.steps=300".

    Raises `ValueError` for another form or a name without options, `UnknownNameError` for an
    unknown corruption, attack or option.
    """
    left, _, text = (part.strip() for part in entry.partition("="))
    name, _, option = left.partition(".")
    if not (name and option and text):
        raise ValueError(
            f"an option must have the form name.option=value, such as cw.steps=300, got {entry!r}."
        )
    known = options_of(name)
    if not known:
        raise ValueError(f"{name!r} takes no options, got {option!r}.")
    return name, check_name(option, known, f"option of {name!r}"), text


def options_of(name: str) -> dict[str, Any]:
    """The options of a corruption or attack, with their defaults.

    Raises `UnknownNameError` for another name.
    """
    check_name(name, [*corruptions.names(), *attacks.names()], "corruption or attack")
    known = name in corruptions.names()
    return corruptions.info(name).options if known else attacks.info(name).options


def parse_options(
    entries: Iterable[str], folders: Sequence[Path] = (Path(),)
) -> dict[str, dict[str, Any]]:
    """Options by corruption or attack, from entries such as "cw.steps=300".

    Each value gets the type of the option's default; where that is None, it names a file or
    folder, looked for in each of `folders`.

    Raises `ValueError` for an entry of another form, or given twice, for an unknown name or
    option, and for a value that isn't allowed or names nothing.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name, option, text = split_option(entry)
        chosen = found.setdefault(name, {})
        if option in chosen:
            raise ValueError(f"the option {name}.{option} is given twice.")
        chosen[option] = _from_text(f"{name}.{option}", text, options_of(name)[option], folders)
    for name, chosen in found.items():
        kind = "corruption" if name in corruptions.names() else "attack"
        check_options(chosen, options_of(name), kind, name)
    return found


def _from_text(what: str, text: str, default: Any, folders: Sequence[Path]) -> Any:
    if default is None:
        for folder in folders:
            path = folder / Path(text).expanduser()
            if path.exists():
                return path.resolve()
        raise ValueError(f"{what}: there is no file or folder {text!r}.")
    try:
        if isinstance(default, bool):
            return as_flag(text)
        number = as_number(text)
        return as_whole(number) if isinstance(default, int) else number
    except (ValueError, ZeroDivisionError):
        kinds = {bool: "true or false", int: "a whole number"}
        expected = kinds.get(type(default), "a number")
        raise ValueError(f"{what} must be {expected}, got {text!r}.") from None
