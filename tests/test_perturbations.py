"""Options, labels and keys of what changes an image."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robustlib import attacks, corruptions
from robustlib.analysis import accuracy_matrix
from robustlib.attacks import registry as attack_registry
from robustlib.core.checks import UnknownNameError
from robustlib.core.store import Store
from robustlib.corruptions import registry as corruption_registry
from robustlib.data import Dataset
from robustlib.evaluation import evaluate
from robustlib.exchange import Stored, export_cifar_c
from robustlib.models import build, wrap
from robustlib.perturbations import Attack, Clean, Corruption, Options, corruption_grid


def test_options_are_a_frozen_mapping() -> None:
    options = Attack("pgd", 0.1, steps=5, restarts=2.0).options
    assert dict(options) == {"restarts": 2, "steps": 5}
    assert str(options) == "restarts=2, steps=5"
    assert not hasattr(options, "__setitem__")
    assert options == Options({"steps": 5, "restarts": 2})
    assert hash(options) == hash(Options({"restarts": 2, "steps": 5}))
    assert len({Attack("pgd", 0.1, steps=5), Attack("pgd", 0.1, steps=np.int64(5))}) == 1
    with pytest.raises(FrozenInstanceError):
        Attack("pgd", 0.1).eps = 0.2  # type: ignore[misc]


@pytest.mark.parametrize("name", attacks.names())
def test_every_option_of_every_attack_can_be_set(name: str) -> None:
    known = attacks.info(name).options
    eps = 0.1
    assert dict(Attack(name, eps, **known).options) == dict(sorted(known.items()))
    for option in known:
        with pytest.raises(ValueError, match=option):
            Attack(name, eps, **{option: -1})
    with pytest.raises(ValueError, match=r"takes no options|unknown option"):
        Attack(name, eps, nonsense=1)


def test_every_option_of_every_corruption_can_be_set(tmp_path: Path) -> None:
    for name in corruptions.names():
        for option, default in corruptions.info(name).options.items():
            value = str(tmp_path) if default is None else not default
            found = Corruption(name, 3, **{option: value}).options[option]
            assert found == (tmp_path if default is None else value)
    with pytest.raises(UnknownNameError, match="Did you mean 'swap'"):
        Corruption("glass_blur", 3, swp=True)
    with pytest.raises(ValueError, match="'fog' takes no options"):
        Corruption("fog", 3, swap=True)


def test_options_change_the_images() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids, labels = torch.arange(2), torch.zeros(2, dtype=torch.int64)
    for swap in (False, True):
        direct = corruptions.corrupt(images, "glass_blur", 3, 5, ids, swap=swap)
        cell = Corruption("glass_blur", 3, swap=swap)
        assert torch.equal(cell.apply(images, labels, ids, None, 5), direct)
    assert Corruption("glass_blur", 3) != Corruption("glass_blur", 3, swap=True)


def test_a_grid_takes_options_by_name() -> None:
    grid = corruption_grid(["fog", "glass_blur"], [1, 5], {"glass_blur": {"swap": True}})
    assert [(c.name, c.severity, dict(c.options)) for c in grid] == [
        ("fog", 1, {}),
        ("fog", 5, {}),
        ("glass_blur", 1, {"swap": True}),
        ("glass_blur", 5, {"swap": True}),
    ]
    with pytest.raises(UnknownNameError, match="glass_blur"):
        corruption_grid(["fog"], [1], {"glass_blur": {"swap": True}})


def test_a_grid_takes_severities_by_name() -> None:
    grid = corruption_grid(["snow", "fog"], {"fog": [1, 5], "snow": [3]})
    assert [(c.name, c.severity) for c in grid] == [("snow", 3), ("fog", 1), ("fog", 5)]
    with pytest.raises(UnknownNameError, match="with severities; given are 'fog'"):
        corruption_grid(["fog"], {"fogg": [1]})
    with pytest.raises(UnknownNameError, match="or severities; named are 'snow'"):
        corruption_grid(["fog"], {"fog": [1], "snow": [1]})


def test_keys_tell_apart_what_differs_but_not_labels() -> None:
    cells = [
        Clean(),
        Corruption("fog", 3),
        Corruption("fog", 4),
        Corruption("glass_blur", 3),
        Corruption("glass_blur", 3, swap=True),
        Attack("pgd", 0.1),
        Attack("pgd", 0.2),
        Attack("pgd", 0.1, steps=5),
        Attack("mi_fgsm", 0.1),
        Attack("ddn"),
        Attack("ddn", 0.1),
    ]
    keys = [str(cell.key()) for cell in cells]
    assert len(set(keys)) == len(keys)
    assert Attack("pgd", 0.1, label="mine").key() == Attack("pgd", 0.1).key()
    assert Corruption("fog", 3, label="mine").key() == Corruption("fog", 3).key()


def test_a_key_covers_the_code_in_use_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [Corruption("fog", 3), Corruption("snow", 3), Attack("pgd", 0.1), Attack("square", 0.1)]
    before = [cell.key() for cell in cells]

    def unchanged() -> list[bool]:
        return [cell.key() == old for cell, old in zip(cells, before, strict=True)]

    def other(*_: object) -> None: ...

    fog, pgd = corruptions.info("fog"), attacks.info("pgd")
    monkeypatch.setitem(corruption_registry.REGISTRY, "new", fog)
    monkeypatch.setitem(attack_registry.REGISTRY, "new", pgd)
    assert unchanged() == [True] * 4
    monkeypatch.setitem(corruption_registry.REGISTRY, "fog", replace(fog, function=other))
    assert unchanged() == [False, True, True, True]
    monkeypatch.setitem(attack_registry.REGISTRY, "pgd", replace(pgd, function=other))
    assert unchanged() == [False, True, False, True]


def test_a_folder_of_photographs_counts_by_its_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "frost1.png").write_bytes(b"picture")
        os.utime(folder / "frost1.png", (1, 1))
    keys = [Corruption("frost", 3, photographs=folder).key() for folder in (first, second)]
    assert keys[0] == keys[1]
    (first / "frost1.png").write_bytes(b"another")
    assert Corruption("frost", 3, photographs=first).key() != keys[0]


def test_perturbations_of_one_name_are_not_averaged(
    tiny: Dataset, store: Store, tmp_path: Path
) -> None:
    model = wrap(build("small_resnet", classes=3, image_size=16, seed=0).eval(), name="mine")
    export_cifar_c(tmp_path / "C", tiny.test, ["fog"], progress=False)

    def table(*cells: object):
        return evaluate([model], tiny.test, cells, store=store, progress=False).table  # type: ignore[arg-type]

    stored = Stored("fog", 2, tmp_path / "C")
    with pytest.raises(ValueError, match=r"'fog' stands for 2 .*stored in C"):
        accuracy_matrix(table(Corruption("fog", 1), stored))
    with pytest.raises(ValueError, match=r"'pgd' stands for 2 .*label="):
        accuracy_matrix(table(Attack("pgd", 0.01, steps=2), Attack("pgd", 0.02, steps=2)))
    with pytest.raises(ValueError, match=r"'pgd' stands for 2 .*steps=3"):
        accuracy_matrix(table(Attack("pgd", 0.01, steps=2), Attack("pgd", 0.01, steps=3)))
    labelled = [Attack("pgd", 0.01, steps=2), Attack("pgd", 0.02, steps=2, label="pgd, strong")]
    found = table(*labelled, Corruption("fog", 2), Stored("fog", 2, tmp_path / "C", label="files"))
    matrix = accuracy_matrix(found)
    assert list(matrix) == ["clean", "pgd", "pgd, strong", "fog", "files"]
    assert abs(matrix.loc["mine", "fog"] - matrix.loc["mine", "files"]) < 0.1
    assert found["options"].tolist() == ["", "steps=2", "steps=2", "", "stored in C"]
