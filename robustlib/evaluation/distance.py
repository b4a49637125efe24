"""Minimal sample distance: how similar two corruptions look to a model that was trained on neither.

Mintun, Kirillov and Xie, NeurIPS 2021. A transform t of the images x is represented by the mean
shift of the features g of a standard model, f(t) = E_x[g(t(x)) - g(x)]. Between the transforms a
that one trains with, and c that one tests on,

    d(a, c) = min_a || f(a) - E_c[f(c)] ||,

the minimum and the mean over samples of the two. A sample here is a severity, one draw for each
image; that paper draws the parameters once for all images.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from robustlib import corruptions
from robustlib.core.checks import check_names, check_nonempty, check_severity
from robustlib.core.inference import device_of, evaluating
from robustlib.corruptions import corrupt
from robustlib.data import Split

_BATCH = 250


def minimal_sample_distances(
    model: nn.Module,
    split: Split,
    names: Sequence[str],
    *,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    seed: int = 0,
) -> pd.DataFrame:
    """d(a, c) for every pair of corruptions, in units of the model's features.

    Args:
        model: a standard model, whose features are what enters its last linear layer.
        split: images on which the mean shifts are taken; a few hundred suffice.
        names: corruptions.
        severities: 1 to 5, the samples of each corruption.
        seed: of the corruptions.

    Returns a frame with a row for each a, a column for each c, and values of 0 or more. It isn't
    symmetric, and zero on the diagonal for a single severity only.

    Raises:
        ValueError: no corruptions, severities or images, a bad severity, or a model without a
            linear layer.
        UnknownNameError: unknown corruption.
    """
    names = check_names(names, corruptions.names(), "corruption")
    check_nonempty(severities, "severities")
    severities = [check_severity(severity) for severity in severities]
    if not len(split):
        raise ValueError("the split holds no image.")
    with evaluating(model):
        shifts = torch.stack([_mean_shifts(model, split, n, severities, seed) for n in names])
    apart = torch.cdist(shifts.flatten(0, 1), shifts.mean(dim=1))
    nearest = apart.view(len(names), len(severities), len(names)).amin(dim=1)
    return pd.DataFrame(nearest.numpy(), index=names, columns=names)


def features(model: nn.Module, images: Tensor) -> Tensor:
    """What enters the last linear layer of a model, float32 (N, features), for a batch.

    Raises:
        ValueError: it has none, or doesn't use it.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("the model has no linear layer, before which its features are taken.")
    found: list[Tensor] = []
    handle = layers[-1].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        with torch.no_grad():
            model(images)
    finally:
        handle.remove()
    if not found:
        raise ValueError("the model doesn't use its last linear layer.")
    return found[-1].flatten(1)


def _mean_shifts(
    model: nn.Module, split: Split, name: str, severities: Sequence[int], seed: int
) -> Tensor:
    """f of a corruption at each severity, float64 (severities, features)."""
    total = torch.zeros((), dtype=torch.float64)
    device = device_of(model)
    for start in range(0, len(split), _BATCH):
        part = slice(start, start + _BATCH)
        images = split.float_images(part).to(device)
        ids = split.ids[part]
        clean = features(model, images)
        shown = (corrupt(images, name, severity, seed, ids) for severity in severities)
        shifts = [(features(model, each) - clean).double().sum(dim=0).cpu() for each in shown]
        total = total + torch.stack(shifts)
    return total / len(split)
