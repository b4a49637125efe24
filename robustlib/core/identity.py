"""What a result depends on, as a hash: code as it runs now, the values it reads, package versions.

A stored result may be used again if and only if nothing that determines it has changed. So the
hash of a function covers its instructions, constants and defaults, and whatever it refers to, in
turn: other functions and classes of this project or of the user, global values, closures. Of an
installed package it covers the version. Docstrings, comments and layout don't count, and neither
does what isn't referred to. Instructions are read from the function object, not from its file,
which may have been edited since it was imported.
"""

from __future__ import annotations

import builtins
import dis
import functools
import hashlib
import importlib.util
import io
import os
import pickletools
import re
import sys
import sysconfig
import types
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Value = TypeVar("Value")


class Registry(dict[str, Value]):
    """Named entries of which a result uses some: a new one changes no hash.

    Whoever hashes code that looks names up here also hashes the entries that it will use.
    """


class UnidentifiedError(ValueError):
    """An object whose state can't be read, so that nothing could tell whether it changed."""


def fingerprint(*roots: object, registries: bool = False) -> str:
    """A hash (32 hexadecimal digits) of code and values, and of all that they refer to.

    Args:
        roots: functions, classes, modules of a network, tensors, plain values, or objects made
            of these.
        registries: whether every entry counts of a `Registry` that the code refers to; if not,
            name the entries in use as roots.

    Raises:
        UnidentifiedError: an object among the roots or in their attributes has a hidden state.
    """
    walker = _Walker(registries)
    for root in roots:
        walker.add(root)
    return walker.digest()


