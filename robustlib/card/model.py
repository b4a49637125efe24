"""A user's words to a classifier: a name and weights, a file, or a function that builds it."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robustlib.card.weights import (
    fit,
    is_torchscript,
    outputs_of,
    read_object,
    state_dict_of,
    with_new_densenet_names,
    without_prefixes,
)
from robustlib.core.checks import UnknownNameError, check_flag, check_whole
from robustlib.core.devices import pick_device
from robustlib.core.inference import device_of, evaluating, look_over
from robustlib.models import ARCHITECTURES, Classifier, build, wrap

_LIBRARIES = ("torchvision", "timm", "robustlib")
_ENDINGS = (".pt", ".pth", ".ts", ".pt2", ".bin", ".ckpt", ".tar", ".pkl", ".safetensors", ".onnx")
_BUILT_FOR = 1000  # outputs of a named architecture until its weights tell their number


@dataclass(frozen=True)
class Preparation:
    """What a network wants done to pixels in [0, 1]: (x - mean) / std, then perhaps BGR.

    Attributes:
        mean, std: of red, green and blue.
        bgr: whether the channels are handed over as blue, green, red.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    bgr: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """float32 (N, 3, H, W) in [0, 1] to what the network takes."""
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        ready = (images - mean) / std
        return ready.flip(1) if self.bgr else ready


class Swapped(nn.Module):
    """A network that wants blue, green, red, for images that are red, green, blue."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, 3, H, W) to what the network makes of it."""
        return self.network(images.flip(1))


@dataclass(frozen=True)
class CardModel:
    """A classifier to make a card of, and how it came about.

    Attributes:
        classifier: takes float32 (N, 3, H, W) in [0, 1]; in eval mode, on the device asked for.
        network: the same without `preparation`: takes what that returns.
        preparation: what is done to the images first.
        outputs: number of classes that it tells apart.
        image_size: side of the images that it is to be asked, in pixels.
        notes: sentences on what was done to load it.
    """

    classifier: Classifier
    network: nn.Module = field(repr=False)
    preparation: Preparation
    outputs: int
    image_size: int
    notes: tuple[str, ...] = ()


def load_model(
    spec: str | Path,
    *,
    image_size: int,
    weights: str | Path | None = None,
    name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool = False,
    output: str | int | None = None,
    trust: bool = False,
    device: str = "auto",
) -> CardModel:
    """The classifier that `spec` names, tried on one black image. Nothing is downloaded.

    Args:
        spec: one of

            - an architecture, with `weights`: a name that torchvision knows ("resnet50" or
              "torchvision:resnet50"), "timm:NAME" if timm is installed, or "robustlib:NAME" for
              one of `robustlib.models.ARCHITECTURES`. The number of classes is read off the
              weights.
            - a TorchScript file, or with `trust` a pickled network.
            - "MODULE:FUNCTION": the module is imported, from the current folder too, and what the
              function returns without arguments is the network; with `weights`, if given.
        image_size: side of the images in pixels.
        weights: a safetensors file, or a state dict that `torch.save` wrote, alone or under the
            key "state_dict", "model", "model_state_dict" or "net". It must fit in every name and
            shape; what DataParallel, torch.compile and Lightning put before names is left out.
        name: what tables call the model; None takes it from `spec`.
        mean, std: of red, green and blue, if the network wants normalised images; else it is
            handed pixels in [0, 1].
        bgr: whether it wants blue, green, red.
        output: where the logits are if it returns more; see `robustlib.models.wrap`.
        trust: whether pickles of other things than tensors may be read. They run whatever code
            they name.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.

    Raises:
        ValueError: a name, file, function, weights, device or network that can't be used; says
            what to do. A misspelt name raises `UnknownNameError`, with the nearest.
    """
    place = pick_device(device)
    image_size = check_whole(image_size, "image_size", low=1)
    bgr, trust = check_flag(bgr, "bgr"), check_flag(trust, "trust")
    spec = str(spec)
    file = None if weights is None else Path(weights).expanduser()
    network, architecture, notes = _find(spec, file, image_size, trust)
    if network.training:
        notes.append("The network was in train mode; it is used in eval mode.")
    network = network.eval().to(place)
    if output is not None:
        network = wrap(network, name="card", output=output).model
    classifier = wrap(
        Swapped(network) if bgr else network, name=name or architecture, mean=mean, std=std
    )
    preparation = Preparation(bgr=bgr)
    if mean is not None and std is not None:
        preparation = Preparation(tuple(map(float, mean)), tuple(map(float, std)), bgr)
        by = f"mean {_of_colours(mean)} and std {_of_colours(std)}"
        notes.append(f"Pixels are normalised with {by}.")
    if bgr:
        notes.append("It is handed blue, green, red.")
    found = card_model(replace(classifier, architecture=architecture), image_size=image_size)
    return replace(found, network=network, preparation=preparation, notes=tuple(notes))


