"""A user's words to a classifier: names, files and functions, and what is wrong with them."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustlib.card import Preparation, card_model, load_model
from robustlib.card.weights import with_new_densenet_names
from robustlib.core.checks import UnknownNameError
from robustlib.models import build, wrap

SIZE = 32
IMAGES = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def linear(outputs: int = 5) -> nn.Module:
    torch.manual_seed(outputs)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, outputs)).eval()


def save_script(network: nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(network, IMAGES), file)
    return file


def save_weights(network: nn.Module, file: Path) -> Path:
    save_file(dict(network.state_dict()), file)
    return file


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a module into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, text: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)

    return write


def made(body: str) -> str:
    """The text of a module with a function."""
    return f"from collections import OrderedDict\nfrom torch import nn\ndef net():\n    {body}\n"


# --- What works -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["squeezenet1_1", "torchvision:squeezenet1_1"])
def test_an_architecture_of_torchvision_finds_its_classes_in_the_weights(
    spec: str, tmp_path: Path
) -> None:
    from torchvision.models import squeezenet1_1

    network = squeezenet1_1(num_classes=7).eval()
    file = save_weights(network, tmp_path / "mine.safetensors")
    model = load_model(spec, weights=file, image_size=SIZE, name="mine", device="cpu")
    assert model.outputs == 7
    assert model.notes == ()
    assert (model.classifier.name, model.classifier.architecture) == ("mine-0", "squeezenet1_1")
    assert not model.classifier.model.training
    torch.testing.assert_close(model.classifier.model(IMAGES), network(IMAGES))


def test_weights_within_a_checkpoint_and_behind_prefixes(tmp_path: Path) -> None:
    network = build("small_resnet", classes=4, image_size=SIZE, seed=3).eval()
    named = {f"module._orig_mod.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": named, "epoch": 3}, tmp_path / "net.pth")
    model = load_model("robustlib:small_resnet", weights=tmp_path / "net.pth", image_size=SIZE)
    assert model.outputs == 4
    assert torch.equal(model.classifier.model(IMAGES), network(IMAGES))
    assert len(model.notes) == 3
    for note, word in zip(model.notes, ("'state_dict'", "'module.'", "'_orig_mod.'"), strict=True):
        assert word in note


def test_a_prefix_that_the_network_has_itself_is_kept(
    module: Callable[[str, str], None], tmp_path: Path
) -> None:
    inner = "nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))"
    module("card_kept", made(f"return nn.Sequential(OrderedDict(model={inner}))"))
    named = {f"model.{name}": value for name, value in linear().state_dict().items()}
    torch.save(named, tmp_path / "net.pth")
    model = load_model("card_kept:net", weights=tmp_path / "net.pth", image_size=SIZE)
    torch.testing.assert_close(model.classifier.model(IMAGES), linear()(IMAGES))
    assert model.notes == ("The network was in train mode; it is used in eval mode.",)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of hashing it
def test_preparation_of_a_torchscript_file(tmp_path: Path) -> None:
    file = save_script(linear(), tmp_path / "net.pt")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    model = load_model(file, image_size=SIZE, mean=mean, std=std, bgr=True)
    red, green, blue = (
        (IMAGES[:, i : i + 1] - m) / s for i, (m, s) in enumerate(zip(mean, std, strict=True))
    )
    expected = linear()(torch.cat([blue, green, red], 1))
    torch.testing.assert_close(model.classifier.model(IMAGES), expected)
    torch.testing.assert_close(model.network(model.preparation(IMAGES)), expected)
    assert model.preparation == Preparation(mean, std, bgr=True)
    assert model.notes[-2:] == (
        "Pixels are normalised with mean 0.1, 0.2, 0.3 and std 0.5, 0.6, 0.7.",
        "It is handed blue, green, red.",
    )
    assert model.classifier.recipe == "net"
    plain = load_model(str(file), image_size=SIZE)
    torch.testing.assert_close(plain.classifier.model(IMAGES), linear()(IMAGES))
    assert plain.classifier.identity() != model.classifier.identity()


def test_a_function_of_a_module_here(module: Callable[[str, str], None], tmp_path: Path) -> None:
    module(
        "card_made", made("return nn.Sequential(nn.Flatten(), nn.Linear(3072, 5), nn.Dropout())")
    )
    model = load_model("card_made:net", image_size=SIZE)
    assert model.classifier.recipe == "card_made:net"
    assert model.outputs == 5
    assert not model.classifier.model.training
    file = save_weights(linear(), tmp_path / "weights.safetensors")
    filled = load_model("card_made:net", weights=file, image_size=SIZE)
    torch.testing.assert_close(filled.classifier.model(IMAGES), linear()(IMAGES))


def test_logits_are_picked(module: Callable[[str, str], None]) -> None:
    text = "class Net(nn.Module):\n    def forward(self, x): return {'logits': x.mean((2, 3))}\n"
    module("card_dict", f"from torch import nn\n{text}")
    assert load_model("card_dict:Net", image_size=SIZE, output="logits").outputs == 3
    with pytest.raises(ValueError, match=r'keys logits.*output="logits"'):
        load_model("card_dict:Net", image_size=SIZE)


def test_a_name_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "timm.py").write_text(
        "from torch import nn\ndef list_models():\n    return ['vit']\n"
        "def create_model(name, pretrained, num_classes):\n    assert not pretrained\n"
        f"    return nn.Sequential(nn.Flatten(), nn.Linear({3 * SIZE**2}, num_classes))\n"
    )
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "here")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = save_weights(linear(6), tmp_path / "w.safetensors")
    assert load_model("timm:vit", weights=file, image_size=SIZE).outputs == 6
    with pytest.raises(UnknownNameError, match=r"timm has no architecture 'vitt'.*'vit'"):
        load_model("timm:vitt", weights=file, image_size=SIZE)
    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install timm"):
        load_model("timm:vit", weights=file, image_size=SIZE)


def test_a_classifier_that_is_there_already() -> None:
    model = card_model(wrap(linear(), name="mine"), image_size=SIZE)
    assert (model.outputs, model.preparation) == (5, Preparation())
    with pytest.raises(ValueError, match=r"mine fails on one black image of 3 x 16 x 16.*size"):
        card_model(wrap(linear(), name="mine"), image_size=16)


def test_the_old_names_of_densenet() -> None:
    from torchvision.models import densenet121

    with torch.device("meta"):
        own = densenet121().state_dict()
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", name): own[name] for name in own}
    assert "features.denseblock4.denselayer16.norm.1.weight" in old
    assert list(with_new_densenet_names(old)) == list(own)
    assert list(with_new_densenet_names(own)) == list(own)


# --- Pickles --------------------------------------------------------------------------------------


class Touching:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_pickle_is_not_read_unless_trusted(tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "net.pth"
    weights = build("small_resnet", classes=4, image_size=SIZE, seed=3).state_dict()
    torch.save({"model": weights, "arguments": Touching(mark)}, file)
    with pytest.raises(ValueError, match=r"pickle of other things.*runs whatever.*--trust"):
        load_model("robustlib:small_resnet", weights=file, image_size=SIZE)
    assert not mark.exists()
    model = load_model("robustlib:small_resnet", weights=file, image_size=SIZE, trust=True)
    assert mark.exists()
    assert model.outputs == 4


def test_a_pickled_network(tmp_path: Path) -> None:
    torch.save(linear(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"such as torch\.nn\.modules.*--trust"):
        load_model(tmp_path / "net.pt", image_size=SIZE)
    model = load_model(tmp_path / "net.pt", image_size=SIZE, trust=True)
    torch.testing.assert_close(model.classifier.model(IMAGES), linear()(IMAGES))


def test_the_settings_of_a_training_are_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "args": argparse.Namespace()}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"such as argparse\.Namespace"):
        load_model("resnet18", weights=tmp_path / "net.pth", image_size=SIZE)


# --- What is refused ------------------------------------------------------------------------------


def weights_of(**changes: Tensor) -> dict[str, Tensor]:
    return {**build("small_resnet", classes=4, image_size=SIZE, seed=3).state_dict(), **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (weights_of(extra=torch.ones(1)), r"have 1 unknown ones \(extra\).*robustlib:small_resnet"),
        (linear().state_dict(), r"lack .* names \(1\.0\.weight, .*\) and have 2 unknown ones"),
        (weights_of(**{"1.0.weight": torch.ones(8, 3, 3, 3)}), r"3 of .* another shape.*\(8, 3, 3"),
        ({"epoch": 3}, "other things than weights .epoch."),
        ({}, "holds nothing instead of weights"),
        ([1, 2], "holds a list instead of weights"),
    ],
)
def test_weights_that_do_not_fit(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=message):
        load_model("robustlib:small_resnet", weights=tmp_path / "net.pth", image_size=SIZE)


def test_weights_for_another_number_of_classes(
    module: Callable[[str, str], None], tmp_path: Path
) -> None:
    module("card_five", made("return nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))"))
    file = save_weights(linear(7), tmp_path / "seven.safetensors")
    with pytest.raises(ValueError, match=r"\(7, 3072\) in the file.*\(5, .*number of classes"):
        load_model("card_five:net", weights=file, image_size=SIZE)


def test_a_hint_at_the_network_of_the_same_name(tmp_path: Path) -> None:
    torch.save({"1.conv1.weight": torch.ones(1)}, tmp_path / "ours.pth")
    with pytest.raises(ValueError, match="this project's is robustlib:resnet18"):
        load_model("resnet18", weights=tmp_path / "ours.pth", image_size=SIZE)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("net.pt", b"no model", "is no model file"),
        ("net.safetensors", b"no model", "can't be read as a safetensors file"),
        ("net.pth", b"", "is no model file"),
        ("net.pth", b"\x80\x02 and then nothing", "net.pth"),
    ],
)
def test_files_that_are_no_models(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for options in ({"spec": tmp_path / name}, {"spec": "resnet18", "weights": tmp_path / name}):
        with pytest.raises(ValueError, match=message):
            load_model(**options, image_size=SIZE)  # type: ignore[arg-type]


def test_files_in_the_wrong_place(tmp_path: Path) -> None:
    script = save_script(linear(), tmp_path / "script.pt")
    weights = save_weights(linear(), tmp_path / "net.safetensors")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"spec": tmp_path / "none.pt"}, r"none\.pt doesn't exist"),
        ({"spec": tmp_path}, "is a folder, not a file"),
        ({"spec": weights}, "weights without a network.*this file as the weights"),
        ({"spec": script, "weights": weights}, "whole network.*leave out"),
        (
            {"spec": "resnet18", "weights": script},
            "whole TorchScript network: give it as the model",
        ),
        ({"spec": "resnet18", "weights": tmp_path / "none.pth"}, r"no file .*none\.pth"),
        ({"spec": "resnet18"}, "architecture without weights.*nothing is downloaded"),
        ({"spec": "resnet_18", "weights": weights}, "no architecture 'resnet_18'.*'resnet18'"),
        ({"spec": "robustlib:resnet19", "weights": weights}, "robustlib has no .*'resnet18'"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            load_model(**options, image_size=SIZE)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    torch.save(linear().state_dict(), tmp_path / "net.pth")
    whole = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"net\.pth is no model file"):
        load_model("resnet18", weights=tmp_path / "net.pth", image_size=SIZE)


def test_functions_that_make_no_network(module: Callable[[str, str], None]) -> None:
    module("card_bad", "import torch\ndef number():\n    return 3\ndef wants(size):\n    pass\n"
           "def scalar():\n    return torch.nn.Flatten(0)\nvalue = 1\n")  # fmt: skip
    module("card_broken", "import card_nothing_there\n")
    module("card_raising", "1 / 0\n")
    cases = [
        ("card_bad:number", "must return a torch.nn.Module, but it returned a int"),
        ("card_bad:wants", r"failed \(TypeError.*called without arguments"),
        ("card_bad:scalar", r"card_bad:scalar|scalar can't be used.*shape"),
        ("card_bad:numbr", "no function 'numbr'. Did you mean 'number'"),
        ("card_bad:value", "no function 'value'"),
        ("card_none:net", "there is no module 'card_none'"),
        ("card_broken:net", r"importing card_broken failed.*card_nothing_there"),
        ("card_raising:net", r"importing card_raising failed \(ZeroDivisionError"),
    ]
    for spec, message in cases:
        with pytest.raises(ValueError, match=message):
            load_model(spec, image_size=SIZE)


def test_other_arguments(tmp_path: Path) -> None:
    file = save_script(linear(), tmp_path / "net.pt")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std together"),
        ({"mean": (0.5, 0.5), "std": (1, 1)}, "mean must be three numbers"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": 16}, "black image of 3 x 16 x 16.*size"),
        ({"trust": "yes"}, "trust must be True or False"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ]
    if not torch.cuda.is_available():
        cases.append(({"device": "cuda"}, "no GPU is usable here"))
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            load_model(file, **{"image_size": SIZE, **options})