_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), Path, range, slice)
_AS_SHOWN = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, np.dtype)
_NO_EFFECT = frozenset(
    {
        *("__doc__", "__module__", "__qualname__", "__dict__", "__weakref__", "__repr__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__"),
        "__slotnames__",  # noted by copyreg when it is first asked
        *("__dataclass_fields__", "__dataclass_params__", "__match_args__"),
        *("__abstractmethods__", "_abc_impl", "__subclasshook__", "__protocol_attrs__"),
        *("__non_callable_proto_members__", "_is_protocol", "_is_runtime_protocol"),
        "_repr_html_",
    }
)
_MANGLED = re.compile(rb"[./]?___torch_mangle_\d+")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class _Walker:
    """Feeds a hash with everything that can be reached, each object once."""

    def __init__(self, registries: bool) -> None:
        self.registries = registries
        self.hasher = hashlib.sha256(f"Python {sys.version_info[:2]}".encode())
        self.packages: dict[str, str] = {}
        self.seen: dict[int, tuple[int, object]] = {}  # the object, so that its id stays its own
        self.in_code = 0

    def digest(self) -> str:
        self.feed("packages", *(f"{name} {v}" for name, v in sorted(self.packages.items())))
        return self.hasher.hexdigest()[:32]

    def feed(self, *tokens: object) -> None:
        for token in tokens:
            data = token if isinstance(token, bytes) else str(token).encode(errors="surrogatepass")
            self.hasher.update(f"{len(data)}:".encode() + data)

    def add(self, value: object) -> None:
        if isinstance(value, _PLAIN + _AS_SHOWN):
            self.feed(type(value).__name__, repr(value))
            return
        if id(value) in self.seen:
            self.feed("again", self.seen[id(value)][0])
            return
        self.seen[id(value)] = (len(self.seen), value)
        self.feed(type(value).__name__)
        self._add_new(value)

    def _add_new(self, value: Any) -> None:
        if isinstance(value, Registry) and not self.registries:
            return
        if isinstance(value, Mapping):
            self.feed(len(value))
            for key, entry in value.items():
                self.add(key)
                self.add(entry)
        elif isinstance(value, (tuple, list)):
            self.feed(len(value))
            for entry in value:
                self.add(entry)
        elif isinstance(value, (set, frozenset)):
            self.feed(*sorted(fingerprint(entry, registries=self.registries) for entry in value))
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray):
            self.add((str(value.dtype), value.shape))
            self.hasher.update(value.tobytes() if value.dtype != object else b"")
            self.add(value.tolist() if value.dtype == object else None)
        elif isinstance(value, types.ModuleType):
            self._package(value.__name__)
            self.feed(value.__name__)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.add(value.__func__)
            self.add(value.__self__)
        elif isinstance(value, (classmethod, staticmethod, property, functools.cached_property)):
            for name in ("__func__", "fget", "fset", "func"):
                self.add(getattr(value, name, None))
        elif isinstance(value, functools.partial):
            self.add((value.func, value.args, value.keywords))
        elif hasattr(value, "__wrapped__"):  # functools.cache and the like
            self.add(value.__wrapped__)
        elif isinstance(value, torch.jit.ScriptModule):
            self._script(value)
        elif isinstance(value, nn.Module):
            self._network(value)
        elif callable(value) and hasattr(value, "__qualname__"):  # built in
            self._package(getattr(value, "__module__", None) or "")
            self.feed(value.__qualname__)
        else:
            self._object(value)

    def _tensor(self, value: Tensor) -> None:
        self.add((str(value.dtype), tuple(value.shape)))
        flat = value.detach().cpu().contiguous().reshape(-1)
        self.hasher.update(flat.view(torch.uint8).numpy().data)

    def _network(self, module: nn.Module) -> None:
        """Type, weights, buffers and settings; not the mode, nor a graph's address."""
        self.add(type(module))
        state = dict(vars(module))
        for name in ("training", "_is_full_backward_hook", "_modules"):
            state.pop(name, None)
        for name in [name for name in state if "hook" in name]:
            hooks = state.pop(name)
            if name in _HOOKS:
                self.add(list(hooks.values()))
        self.add(state)
        for name, child in module.named_children():
            self.feed(name)
            self.add(child)

    def _script(self, module: torch.jit.ScriptModule) -> None:
        """Code, constants, weights and attributes, without names that depend on the process."""
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
        with zipfile.ZipFile(buffer) as archive:
            parts = []
            for name in archive.namelist():
                content = archive.read(name)
                if name.endswith(".pkl"):  # what it would build, step by step; nothing is run
                    steps = pickletools.genops(content)
                    content = " ".join(f"{code.name} {value}" for code, value, _ in steps).encode()
                if name.endswith((".pkl", ".py")) or re.search(r"/(data|constants)/\d+$", name):
                    plain = _MANGLED.sub(b"", content)
                    parts.append((_MANGLED.sub(b"", name.encode()).partition(b"/")[2], plain))
        self.feed(*(part for pair in sorted(parts) for part in pair))

    def _object(self, value: Any) -> None:
        self.add(type(value))
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            if self.in_code:  # a lock or a logger that a function refers to: its type must do
                return
            raise UnidentifiedError(
                f"nothing can tell whether an object of type {type(value).__name__} has changed "
                f"({error}); leave it out."
            ) from error
        if isinstance(reduced, str):
            self.feed(reduced)
            return
        _, arguments, state, *items = (*reduced, None)[:5]
        self.add((arguments, state, *(list(i) if isinstance(i, Iterator) else i for i in items)))

    def _class(self, value: type) -> None:
        self.feed(value.__module__, value.__qualname__)
        if self._package(value.__module__):
            return
        self.add(value.__bases__)
        for name, member in vars(value).items():
            made = isinstance(member, types.FunctionType) and (
                member.__code__.co_filename == "<string>"  # by dataclasses, from the fields
            )
            if name not in _NO_EFFECT and not made:
                self.feed(name)
                self.in_code += 1
                self.add(member)
                self.in_code -= 1

    def _function(self, value: types.FunctionType) -> None:
        if self._package(value.__globals__.get("__name__", "")):
            self.feed(value.__qualname__)
            self.add(getattr(value, "__wrapped__", None))  # a decorator's, such as torch.no_grad
            return
        cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        self.in_code += 1
        self.add((value.__defaults__, value.__kwdefaults__))
        self._code(value.__code__, value.__globals__, cells)
        self.in_code -= 1

    def _code(
        self, code: types.CodeType, names: dict[str, Any], cells: Mapping[str, types.CellType]
    ) -> None:
        steps = _steps(code)
        self.feed(*(text for _, _, text in steps))
        for target in _referred_to(steps, names, cells):
            self.add(target)
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._code(inner, names, cells)

    def _package(self, module: str) -> bool:
        """Note the version if the module is of an installed package or of Python itself."""
        top = module.partition(".")[0]
        if not _is_installed(top):
            return False
        if top not in sys.stdlib_module_names:
            self.packages[top] = _version(top)
        return True