def card_model(classifier: Classifier, *, image_size: int) -> CardModel:
    """A classifier that is there already, tried on one black image.

    Args:
        classifier: on the device where it is to run; a trained one of this project, or from
            `robustlib.models.wrap`. Whatever it does to its images counts as its own.
        image_size: side of the images in pixels.

    Raises:
        ValueError: it fails on the image, or its output isn't logits of two or more classes.
    """
    image_size = check_whole(image_size, "image_size", low=1)
    model = classifier.model
    place = device_of(model)
    black = torch.zeros(1, 3, image_size, image_size, device=place)
    label = torch.zeros(1, dtype=torch.int64, device=place)
    try:
        with evaluating(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the outputs look like is for `slips`
            outputs = look_over(model, black, label, finite=False).shape[1]
    except ValueError as error:
        raise ValueError(f"{classifier.recipe} can't be used: {error}") from error
    except Exception as error:  # whatever the network's own code raises
        raise ValueError(
            f"{classifier.recipe} fails on one black image of 3 x {image_size} x {image_size} "
            f"({_reason(error)}); give the size of images that it was made for."
        ) from error
    return CardModel(classifier, model, Preparation(), outputs, image_size)


def _of_colours(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{kind}: {lines[-1].removeprefix(f'{kind}: ')}" if lines else kind


_Found = tuple[nn.Module, str, list[str]]  # the network, its architecture, notes


def _find(spec: str, weights: Path | None, image_size: int, trust: bool) -> _Found:
    file = Path(spec).expanduser()
    library, colon, rest = spec.partition(":")
    if file.is_file() or file.suffix.lower() in _ENDINGS or os.sep in spec:
        return _from_file(file, weights, trust)
    if colon and library not in _LIBRARIES:
        network = _from_function(library, rest)
        if weights is None:
            return network, spec, []
        return network, spec, _fill(network, *_read(weights, trust), name=spec)
    name = rest if colon else spec
    make = _architecture(name, library if colon else None, image_size)
    if weights is None:
        raise ValueError(
            f"{spec} is an architecture without weights: give a file of them, for nothing is "
            "downloaded."
        )
    found, notes = _read(weights, trust)
    if name.startswith("densenet"):
        found = with_new_densenet_names(found)
    network = make(_BUILT_FOR)
    outputs = outputs_of(without_prefixes(found, network)[0], network, _BUILT_FOR)
    if outputs != _BUILT_FOR:
        network = make(outputs)
    described = spec
    if not colon and name in ARCHITECTURES:
        described = f"torchvision's {name} (this project's is robustlib:{name})"
    return network.eval(), name, _fill(network, found, notes, name=described)


def _read(weights: Path, trust: bool) -> tuple[dict[str, Tensor], list[str]]:
    if weights.is_file() and is_torchscript(weights):
        raise ValueError(f"{weights} is a whole TorchScript network: give it as the model, alone.")
    return state_dict_of(read_object(weights, trust=trust), weights)


def _fill(
    network: nn.Module, weights: dict[str, Tensor], notes: list[str], *, name: str
) -> list[str]:
    bare, more = without_prefixes(weights, network)
    fit(network, bare, network_name=name)
    return [*notes, *more]


def _from_file(file: Path, weights: Path | None, trust: bool) -> _Found:
    if not file.is_file():
        where = "is a folder, not a file" if file.is_dir() else "doesn't exist"
        raise ValueError(f"the model file {file} {where}; check the path.")
    if is_torchscript(file):
        network = wrap(file, name="card").model
    else:
        found = read_object(file, trust=trust)
        if not isinstance(found, nn.Module):
            state_dict_of(found, file)
            raise ValueError(
                f"{file} holds weights without a network: give its architecture as the model, such "
                "as torchvision:resnet50, and this file as the weights."
            )
        network = found
    if weights is not None:
        raise ValueError(f"{file} is a whole network with its weights: leave out {weights}.")
    return network, file.stem, []


def _from_function(module: str, function: str) -> nn.Module:
    here = str(Path.cwd())
    if here not in sys.path:  # for good: processes that evaluate the network look there, too
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"importing {module} failed ({_reason(error)}).") from error
        raise ValueError(
            f"there is no module {module!r} in {here} or among the installed packages; give "
            "MODULE:FUNCTION, or the path of a model file."
        ) from error
    except Exception as error:  # whatever the module's own code raises
        raise ValueError(f"importing {module} failed ({_reason(error)}).") from error
    found = getattr(imported, function, None)
    if not callable(found):
        names = [name for name, value in vars(imported).items() if callable(value)]
        near = difflib.get_close_matches(function, names, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownNameError(f"the module {module} has no function {function!r}.{hint}")
    try:
        network = found()
    except Exception as error:  # whatever the function's own code raises
        raise ValueError(
            f"{module}:{function} failed ({_reason(error)}); it is called without arguments and "
            "must return a torch.nn.Module."
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{module}:{function} must return a torch.nn.Module, but it returned a "
            f"{type(network).__name__}."
        )
    return network


def _architecture(name: str, library: str | None, image_size: int) -> Callable[[int], nn.Module]:
    """What builds the architecture for a number of outputs."""
    names = _known(library)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? Else give" if near else "give"
        raise UnknownNameError(
            f"{library or 'torchvision'} has no architecture {name!r}; {hint} the path of a model "
            "file, MODULE:FUNCTION, timm:NAME or one of "
            f"{', '.join(f'robustlib:{own}' for own in ARCHITECTURES)}."
        )
    library = names[name]

    def make(outputs: int) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how untrained weights are drawn
            if library == "robustlib":
                return build(name, classes=outputs, image_size=image_size, seed=0)
            if library == "timm":
                return importlib.import_module("timm").create_model(
                    name, pretrained=False, num_classes=outputs
                )
            from torchvision.models import get_model

            return get_model(name, weights=None, num_classes=outputs)

    return make


def _known(library: str | None) -> dict[str, str]:
    """Name of each architecture that may be meant -> the library that has it."""
    found = {}
    if library in (None, "robustlib"):
        found = dict.fromkeys(ARCHITECTURES, "robustlib")
    if library in (None, "torchvision"):
        import torchvision

        names = torchvision.models.list_models(module=torchvision.models)
        found |= dict.fromkeys(names, "torchvision")
    if library == "timm":
        if importlib.util.find_spec("timm") is None:
            raise ValueError("timm isn't installed: install it with pip install timm.")
        found = dict.fromkeys(importlib.import_module("timm").list_models(), "timm")
    return found
