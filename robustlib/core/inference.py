"""Asking a model for its outputs without leaving a trace on it: for evaluations and attacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.core.checks import check_logits, check_module


class TrainModeWarning(UserWarning):
    """A model was handed over in train mode; it is used in eval mode."""


class ProbabilityWarning(UserWarning):
    """A model's outputs look like probabilities, where attacks need logits."""


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter or buffer of `model` lies; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients to parameters, float32 throughout; all restored afterwards.

    Buffers come back as they were, also where the model changes them in eval mode. Float32 means:
    no autocast, and no TF32 in convolutions and matrix products on a GPU.

    Raises:
        ValueError: `model` is no `torch.nn.Module`, or was built under `torch.inference_mode`.

    Warns:
        TrainModeWarning: the model was in train mode.
    """
    check_module(model)
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "the model was built under torch.inference_mode, so that nothing can be "
            "differentiated through it; build or load it outside."
        )
    modes = {m: m.training for m in model.modules() if hasattr(m, "training")}  # not if frozen
    if modes.get(model):
        warnings.warn(
            "the model is in train mode; it is used in eval mode.", TrainModeWarning, stacklevel=4
        )
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with _no_autocast(device_of(model).type), _full_precision():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                if not isinstance(module, torch.jit.ScriptModule):
                    setattr(module, name, buffer)  # which the model may have replaced


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()


@contextmanager
def _full_precision() -> Iterator[None]:
    switches: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """bool (N,): the largest of (N, classes) logits is the label's; never if one isn't finite."""
    return logits.argmax(1).eq(labels) & logits.isfinite().all(1)


def look_over(model: nn.Module, images: Tensor, labels: Tensor, *, finite: bool = True) -> Tensor:
    """See from images, a few will do, whether `model` is a classifier that can be evaluated.

    Args:
        model: to be asked in `evaluating`.
        images: float32 (n, 3, H, W) in [0, 1], at least one.
        labels: int64, those of all images.
        finite: whether logits that aren't finite are an error.

    Returns the logits, floating (n, classes).

    Raises:
        ValueError: the model lies on another device, doesn't take float32 images, or its output
            isn't finite logits (n, classes) with a class for each label.

    Warns:
        ProbabilityWarning: the outputs look like probabilities.
    """
    places = {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}
    if places and str(images.device) not in places:
        raise ValueError(
            f"the model is on {', '.join(sorted(places))}, but the images are on {images.device}: "
            "move one of them with .to(device)."
        )
    try:
        with torch.no_grad():
            output = model(images.clone())
    except RuntimeError as error:
        other = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
        if not other:
            raise
        raise ValueError(
            f"the model has parameters of {', '.join(map(str, other))} and doesn't take float32 "
            f"images ({error}): use model.float()."
        ) from error
    logits = check_logits(output, len(images), labels)
    if finite and not logits.isfinite().all():
        raise ValueError(
            "the model's outputs aren't finite on the first images; for classes that are ruled "
            "out give a large negative logit, not minus infinity."
        )
    warn_of_probabilities(logits)
    return logits


def warn_of_probabilities(logits: Tensor) -> None:
    """Warn with `ProbabilityWarning` if each row of (N, classes) is a distribution."""
    if len(logits) and bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-3).all()):
        warnings.warn(
            "the model's outputs look like probabilities, not logits. Accuracies don't suffer, but "
            "attacks on the cross-entropy (fgsm, pgd, pgd_least_likely, mi_fgsm, apgd_ce, ddn) and "
            "on margins (cw, apgd_dlr, deepfool, square) are weaker for it and overstate "
            "robustness; take the softmax out of the model.",
            ProbabilityWarning,
            stacklevel=4,
        )
