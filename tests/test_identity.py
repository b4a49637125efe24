"""What a hash of code and values covers, in both directions."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustlib.core import identity
from robustlib.core.identity import (
    Registry,
    UnidentifiedError,
    digest_of_files,
    digest_of_path,
    fingerprint,
)

SOURCE = '''
"""A module."""
import numpy as np
import torch
from robustlib.core.identity import Registry

FACTOR = 2.0
TABLE = {"a": (1, 2)}
KNOWN = Registry(a=lambda x: x, b=lambda x: 2 * x)

def helper(x):
    """Doubles."""
    return x * FACTOR

def outer(x, *, scale=3):
    """Text."""
    def inner(y):
        """More text."""
        return y + 1
    return inner(helper(x)) * scale + TABLE["a"][0]

def recursive(n):
    return n and recursive(n - 1) + outer(n)

def late(x):
    from robustlib.analysis import metrics
    return metrics.mce(x)

def choose(name):
    return KNOWN[name]

class Base:
    """A class."""
    bias = 1
    def shift(self, x):
        """Adds."""
        return x + self.bias

class Recipe(Base):
    @staticmethod
    def square(x):
        return x * x
    @property
    def twice(self):
        return 2 * self.bias
    def loss(self, x):
        return self.shift(torch.relu(self.square(x)))
'''


def module(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "here", "exec"), names)
    return names


def of(source: str, name: str, **options: bool) -> str:
    return fingerprint(module(source)[name], **options)


def changed(old: str, new: str, name: str, **options: bool) -> bool:
    assert old in SOURCE
    return of(SOURCE, name, **options) != of(SOURCE.replace(old, new), name, **options)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Text."""', '"""Other text, much longer."""'),
        ('    """Text."""\n', ""),
        ('"""More text."""', '"""None."""'),
        ("def outer", "# a comment\n\n\ndef outer"),
        ("inner(helper(x)) * scale", "(inner( helper(x) )  *  scale)"),
        ("def choose", "UNUSED = 5\ndef unused(): return UNUSED\ndef choose"),
        ("b=lambda x: 2 * x", "b=lambda x: 3 * x, c=lambda x: x"),
        ("return 2 * self.bias", "return 3 * self.bias"),
    ],
)
def test_what_has_no_effect_does_not_count(old: str, new: str) -> None:
    assert not changed(old, new, "outer")
    assert not changed(old, new, "recursive")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return y + 1", "return y - 1"),
        ("return y + 1", "return y + 2"),
        ("scale=3", "scale=4"),
        ("FACTOR = 2.0", "FACTOR = 2.5"),
        ("FACTOR = 2.0", "FACTOR = 2"),
        ("(1, 2)", "(1, 3)"),
        ("return x * FACTOR", "return FACTOR * x"),
    ],
)
def test_what_has_an_effect_counts_at_any_depth(old: str, new: str) -> None:
    assert changed(old, new, "outer")
    assert changed(old, new, "recursive")
    assert not changed(old, new, "Recipe")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return x * x", "return x * x * x"),
        ("torch.relu", "torch.tanh"),
        ("bias = 1", "bias = 2"),
        ("return x + self.bias", "return x - self.bias"),
        ("return 2 * self.bias", "return 3 * self.bias"),
        ("class Recipe(Base)", "class Recipe(Base, np.generic)"),
    ],
)
def test_a_class_counts_with_its_members_and_bases(old: str, new: str) -> None:
    assert changed(old, new, "Recipe")


@pytest.mark.parametrize("text", ['"""A class."""', '"""Adds."""'])
def test_docstrings_of_classes_do_not_count(text: str) -> None:
    assert not changed(text, '"""Another."""', "Recipe")


def test_entries_of_a_registry_count_only_if_named_or_asked_for() -> None:
    other = ("b=lambda x: 2 * x", "b=lambda x: 3 * x")
    assert not changed(*other, "choose")
    assert changed(*other, "choose", registries=True)
    first, second = (module(text)["KNOWN"]["b"] for text in (SOURCE, SOURCE.replace(*other)))
    assert fingerprint(first) != fingerprint(second)


def test_imports_inside_functions_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustlib.analysis import metrics

    before = of(SOURCE, "late")
    monkeypatch.setattr(metrics, "mce", lambda errors: errors)
    assert of(SOURCE, "late") != before


def test_versions_of_packages_in_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def versions(**wanted: str) -> list[str]:
        monkeypatch.setattr(identity, "_version", lambda name: wanted.get(name, "1"))
        return [of(SOURCE, name) for name in ("Recipe", "outer")]

    recipe, outer = versions()
    assert versions(torch="2") != [recipe, outer]
    assert versions(torch="2")[1] == outer, "it doesn't use torch"
    assert versions(foolbox="2") == [recipe, outer]


def test_a_version_has_no_build() -> None:
    assert identity._version("torch") == torch.__version__.partition("+")[0]