@functools.cache
def _steps(code: types.CodeType) -> tuple[tuple[str, Any, str], ...]:
    """Operation, argument, and both as text, for each instruction that has an effect."""
    found: list[tuple[str, Any, str]] = []
    for step in dis.get_instructions(code):
        if step.opname in ("RESUME", "NOP", "CACHE", "PRECALL", "EXTENDED_ARG"):
            continue
        if step.opname.startswith("STORE_") and step.argval == "__doc__":
            found.pop()
            continue
        argument = step.argval
        text = "code" if isinstance(argument, types.CodeType) else _text(argument)
        found.append((step.opname, argument, f"{step.opname} {text}"))
    return tuple(found)


def _text(constant: object) -> str:
    if isinstance(constant, frozenset):
        return f"frozenset({sorted(map(_text, constant))})"
    if isinstance(constant, tuple):
        return f"({', '.join(map(_text, constant))})"
    return f"{type(constant).__name__} {constant!r}"


_MISSING = object()


def _referred_to(
    steps: Iterable[tuple[str, Any, str]],
    names: Mapping[str, Any],
    cells: Mapping[str, types.CellType],
) -> Iterator[object]:
    """The objects that the instructions name: globals, cells, and attributes of modules."""
    current: Any = _MISSING
    local: dict[Any, Any] = {}  # modules imported inside the function
    imported: Any = _MISSING
    constants: list[Any] = [0, None]  # the last two: level and names of an import
    for operation, argument, _ in steps:
        found: Any = _MISSING
        if operation in ("LOAD_GLOBAL", "LOAD_NAME"):
            found = names.get(argument, getattr(builtins, argument, _MISSING))
        elif operation in ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_CLOSURE"):
            if argument in cells:
                try:
                    found = cells[argument].cell_contents
                except ValueError:  # empty as yet
                    found = _MISSING
        elif operation == "IMPORT_NAME":
            level, listed = constants
            relative = "." * level + argument
            whole = importlib.util.resolve_name(relative, names.get("__package__") or "")
            found = _module(whole if listed else whole.partition(".")[0])
        elif operation in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            if isinstance(current, types.ModuleType):
                found = getattr(current, argument, _MISSING)
                if _is_installed(current.__name__):
                    found = _MISSING  # the version of the module's package says what it is
        elif operation == "LOAD_FAST":
            found = local.get(argument, _MISSING)
        elif operation == "STORE_FAST":
            local[argument] = imported if imported is not _MISSING else current
            imported = _MISSING
            continue
        elif operation == "LOAD_CONST":
            constants = [constants[1], argument]
        if found is not _MISSING:
            yield found
        if operation == "IMPORT_FROM":
            imported = found  # and the module stays, for the next name
        else:
            current = found


def _module(name: str) -> types.ModuleType:
    """A module that a function imports; one that isn't loaded yet must count the same."""
    if name in sys.modules:
        return sys.modules[name]
    if _is_installed(name):
        return _stand_in(name)
    try:
        return importlib.import_module(name)
    except ImportError:
        return _stand_in(name)


_stand_in = functools.cache(types.ModuleType)  # loading a package can take seconds


@functools.cache
def _is_installed(module: str) -> bool:
    """Whether a module belongs to Python or to an installed package."""
    top = module.partition(".")[0]
    if top == "robustlib" or top == "__main__":
        return False
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return True
    if top in sys.modules:
        file = getattr(sys.modules[top], "__file__", None) or ""
    else:
        try:
            file = getattr(importlib.util.find_spec(top), "origin", None) or ""
        except (ImportError, ValueError):  # no module's name, as with what was made by exec
            return False
    roots = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return any(Path(file).is_relative_to(root) for root in roots)


@functools.cache
def _version(package: str) -> str:
    """Without what follows a "+", which names the build."""
    version = getattr(sys.modules.get(package), "__version__", None)
    if version is None:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "unknown"
    return str(version).partition("+")[0]


def digest_of_files(folder: Path, files: Iterable[str]) -> str:
    """A hash of names, sizes and times of modification, 16 hexadecimal digits.

    Not of the content, which would cost a pass over gigabytes. files: relative to `folder`.
    Raises `OSError` for one that isn't there.
    """
    hasher = hashlib.sha256()
    for file in files:
        stat = (folder / file).stat()
        hasher.update(os.fsencode(file) + f" {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return hasher.hexdigest()[:16]


def digest_of_path(path: Path) -> str:
    """`digest_of_files` of a file, or of all files directly in a folder."""
    if path.is_dir():
        return digest_of_files(path, sorted(p.name for p in path.iterdir() if p.is_file()))
    return digest_of_files(path.parent, [path.name])
