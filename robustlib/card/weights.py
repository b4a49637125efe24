"""Files of weights: what is in them, and whether it fits a network. No pickle runs unasked."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_WITHIN = ("state_dict", "model", "model_state_dict", "net")  # where training scripts put weights
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and Lightning


def is_torchscript(file: Path) -> bool:
    """Whether `file` is an archive with code, as `torch.jit.save` writes it."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_object(file: Path, *, trust: bool) -> object:
    """What a safetensors file, or a file of `torch.save`, holds; tensors on the CPU.

    Args:
        file: to be read.
        trust: whether a pickle of other things than tensors and plain values may be read, which
            runs the code that it names.

    Raises:
        ValueError: there is no such file, it can't be read, or it is a pickle of other things and
            isn't trusted.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}; check the path, nothing is downloaded.")
    if file.suffix.lower() == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} can't be read as a safetensors file ({error}); get or save it again."
            ) from error
    if not _is_pickle(file):
        raise ValueError(
            f"{file} is no model file: give TorchScript, safetensors or a state_dict of torch.save."
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            things = f"other things than tensors{f', such as {named[1]}' if named else ''}"
            raise ValueError(
                f"{file} is a pickle of {things}, and reading one runs whatever code it names: "
                "save the network's state_dict as safetensors, or, if you trust who made the "
                "file, say so with trust (--trust)."
            ) from error
    except Exception as error:  # damaged files fail in many ways
        raise _unreadable(file, error) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes whose source has changed
            return torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever the code in the pickle raises
        raise _unreadable(file, error) from error


def _is_pickle(file: Path) -> bool:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    with open(file, "rb") as opened:
        return opened.read(1) == b"\x80"


def _unreadable(file: Path, error: Exception) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"{file} can't be read ({type(error).__name__}: {reason}); save it again.")


def state_dict_of(found: object, file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in what `read_object` returned, and notes of where they were.

    Raises:
        ValueError: there are none.
    """
    notes = []
    if isinstance(found, nn.Module):
        found = found.state_dict()
    if isinstance(found, Mapping):
        for key in _WITHIN:
            if isinstance(found.get(key), Mapping | nn.Module):
                notes.append(f"The weights are what {file.name} holds under {key!r}.")
                inner = found[key]
                found = inner.state_dict() if isinstance(inner, nn.Module) else inner
                break
    if not isinstance(found, Mapping) or not found:
        kind = "nothing" if found is None or found == {} else f"a {type(found).__name__}"
        raise ValueError(f"{file} holds {kind} instead of weights; give the network's state_dict.")
    others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"{file} holds other things than weights ({_listed(others)}); save the network's "
            "state_dict alone."
        )
    return {str(name): value for name, value in found.items()}, notes


def without_prefixes(
    weights: Mapping[str, Tensor], network: nn.Module
) -> tuple[dict[str, Tensor], list[str]]:
    """`weights` without what wrappers put before all names, and notes of what was left out."""
    own = network.state_dict().keys()
    notes = []
    found = dict(weights)
    while prefix := next((p for p in _PREFIXES if _all_start(found, p) > _all_start(own, p)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
        notes.append(f"The weights' names begin with {prefix!r}, which was left out.")
    return found, notes


def _all_start(names: Iterable[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def with_new_densenet_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with "norm1" for the "norm.1" that torchvision's published DenseNets have."""
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    return {old.sub(r"\1\2", name): value for name, value in weights.items()}


def outputs_of(weights: Mapping[str, Tensor], network: nn.Module, built_for: int) -> int:
    """Number of outputs that `weights` are for, seen from a network built for another number.

    Returns `built_for` unless all shapes that differ do so in one and the same number of outputs.
    """
    counts = set()
    for theirs, own in _different_shapes(weights, network).values():
        if len(theirs) != len(own) or theirs[1:] != own[1:] or own[:1] != (built_for,):
            return built_for
        counts.add(theirs[0])
    return counts.pop() if len(counts) == 1 else built_for


def fit(network: nn.Module, weights: Mapping[str, Tensor], *, network_name: str) -> None:
    """Load `weights` into `network`, all of them and nothing else.

    Raises:
        ValueError: names are missing or unknown, or shapes differ; says which.
    """
    shapes = _different_shapes(weights, network)
    if shapes:
        name, (theirs, own) = next(iter(shapes.items()))
        raise ValueError(
            f"{len(shapes)} of the weights have another shape than in {network_name}: {name} is "
            f"{theirs} in the file and {own} in the network; give the weights of this network, "
            "made for the same number of classes and size of images."
        )
    wrong = network.load_state_dict(weights, strict=False)
    found = []
    if wrong.missing_keys:
        found.append(f"lack {len(wrong.missing_keys)} names ({_listed(wrong.missing_keys)})")
    if wrong.unexpected_keys:
        found.append(
            f"have {len(wrong.unexpected_keys)} unknown ones ({_listed(wrong.unexpected_keys)})"
        )
    if found:
        raise ValueError(
            f"the weights {' and '.join(found)}, so they aren't those of {network_name}; name "
            "their architecture."
        )


def _different_shapes(
    weights: Mapping[str, Tensor], network: nn.Module
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    return {
        name: (tuple(weights[name].shape), tuple(own.shape))
        for name, own in network.state_dict().items()
        if name in weights and weights[name].shape != own.shape
    }


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
