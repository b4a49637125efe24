"""The corruptions as a transform of torchvision, for the pipeline of a data loader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from robustlib import corruptions
from robustlib.core.checks import check_name, check_nonempty
from robustlib.core.randomness import Stream


class RandomCorruption(v2.Transform):
    """Corrupt each image, with probability `p`, by one of `names` drawn for it.

        transform = v2.Compose([RandomCorruption("imagenet_c_extra", p=0.5), v2.ToImage(), ...])

    names: a suite of `corruptions.names`, or names. severity: 1 to 5, or "random" for one, or
    an amount, drawn for each image. Draws come from torch's global generator, as those of
    torchvision do: `torch.manual_seed` repeats them, and the workers of a data loader differ.

    Takes PIL images and tensors (..., 3, H, W), uint8 or float32 in [0, 1], and gives back what
    it got; uint8 and PIL images are rounded. Put it before a normalisation. Labels, masks and
    boxes pass through, so leave out the geometric family where these must follow the pixels.

    Raises `UnknownNameError` for an unknown name or suite, and `ValueError` for another bad
    argument.
    """

    def __init__(
        self,
        names: str | Sequence[str],
        *,
        severity: corruptions.Severity = "random",
        p: float = 1.0,
    ) -> None:
        super().__init__()
        self.names = corruptions.names(names) if isinstance(names, str) else tuple(names)
        check_nonempty(self.names, "names")
        for name in self.names:
            check_name(name, corruptions.names(), "corruption")
        corruptions.check_strength(severity)
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability, 0 to 1, got {p!r}.")
        self.severity = severity
        self.p = p

    def extra_repr(self) -> str:
        """The arguments, for `print`."""
        return f"names={self.names}, severity={self.severity!r}, p={self.p}"

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """One seed for a call."""
        return {"seed": int(torch.randint(2**62, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """The corrupted image, or batch of images, of the type that came in."""
        if isinstance(inpt, Image.Image):
            image = functional.pil_to_tensor(inpt.convert("RGB"))
            return functional.to_pil_image(self._corrupt(image, params["seed"]))
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.wrap(self._corrupt(inpt.as_subclass(Tensor), **params), like=inpt)
        return inpt if isinstance(inpt, tv_tensors.TVTensor) else self._corrupt(inpt, **params)

    def _corrupt(self, images: Tensor, seed: int) -> Tensor:
        batch = images.reshape(-1, *images.shape[-3:])
        if images.dtype == torch.uint8:
            batch = batch.float().div_(255)
        ids = torch.arange(len(batch), device=batch.device)
        ids = ids[Stream(seed, ids, "RandomCorruption").bernoulli(self.p)]
        out = batch.clone()
        out[ids] = corruptions.augment(
            batch[ids], self.names, seed=seed, ids=ids, severity=self.severity, groups=None
        )
        if images.dtype == torch.uint8:
            out = out.mul_(255).round_().to(torch.uint8)
        return out.view_as(images)
