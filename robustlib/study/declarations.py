"""What a notebook declares in its parameters cell: read from its file, or from what has run."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

KEPT = "_parameters"
"""The name under which a notebook's namespace keeps the values that were read."""

_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


@dataclasses.dataclass(frozen=True)
class Declared:
    """A parameter as a notebook declares it: its annotation, default value and comment."""

    type: str
    default: Any
    help: str


def declared(notebook: str | Path) -> dict[str, Declared]:
    """The parameters that a notebook declares in its cell tagged `parameters`, in order.

    Raises `ValueError` if the notebook can't be read, has no such cell or several, or if anything
    stands in it but lines of the form `n_train: int = 10_000  # comment`.
    """
    path = Path(notebook)
    try:
        tagged = [
            "".join(cell["source"])
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code" and "parameters" in cell["metadata"].get("tags", [])
        ]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} can't be read as a notebook: {error}") from None
    except (AttributeError, KeyError, TypeError):
        raise ValueError(
            f"{path.name} can't be read as a notebook of format 4; open it in Jupyter, and save it."
        ) from None
    if len(tagged) != 1:
        raise ValueError(
            f"{path.name} must have one code cell tagged 'parameters', found {len(tagged)}."
        )
    return _declarations(tagged[0], path.name)


def _declarations(source: str, where: str) -> dict[str, Declared]:
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"{where}: the parameters cell is not Python: {error}.") from None
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, Declared] = {}
    for statement in statements:
        text = ast.unparse(statement)
        fault = f"{where}: the parameters cell holds {text!r}; "
        if not (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value is not None
        ):
            raise ValueError(f"{fault}only lines such as 'epochs: int = 8  # comment' may stand.")
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            raise ValueError(f"{fault}its value must be a literal.") from None
        comment = comments.get(statement.end_lineno or 0) or comments.get(statement.lineno)
        if not comment:
            raise ValueError(f"{fault}it needs a trailing comment that says what it is.")
        name = statement.target.id
        if name in found:
            raise ValueError(f"{fault}{name!r} is declared twice.")
        found[name] = Declared(ast.unparse(statement.annotation), default, comment)
    if list(found) == ["run"] and "\n" not in source.strip():
        raise ValueError(
            f"{where}: IPython takes a cell of the single line 'run: ...' for its command %run; "
            "put a comment line above it."
        )
    return found


def executed(namespace: Mapping[str, Any], known: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """What the code that has run in `namespace` declares, and what was injected beside it.

    Returns the annotations of the declared parameters by name, and the names that were assigned in
    their place. A kernel keeps the source of its cells: the parameters cell is the latest that
    holds declarations only, and injected is what plain assignments set right after it, or the
    latest cell that starts with papermill's "# Parameters". So what other cells assign doesn't
    matter, nor in which order they have run. Without cells (a script, `exec`) the annotations of
    the namespace declare, and injected is every plain value that entered it after the first of
    them.

    known: names of parameters; declarations of none of them count at the first reading only.
    """
    types: dict[str, str] = {}
    assigned: set[str] = set()
    own: set[str] = set()  # what other cells have assigned
    directly_after = False
    for source in namespace.get("In", ()):
        try:
            statements = ast.parse(source).body
        except SyntaxError:
            statements = []
        annotated = _annotations(statements)
        if annotated and (not types or not annotated.keys().isdisjoint(known)):
            types, assigned, directly_after = annotated, set(), True
        elif source.lstrip().startswith("# Parameters"):
            assigned = _assigned(statements, literal=False)
        elif directly_after and (more := _assigned(statements, literal=True)):
            assigned |= more - own
        elif statements:
            own |= _stored(statements)
            directly_after = False
    if types:
        return types, {name for name in assigned if name in namespace}
    types = {
        name: kind if isinstance(kind, str) else inspect.formatannotation(kind)
        for name, kind in namespace.get("__annotations__", {}).items()
        if name in known or KEPT not in namespace
    }
    names = list(namespace)
    start = min((names.index(name) for name in types if name in namespace), default=len(names))
    plain = {name for name in names[start:] if isinstance(namespace[name], _PLAIN)}
    return types, {name for name in plain if not name.startswith("_")}


def _annotations(statements: list[ast.stmt]) -> dict[str, str]:
    """The annotations, if the statements are nothing but declarations."""
    found = {}
    for statement in statements:
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            return {}
        found[statement.target.id] = ast.unparse(statement.annotation)
    return found


def _stored(statements: list[ast.stmt]) -> set[str]:
    nodes = ast.walk(ast.Module(statements, []))
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _assigned(statements: list[ast.stmt], *, literal: bool) -> set[str]:
    """The names assigned, if the statements are nothing but assignments (`literal`: of those)."""
    found = set()
    for statement in statements:
        if not isinstance(statement, ast.Assign):
            return set()
        if literal:
            try:
                ast.literal_eval(statement.value)
            except ValueError:
                return set()
        found |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return found