def test_code_edited_after_import_is_not_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own_losses.py"
    file.write_text("def loss(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    imported = importlib.import_module("own_losses")
    before = fingerprint(imported.loss)
    file.write_text("def loss(x):\n    return x + 2 * x\n")
    os.utime(file, (0, 0))
    assert fingerprint(imported.loss) == before
    importlib.reload(imported)
    assert fingerprint(imported.loss) != before
    monkeypatch.delitem(sys.modules, "own_losses")


def test_wrappers_and_closures() -> None:
    def make(number: float) -> Any:
        def inner(x: float) -> float:
            return x + number

        return inner

    assert fingerprint(make(1.0)) == fingerprint(make(1.0))
    assert fingerprint(make(1.0)) != fingerprint(make(2.0))
    for wrap in (functools.cache, torch.no_grad(), lambda f: functools.partial(f, x=1.0)):
        assert fingerprint(wrap(make(1.0))) == fingerprint(wrap(make(1.0)))
        assert fingerprint(wrap(make(1.0))) != fingerprint(wrap(make(2.0)))
    assert fingerprint(functools.partial(make(1.0), x=1)) != fingerprint(
        functools.partial(make(1.0), x=2)
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, 1.0),
        (True, 1),
        ("a", b"a"),
        ((1, 2), [1, 2]),
        ([[1], 2], [[1, 2]]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (np.zeros(2), np.ones(2)),
        (np.array(["a", 1], dtype=object), np.array(["a", 2], dtype=object)),
        (torch.float32, torch.float16),
        (Path("a"), "a"),
        (None, "None"),
    ],
)
def test_values_are_told_apart(first: object, second: object) -> None:
    assert fingerprint(first) == fingerprint(first)
    assert fingerprint(first) != fingerprint(second)


def test_sets_have_no_order_and_cycles_an_end() -> None:
    assert fingerprint({"a", "b", "c"}) == fingerprint({"c", "b", "a"})
    ring: list[Any] = [1]
    ring.append(ring)
    assert fingerprint(ring) == fingerprint(ring)


def test_the_same_in_every_process() -> None:
    code = (
        "import torch; from torch import nn; from robustlib import attacks, corruptions;"
        "from robustlib.core.identity import fingerprint; from robustlib.recipes import MTLAT;"
        "torch.manual_seed(0); net = nn.Sequential(nn.Linear(3, 2), nn.ReLU());"
        "print(fingerprint(net, MTLAT, attacks.run, attacks.info('strong'), {'x', 'y', 'z'}),"
        "corruptions.code_of(['fog', 'jpeg_compression']))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.scale = 2.0
        self.steps: list[Any] = [torch.tanh]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x)) * self.scale


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_a_network_is_what_determines_its_outputs() -> None:
    same, before = net(), fingerprint(net())
    same.eval().requires_grad_(False)
    same.to(memory_format=torch.channels_last)
    same.linear.weight.grad = torch.ones(2, 3)
    assert fingerprint(same) == before

    def weights(model: Net) -> None:
        model.linear.weight.data[0, 0] += 1e-6

    def buffer(model: Net) -> None:
        model.norm.running_mean += 1

    def setting(model: Net) -> None:
        model.scale = 3.0

    def inner_setting(model: Net) -> None:
        model.norm.eps = 1e-3

    def step(model: Net) -> None:
        model.steps.append(torch.relu)

    def child(model: Net) -> None:
        model.extra = nn.Identity()

    def hook(model: Net) -> None:
        model.linear.register_forward_hook(lambda m, i, o: o + 1)

    def function(model: Net) -> None:
        model.steps[0] = lambda x: x

    def method(model: Net) -> None:
        model.forward = lambda x: x  # type: ignore[method-assign]

    changes = (weights, buffer, setting, inner_setting, step, child, hook, function, method)
    found = []
    for change in changes:
        model = net()
        change(model)
        found.append(fingerprint(model))
    assert len({before, *found}) == len(changes) + 1


def test_the_code_of_a_network_counts() -> None:
    other = type("Net", (Net,), {"forward": lambda self, x: self.linear(x), "__module__": __name__})
    torch.manual_seed(0)
    assert fingerprint(other()) != fingerprint(net())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_script_counts_with_constants_and_code(tmp_path: Path) -> None:
    def traced(function: Any) -> Any:
        script = torch.jit.trace(function, torch.rand(2, 3))
        torch.jit.save(script, tmp_path / "net.pt")
        return torch.jit.load(tmp_path / "net.pt")

    assert fingerprint(traced(net().eval())) == fingerprint(traced(net().eval()))
    model = net().eval()
    model.scale = 2.5  # a constant of the graph
    assert fingerprint(traced(model)) != fingerprint(traced(net().eval()))


def test_hidden_state_is_refused_in_a_network() -> None:
    model = net()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UnidentifiedError, match="lock"):
        fingerprint(model)


def test_a_registry_is_a_dictionary() -> None:
    assert dict(Registry(a=1)) == {"a": 1}


def test_files_count_by_name_size_and_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (5, 5))
    before = digest_of_path(tmp_path)
    assert before == digest_of_files(tmp_path, ["a", "b"])
    assert digest_of_path(tmp_path / "a") == digest_of_files(tmp_path, ["a"]) != before
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert digest_of_path(moved) == before
    os.utime(moved / "a", (6, 6))
    assert digest_of_path(moved) != before


def test_hashing_an_object_leaves_no_mark_that_counts() -> None:
    made = module(SOURCE)["Recipe"]()
    assert fingerprint(made) == fingerprint(made) == fingerprint(module(SOURCE)["Recipe"]())
    made.bias = 3
    assert fingerprint(made) != fingerprint(module(SOURCE)["Recipe"]())


def test_names_of_no_module_are_no_obstacle() -> None:
    Pair = namedtuple("Pair", ["first", "second"])

    def unpack(pair: Any) -> Any:
        return Pair(*pair).first

    assert fingerprint(unpack) == fingerprint(unpack)
    for name in ("", ".", "no such module", "a/b"):
        assert not identity._is_installed(name)
