"""The model as attacks see it: free to write to its input, finite in its answers."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from robustlib.core.inference import right
from robustlib.core.randomness import Stream

_LARGEST = 1e10  # a gradient beyond it counts as infinite: the squares of larger ones overflow
_FEW = 8  # images that show whether a gradient comes back


class GradientWarning(UserWarning):
    """The gradients that an attack follows are not finite, or zero: it may be too weak."""


class Guard(nn.Module):
    """A model, in `robustlib.core.inference.evaluating`, with what every attack relies on.

    - It is handed a copy of the images, so it may change them in place.
    - Logits that aren't all finite count as wrong: logits come back that are.
    - Gradients with respect to the images are finite, image by image. An infinite entry becomes
      its sign times the largest finite magnitude of that image, or 1; NaN becomes 0, and if
      nothing else is left, the gradient is a fixed pattern of signs, to get away from that point.

    labels: int64 (N,), the true classes of the images.
    """

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.training = False
        self.model = model
        self.labels = labels
        self.index = torch.arange(len(labels), device=labels.device)
        self.repaired = torch.zeros_like(labels, dtype=torch.bool)

    def at(self, index: Tensor) -> Guard:
        """The guard for some of the images, which keeps its notes in this one."""
        part = Guard(self.model, self.labels[index])
        part.index, part.repaired = self.index[index], self.repaired
        return part

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, classes), finite, for float32 (N, 3, H, W)."""
        own = images.clone()
        if own.requires_grad:
            own.register_hook(self._repair)
        logits = self.model(own).float()
        wrong = torch.zeros_like(logits).scatter(1, self.labels[:, None], -1.0)
        return torch.where(logits.isfinite().all(1, keepdim=True), logits, wrong)

    @torch.no_grad()
    def right(self, images: Tensor) -> Tensor:
        """bool (N,): whether the model gets these versions of the images right."""
        return right(self.model(images.clone()), self.labels)

    def _repair(self, gradient: Tensor) -> Tensor:
        low, high = torch.aminmax(gradient)  # NaN if an entry is
        if low >= -_LARGEST and high <= _LARGEST:
            return gradient
        bad = ~(gradient.abs() <= _LARGEST)  # true for NaN, too
        touched = bad.flatten(1).any(1)
        self.repaired[self.index[touched]] = True
        largest = torch.where(bad, 0, gradient).abs().amax((1, 2, 3), keepdim=True)
        largest = torch.where(largest > 0, largest, 1)
        gradient = torch.where(bad, gradient.sign() * largest, gradient).nan_to_num(nan=0)
        lost = touched & ~gradient.flatten(1).any(1)
        pattern = Stream(0, torch.zeros_like(self.index), "away").sign(gradient.shape[1:])
        return torch.where(lost.view(-1, 1, 1, 1), pattern, gradient)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,): the label's logit minus the largest other one of (N, classes)."""
    chosen = labels[:, None]
    others = logits.scatter(1, chosen, -math.inf)
    return logits.gather(1, chosen).squeeze(1) - others.amax(1)


def check_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """See from a few images whether gradients come back through `model`.

    Args:
        model: in `robustlib.core.inference.evaluating`.
        images: float32 (N, 3, H, W) in [0, 1], at least one.
        labels: int64 (N,).

    Raises:
        ValueError: no gradient of the outputs with respect to the images.

    Warns:
        GradientWarning: it is zero for all of them.
    """
    labels = labels[:_FEW]
    guard, x = Guard(model, labels), images[:_FEW].clone().requires_grad_()
    reason, gradient = "", None
    try:
        lead = margin(guard(x), labels).sum()
        if lead.requires_grad:
            (gradient,) = torch.autograd.grad(lead, x, allow_unused=True)
    except RuntimeError as error:
        reason = f" ({str(error).strip().splitlines()[0]})"
    if gradient is None:
        raise ValueError(
            f"no gradient comes back through the model{reason}: it detaches its input, leaves "
            "PyTorch, runs under torch.no_grad, or returns classes. An attack that follows "
            "gradients would overstate its robustness; the black-box attacks square and rays do "
            "without them."
        )
    if not gradient.any():
        warnings.warn(
            "the gradient is zero on the first images, so the attack may fail for lack of it and "
            "overstate robustness; the black-box attacks square and rays do without gradients.",
            GradientWarning,
            stacklevel=3,
        )


def warn_of_repairs(guard: Guard) -> None:
    """Warn with `GradientWarning` if gradients had to be replaced, and for how many images."""
    count = int(guard.repaired.sum())
    if count:
        warnings.warn(
            f"the gradient wasn't finite for {count} of {len(guard.labels)} images; the attack "
            "went on with finite values instead and may be weaker for it. Roots, logarithms and "
            "divisions at zero do this: keep them away from it by adding a small number inside.",
            GradientWarning,
            stacklevel=3,
        )
