"""AugMix (Hendrycks et al. 2020, arXiv 1912.02781), batched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib.core.checks import check_number, check_whole, settle
from robustlib.core.devices import sent
from robustlib.corruptions.filters import sample_affine
from robustlib.recipes.base import (
    Batch,
    soft_cross_entropy,
)


@dataclass(frozen=True, kw_only=True)
class AugMix:
    """AugMix: two mixtures of chains of simple operations, and a consistency loss.

    The nine operations are the authors', none of which is in ImageNet-C; rotate, shear and
    translate are weak forms of corruptions of Laugros et al. Unlike the authors' code, pixels
    aren't rounded to bytes between operations (equalize reads them as bytes), an operation's
    amount is drawn anew for each image at each place, and the crop and flip before are those of
    the training loop (`Budget.augmentation`).

    Attributes:
        severity: largest level of an operation, 0.1 to 10; 3 in the authors' code.
        width: chains in a mixture, 1 or more; 3 in that paper.
        depth: longest chain, 1 or more; the length is uniform on 1 .. depth; 3 in that paper.
        alpha: parameter of Dirichlet and Beta, positive; 1 in that paper.
        consistency: weight of the Jensen-Shannon divergence; 12 in that paper.
    """

    severity: float = 3.0
    width: int = 3
    depth: int = 3
    alpha: float = 1.0
    consistency: float = 12.0
    name: str = "augmix"

    def __post_init__(self) -> None:
        settle(
            self,
            severity=check_number(self.severity, "severity", low=0.1, high=10),
            width=check_whole(self.width, "width", low=1),
            depth=check_whole(self.depth, "depth", low=1),
            alpha=check_number(self.alpha, "alpha", low=0, above=True),
            consistency=check_number(self.consistency, "consistency", low=0),
        )

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """L(x, y) + consistency JS(p(x); p(x'); p(x'')), x' and x'' two mixtures from x."""
        rng = np.random.default_rng([batch.seed, 3])
        mixtures = [self.mixture(batch.images, rng) for _ in range(2)]
        stacked = model(torch.cat([batch.images, *mixtures]))
        logits = stacked[: len(batch.images)]
        clean_loss = soft_cross_entropy(logits, batch.one_hot())
        return clean_loss + self.consistency * jensen_shannon(stacked.float().chunk(3)), logits

    @torch.no_grad()
    def mixture(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """(1 - m) x + m sum_k w_k chain_k(x), float32 (N, 3, H, W) in [0, 1].

        w ~ Dirichlet(alpha, ...) and m ~ Beta(alpha, alpha), for each image. Pixels are float32
        under autocast, too.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self._mixture(images, rng)

    def _mixture(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        count, device = len(images), images.device

        def on_device(draws: np.ndarray) -> Tensor:
            return sent(torch.from_numpy(draws.astype(np.float32)), device)

        weights = on_device(rng.dirichlet([self.alpha] * self.width, count).T)
        share = on_device(rng.beta(self.alpha, self.alpha, count)).view(-1, 1, 1, 1)
        chains = images.repeat(self.width, 1, 1, 1)
        lengths = rng.integers(1, self.depth + 1, len(chains))
        for place in range(self.depth):
            picks = rng.integers(len(OPERATIONS), size=len(chains))
            levels = on_device(rng.uniform(0.1, self.severity, len(chains)) / 10)
            signs = on_device(rng.choice([-1.0, 1.0], len(chains)))
            for pick, operation in enumerate(OPERATIONS.values()):
                rows = np.flatnonzero((picks == pick) & (lengths > place))
                if len(rows):
                    chosen = sent(torch.from_numpy(rows), device)
                    chains[chosen] = operation(chains[chosen], levels[chosen], signs[chosen])
        mixed = torch.einsum("kn,knchw->nchw", weights, chains.unflatten(0, (self.width, count)))
        return ((1 - share) * images + share * mixed).clamp(0, 1)


def jensen_shannon(logits: tuple[Tensor, ...]) -> Tensor:
    """Mean over images of the Jensen-Shannon divergence of the softmax of several (N, classes).

    (1 / k) sum_i KL(p_i || mean p), the mean kept above 1e-7 as in the authors' code.
    """
    probabilities = [part.softmax(1) for part in logits]
    log_mean = torch.stack(probabilities).mean(0).clamp(min=1e-7).log()
    divergences = [F.kl_div(log_mean, p, reduction="batchmean") for p in probabilities]
    return torch.stack(divergences).mean()


# Each takes images (N, 3, H, W) in [0, 1], level and sign (N,), level in (0, 1], and returns
# images of the same shape in [0, 1].


def _autocontrast(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)


def _equalize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Equalise the histogram of each channel's bytes, as PIL.ImageOps.equalize does."""
    values = (images * 255).round().long().flatten(2).flatten(0, 1)  # (N 3, H W)
    counts = torch.zeros(len(values), 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(1, values, torch.ones_like(values))
    last = counts.gather(1, values.amax(1, keepdim=True))
    step = (values.shape[1] - last) // 255
    before = counts.cumsum(1) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return (table.gather(1, values).float() / 255).view_as(images)


def _posterize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Keep the upper 4 - floor(4 level) bits of each byte."""
    size = 2 ** (4 + (4 * level).floor()).view(-1, 1, 1, 1)
    return ((images * 255).round() / size).floor() * size / 255


def _solarize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Invert what lies above 1 - level."""
    return torch.where(images < 1 - level.view(-1, 1, 1, 1), images, 1 - images)


def _rotate(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Turn by up to 30 degrees, black outside."""
    angle = (30 * level * sign).deg2rad()
    return sample_affine(
        images, (angle.cos(), angle.sin(), -angle.sin(), angle.cos(), 0, 0), "zero"
    )


def _shear_x(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Slant along x by up to 0.3."""
    return sample_affine(images, (1.0, 0.3 * level * sign, 0.0, 1.0, 0, 0), "zero")


def _shear_y(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Slant along y by up to 0.3."""
    return sample_affine(images, (1.0, 0.0, 0.3 * level * sign, 1.0, 0, 0), "zero")


def _translate_x(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Move along x by up to a third of the width."""
    shift = level * sign * images.shape[3] / 3
    return sample_affine(images, (1.0, 0.0, 0.0, 1.0, shift, 0), "zero")


def _translate_y(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Move along y by up to a third of the height."""
    shift = level * sign * images.shape[2] / 3
    return sample_affine(images, (1.0, 0.0, 0.0, 1.0, 0, shift), "zero")


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "solarize": _solarize,
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
