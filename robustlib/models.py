"""Classifiers. Every model takes float32 images in [0, 1] and normalises inside."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustlib.checks import check_name


class Normalise(nn.Module):
    """Map pixels from [0, 1] to about unit scale: (x - 0.5) / 0.25, for every data set.

    One fixed map (this project's choice) keeps models and attack radii independent of the
    statistics of the training set.
    """

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, 3, H, W) in [0, 1] to float32 (N, 3, H, W) in [-2, 2]."""
        return (images - 0.5) * 4.0


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv_norm(inputs, outputs, 3, stride),
            nn.ReLU(inplace=True),
            _conv_norm(outputs, outputs, 3, 1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return torch.relu(self.residual(features) + self.shortcut(features))


def small_resnet(classes: int, image_size: int) -> nn.Module:
    """A residual network of 0.16 M parameters for small images (this project's choice).

    The stem halves the resolution at once, which makes it several times faster on a CPU than
    the usual CIFAR networks of this size. Larger images are halved more often.
    """
    widths = (16, 48, 96)
    stem: list[nn.Module] = [_conv_norm(3, widths[0], 3, 2), nn.ReLU(inplace=True)]
    stem += [nn.MaxPool2d(2)] * max(0, (image_size // 32).bit_length() - 1)
    blocks = [
        ResidualBlock(inputs, outputs, stride)
        for inputs, outputs, stride in zip((widths[0], *widths), widths, (1, 2, 2), strict=False)
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(Normalise(), *stem, *blocks, *head)


def _torchvision(name: str) -> Callable[[int, int], nn.Module]:
    def build_model(classes: int, image_size: int) -> nn.Module:
        import torchvision  # takes seconds, which users of small_resnet need not wait for

        network = torchvision.models.get_model(name, weights=None, num_classes=classes)
        if image_size <= 64:  # the stem of He et al. for CIFAR: keep the resolution
            network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            network.maxpool = nn.Identity()
        return nn.Sequential(Normalise(), network)

    return build_model


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "small_resnet": small_resnet,
    "resnet18": _torchvision("resnet18"),
    "resnet50": _torchvision("resnet50"),
}


def build(architecture: str, *, classes: int, image_size: int, seed: int) -> nn.Module:
    """A freshly initialised classifier, a function of its arguments only.

    Args:
        architecture: one of `ARCHITECTURES`. torchvision's networks get a CIFAR stem (3x3, no
            pooling) for images of at most 64 px.
        classes: number of outputs, 2 or more.
        image_size: side of the images in pixels.
        seed: seeds the initial weights.

    Returns a model that maps float32 (N, 3, H, W) in [0, 1] to logits (N, classes).

    Raises:
        UnknownNameError: unknown architecture.
        ValueError: fewer than two classes.
    """
    check_name(architecture, ARCHITECTURES, "architecture")
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {classes}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[architecture](classes, image_size)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
