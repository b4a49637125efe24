"""Classifiers. Every model takes float32 images in [0, 1] and normalises inside."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib.core.checks import check_module, check_name, check_number, check_seed, check_whole
from robustlib.core.identity import Registry, fingerprint


class Normalise(nn.Module):
    """Map pixels from [0, 1] to about unit scale: (x - mean) / std, by channel.

    The default is one fixed map, to [-2, 2], for every data set (this project's choice): it keeps
    models and attack radii independent of the statistics of the training set.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.25, 0.25, 0.25)
    ) -> None:
        super().__init__()
        for name, values, above in (("mean", mean, False), ("std", std, True)):
            if len(values) != 3:
                raise ValueError(f"{name} must be three numbers, one a channel, got {values!r}.")
            checked = [check_number(x, name, low=0, above=above) for x in values]
            constant = torch.tensor(checked, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, 3, H, W) in [0, 1] to float32 (N, 3, H, W)."""
        return (images - self.mean) / self.std


class ConvNorm(nn.Sequential):
    """A convolution without bias, then batch norm; in eval mode both in one convolution.

    There the norm is a fixed scale and shift of each channel, which the weights and a bias take
    over: the same function, up to rounding, in fewer passes.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        conv, norm = self
        if norm.training:
            return norm(conv(features))
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        bias = norm.bias - mean * scale
        return F.conv2d(features, weight, bias, conv.stride, conv.padding)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ConvNorm(inputs, outputs, 3, stride),
            nn.ReLU(inplace=True),
            ConvNorm(outputs, outputs, 3, 1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        total = self.residual(features)
        total += self.shortcut(features)  # in place: nothing else holds it
        return torch.relu_(total)


def residual_network(classes: int, image_size: int, *, widths: Sequence[int]) -> nn.Module:
    """A stem and a `ResidualBlock` for each of `widths`, with halvings in between.

    The stem halves the resolution at once, which makes it several times faster on a CPU than
    the usual CIFAR networks of this size. Larger images are halved more often.
    """
    stem: list[nn.Module] = [ConvNorm(3, widths[0], 3, 2), nn.ReLU(inplace=True)]
    stem += [nn.MaxPool2d(2)] * max(0, (image_size // 32).bit_length() - 1)
    blocks = [
        ResidualBlock(inputs, outputs, stride=1 if i == 0 else 2)
        for i, (inputs, outputs) in enumerate(pairwise((widths[0], *widths)))
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(Normalise(), *stem, *blocks, *head)


def small_resnet(classes: int, image_size: int) -> nn.Module:
    """A residual network of 0.28 M parameters for small images (this project's choice).

    `benchmarks/networks.py` chose its widths, by accuracy for the time of training.
    """
    return residual_network(classes, image_size, widths=(16, 64, 128))


def small_vgg(classes: int, image_size: int) -> nn.Module:
    """A plain network of 0.30 M parameters: convolutions and poolings, and no shortcut.

    After Simonyan and Zisserman (2015), with this project's widths: as large as `small_resnet`, to
    tell what depends on the architecture. Larger images are halved more often.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((3, 24, 48, 96)):
        layers += [ConvNorm(inputs, outputs, 3, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers[3:3] = [nn.MaxPool2d(2)] * max(0, (image_size // 32).bit_length() - 1)
    for inputs, outputs in pairwise((96, 96, 192)):
        layers += [ConvNorm(inputs, outputs, 3, 1), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, classes)]
    return nn.Sequential(Normalise(), *layers, *head)


def _torchvision(name: str) -> Callable[[int, int], nn.Module]:
    def build_model(classes: int, image_size: int) -> nn.Module:
        import torchvision  # takes seconds, which users of small_resnet need not wait for

        network = torchvision.models.get_model(name, weights=None, num_classes=classes)
        if image_size <= 64:  # the stem of He et al. for CIFAR: keep the resolution
            network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            network.maxpool = nn.Identity()
        return nn.Sequential(Normalise(), network)

    return build_model


ARCHITECTURES: Registry[Callable[[int, int], nn.Module]] = Registry(
    small_resnet=small_resnet,
    small_vgg=small_vgg,
    resnet18=_torchvision("resnet18"),
    resnet50=_torchvision("resnet50"),
)


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
    classes = check_whole(classes, "classes", low=2)
    image_size = check_whole(image_size, "image_size", low=1)
    with torch.random.fork_rng(devices=[]), _float32_by_default():
        torch.manual_seed(check_seed(seed))
        return ARCHITECTURES[architecture](classes, image_size)


@contextmanager
def _float32_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# --- Models that were not trained here -----------------------------------------------------------


@dataclass(frozen=True)
class Classifier:
    """A network with what tables show of it. Make one of your own network with `wrap`.

    Attributes:
        recipe: how it was made, in a word; models that differ in the seed only share it.
        seed: training seed.
        architecture: name of its architecture.
        model: maps float32 (N, 3, H, W) in [0, 1] to logits (N, classes).
    """

    recipe: str
    seed: int
    architecture: str
    model: nn.Module = field(repr=False)

    @property
    def name(self) -> str:
        """Recipe and seed, such as "mtlat-0": what the column model of a table shows."""
        return f"{self.recipe}-{self.seed}"

    def identity(self) -> str:
        """Under what its results are stored: a hash of weights, buffers, settings and code.

        Taken anew at each call, so that changed weights never meet an old result.

        Raises:
            UnidentifiedError: the network holds an object whose state can't be read.
        """
        return fingerprint(self.model, registries=True)


def wrap(
    module: nn.Module | str | Path,
    *,
    name: str,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output: str | int | None = None,
) -> Classifier:
    """A network of your own, ready for `evaluate`, `sanity_table` and all that follows.

    Args:
        module: any network, from torchvision, timm or elsewhere, on the device where it is to
            run; or the path of a TorchScript file. It is used, not copied.
        name: what tables call it. Give models that differ in the training seed only one name.
        seed: its training seed, if there are several.
        mean: with `std`, by channel, if the network wants normalised images, for example
            (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225) for many trained on ImageNet; else it
            is handed pixels in [0, 1].
        std: see `mean`.
        output: where the logits are if the network doesn't return them alone: a key, a position
            or an attribute, such as "logits".

    Raises:
        ValueError: no network, a file that can't be read as TorchScript, or bad constants.
    """
    network = _load_script(Path(module)) if isinstance(module, str | Path) else check_module(module)
    architecture = type(network).__name__
    if isinstance(network, torch.jit.ScriptModule):
        architecture = getattr(network, "original_name", architecture)
    if (mean is None) != (std is None):
        raise ValueError("give mean and std together, or neither.")
    if output is not None:
        network = Picked(network, output)
    if mean is not None and std is not None:
        place = next((t.device for t in (*network.parameters(), *network.buffers())), None)
        training = network.training
        network = nn.Sequential(Normalise(mean, std).to(place), network).train(training)
    return Classifier(str(name), check_seed(seed), architecture, network)


class Picked(nn.Module):
    """The logits of a network that returns more than these."""

    def __init__(self, network: nn.Module, output: str | int) -> None:
        super().__init__()
        self.network = network
        self.output = output
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        """What stands at the key, position or attribute `output`.

        Raises:
            ValueError: there is no such thing.
        """
        found: Any = self.network(images)
        try:
            if isinstance(self.output, str) and not isinstance(found, Mapping):
                return getattr(found, self.output)
            return found[self.output]
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(
                f"the output of the network, a {type(found).__name__}, has no {self.output!r}."
            ) from None


def _load_script(file: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(file, map_location="cpu")
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "empty"
        raise ValueError(
            f"{file} can't be read as a TorchScript file ({reason}). Build the network in Python, "
            "load its weights and hand it over itself."
        ) from error
