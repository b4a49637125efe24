"""The corruptions as a transform of torchvision, for the pipeline of a data loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from robustlib import corruptions
from robustlib.core.checks import check_images, check_names, check_number
from robustlib.core.randomness import Stream

_LOSSLESS_MODES = ("RGB", "L", "P", "1")  # of PIL images, to RGB


class RandomCorruption(v2.Transform):
    """Corrupt each image, with probability `p`, by one of `names` drawn for it.

        transform = v2.Compose([RandomCorruption("imagenet_c_extra", p=0.5), v2.ToImage(), ...])

    names: a suite of `corruptions.names`, or names. severity: 1 to 5, or "random" for one, or
    an amount, drawn for each image. options: by corruption, as {"glass_blur": {"swap": True}}.
    Draws come from torch's global generator, as those of torchvision do: `torch.manual_seed`
    repeats them, and the workers of a data loader differ.

    A sample is an image, or a tuple, list or dict with images among other things. Images are
    tensors (..., 3, H, W) and NumPy arrays (H, W, 3), uint8 or float32 in [0, 1], and PIL images;
    each comes back as its kind, uint8 and PIL images rounded. A PIL image that is grey, black
    and white or has a palette comes back as RGB. Put the transform before a normalisation.
    Numbers, texts, vectors, and the masks and boxes of `tv_tensors` pass through, so leave out
    the geometric family where these must follow the pixels.

    Raises `UnknownNameError` for an unknown name, suite or option, and `ValueError` for another
    bad argument. A call raises `ValueError` for a sample without an image, and for a tensor or
    array of two or more dimensions, a PIL image or a video that is no such image: with
    transparency, more than 8 bits, another number of channels or another range.
    """

    def __init__(
        self,
        names: str | Sequence[str],
        *,
        severity: corruptions.Severity = "random",
        p: float = 1.0,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        chosen = corruptions.names(names) if isinstance(names, str) else names
        self.names = check_names(chosen, corruptions.names(), "corruption")
        self.severity = corruptions.check_strength(severity)
        self.p = check_number(p, "p, the probability,", low=0, high=1)
        self.options = corruptions.check_options_by_name(options, self.names)

    def extra_repr(self) -> str:
        """The arguments, for `print`."""
        shown = f"names={self.names}, severity={self.severity!r}, p={self.p}"
        return f"{shown}, options={self.options}" if self.options else shown

    def forward(self, *inputs: Any) -> Any:
        """The sample with its images corrupted."""
        leaves, structure = tree_flatten(inputs if len(inputs) > 1 else inputs[0])
        found = [_is_image(leaf) for leaf in leaves]
        if not any(found):
            kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
            raise ValueError(
                "the sample has no image: no PIL image, no tensor (..., 3, H, W) and no NumPy "
                f"array (H, W, 3), but {kinds}."
            )
        seed = int(torch.randint(2**62, (), device="cpu"))
        out = [
            self._corrupt_any(leaf, seed) if image else leaf
            for leaf, image in zip(leaves, found, strict=True)
        ]
        return tree_unflatten(out, structure)

    def _corrupt_any(self, image: Any, seed: int) -> Any:
        if isinstance(image, Image.Image):
            pixels = functional.pil_to_tensor(image.convert("RGB"))
            return functional.to_pil_image(self._corrupt(pixels, seed))
        if isinstance(image, np.ndarray):
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
            return self._corrupt(pixels, seed).permute(1, 2, 0).contiguous().numpy()
        if isinstance(image, tv_tensors.Image):
            return tv_tensors.wrap(self._corrupt(image.as_subclass(Tensor), seed), like=image)
        return self._corrupt(image, seed)

    def _corrupt(self, images: Tensor, seed: int) -> Tensor:
        batch = images.detach()
        batch = batch.flatten(end_dim=-4) if batch.ndim > 3 else batch[None]
        if images.dtype == torch.uint8:
            batch = batch.float().div_(255)
        out = check_images(batch).clone(memory_format=torch.contiguous_format)
        ids = torch.arange(len(batch), device=batch.device)
        ids = ids[Stream(seed, ids, "RandomCorruption").bernoulli(self.p)]
        out[ids] = corruptions.augment(
            out[ids],
            self.names,
            seed=seed,
            ids=ids,
            severity=self.severity,
            groups=None,
            options=self.options,
        )
        if images.dtype == torch.uint8:
            out = out.mul_(255).round_().to(torch.uint8)
        return out.view(images.shape)


def _is_image(leaf: object) -> bool:
    """Whether a part of a sample is an image; `ValueError` if it is one of an unknown form."""
    if isinstance(leaf, Image.Image):
        if leaf.has_transparency_data:
            raise ValueError(
                f"a PIL image of mode {leaf.mode} has transparency, which a corrupted image "
                "can't keep; paste it on a background, or drop that by "
                'image.convert("RGBA").convert("RGB").'
            )
        if leaf.mode not in _LOSSLESS_MODES:
            raise ValueError(
                f"a PIL image must be of mode {', '.join(_LOSSLESS_MODES)}, got {leaf.mode}; see "
                'whether image.convert("RGB") keeps what matters.'
            )
        return True
    if isinstance(leaf, tv_tensors.Video):
        raise ValueError("a video is no image; give its frames as tv_tensors.Image(video).")
    if isinstance(leaf, tv_tensors.TVTensor) and not isinstance(leaf, tv_tensors.Image):
        return False
    if not isinstance(leaf, Tensor | np.ndarray) or leaf.ndim < 2:
        return False
    if isinstance(leaf, Tensor):
        known = leaf.dtype in (torch.uint8, torch.float32)
        if known and leaf.ndim >= 3 and leaf.shape[-3] == 3:
            return True
        raise ValueError(
            "a tensor of two or more dimensions must be an image, uint8 or float32 in [0, 1] of "
            f"shape (..., 3, H, W), got {leaf.dtype} of {tuple(leaf.shape)}. Grey images: "
            "x.expand(3, -1, -1); (H, W, 3): x.permute(2, 0, 1); 16 bits: x.float() / 65535; "
            "float64: x.float(). A mask belongs in tv_tensors.Mask."
        )
    if leaf.dtype in (np.uint8, np.float32) and leaf.ndim == 3 and leaf.shape[2] == 3:
        return True
    raise ValueError(
        "an array of two or more dimensions must be an image, uint8 or float32 in [0, 1] of shape "
        f"(H, W, 3), got {leaf.dtype} of {leaf.shape}. Grey images: np.stack([x] * 3, 2); "
        "(3, H, W): x.transpose(1, 2, 0); 16 bits: (x / 65535).astype(np.float32); float64: "
        "x.astype(np.float32). Batches go in as tensors, and a mask in tv_tensors.Mask."
    )
