"""Counter-based random numbers: the n-th number of an image is a pure function of its key.

A `torch.Generator` hands out numbers in the order of the calls, so what an image gets
depends on its neighbours in the batch. Here every image has a 64-bit key, hashed from
(seed, image id, name, severity), and its n-th number is a hash of that key and n. The batch
size, the order and the number of workers make no difference, and integer arithmetic makes the
hashed bits, and so the uniforms and integers, the same on every device. Normals go through
`log` and `cos` and agree across devices to rounding.

The hash is a 32-bit multiply and xor-shift permutation ("lowbias32", C. Wellons, 2018), in
int32 with wraparound. It serves simulation and is not cryptographic.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_MULTIPLIER_1 = 0x7FEB352D
_MULTIPLIER_2 = 0x846CA68B - 2**32  # as a signed 32-bit number
_GOLDEN = 0x9E3779B9 - 2**32


def derive_seed(*parts: int | str) -> int:
    """Return a seed in 0 .. 2**63 - 1 that depends on every part, its type and the order.

    The same on every machine and Python version: the first 8 bytes of SHA-256 over the
    parts. Use it wherever one seed must become many, say one for each run of a study.
    Raises `ValueError` for a part that is not an int or a str.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise ValueError(f"derive_seed takes int and str parts, got {part!r}.")
        text = str(part).encode()
        digest.update(f"{type(part).__name__}:{len(text)}:".encode() + text)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def _shift_xor(x: Tensor, bits: int) -> Tensor:
    """`x ^= x >> bits`, in place, as a logical shift of the 32 bits."""
    return x.bitwise_xor_((x >> bits).bitwise_and_((1 << (32 - bits)) - 1))


def _mix(x: Tensor) -> Tensor:
    """Permute the 2**32 values of an int32 tensor, in place (lowbias32)."""
    _shift_xor(x, 16).mul_(_MULTIPLIER_1)
    _shift_xor(x, 15).mul_(_MULTIPLIER_2)
    return _shift_xor(x, 16)


def _hashed_counters(start: int, count: int, device: torch.device) -> Tensor:
    """The hashes of start .. start + count - 1, which are the same for every image."""
    counters = torch.arange(start, start + count, device=device)
    return _mix(counters.to(torch.int32).mul_(_GOLDEN))


def _signed(word: int) -> int:
    """Return the low 32 bits of `word` as a signed number."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


class Stream:
    """Random numbers for a batch of images, one independent sequence for each image.

    seed: any int. ids: int64 (N,), any values, on the device where the numbers are wanted.
    name, severity: what the numbers are for; another use gets other numbers.

    Each method takes the shape for one image and returns a tensor (N, *shape). Every call
    continues where the last one stopped, so the order of the calls matters and the batch
    doesn't. A stream holds 2**32 numbers an image.
    """

    def __init__(self, seed: int, ids: Tensor, name: str, severity: int = 0) -> None:
        if ids.dtype != torch.int64 or ids.ndim != 1:
            raise ValueError(
                f"ids must be int64 of shape (N,), got {ids.dtype} of {tuple(ids.shape)}."
            )
        base = derive_seed(seed, name, severity)
        low, high = _signed(base), _signed(base >> 32)
        id_low = (((ids + 2**31) & 0xFFFFFFFF) - 2**31).to(torch.int32)
        id_high = (ids >> 32).to(torch.int32)
        first = _mix(_mix(_mix(id_low ^ low) + id_high) + high)
        second = _mix(_mix(_mix(id_low + high) ^ id_high) + (low ^ _GOLDEN))
        self._keys = first[:, None], second[:, None]
        self._hash: Callable[[int, int, torch.device], Tensor] = _hashed_counters
        self._used = 0
        self.n = ids.shape[0]
        self.device = ids.device

    def split(self, size: int) -> Iterator[Stream]:
        """Streams of `size` images each, fewer in the last, that start where this one is.

        They share what doesn't depend on the image, so that the same calls on each cost less.
        """
        shared = functools.cache(_hashed_counters)
        for keys in zip(*(key.split(size) for key in self._keys), strict=True):
            part = copy.copy(self)
            part._keys, part._hash, part.n = keys, shared, len(keys[0])
            yield part

    def bits(self, count: int) -> Tensor:
        """Return the next `count` words of each image: int32 (N, count), all 32 bits random."""
        start = self._used
        self._used += count
        x = self._hash(start, count, self.device) ^ self._keys[0]
        _shift_xor(x, 16).mul_(_MULTIPLIER_1).add_(self._keys[1])
        _shift_xor(x, 15).mul_(_MULTIPLIER_2)
        return _shift_xor(x, 16)

    def _unit(self, count: int) -> Tensor:
        """Uniforms (k + 1/2) / 2**23: exact in float32, never 0 and never 1.

        k becomes the mantissa of a float from 1 to 2.
        """
        x = (self.bits(count) >> 9).bitwise_and_(0x7FFFFF).bitwise_or_(0x3F800000)
        return x.view(torch.float32).sub_(1 - 2.0**-24)

    def uniform(self, shape: Sequence[int] = (), low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return float32 (N, *shape), uniform on the open interval (`low`, `high`)."""
        x = self._unit(math.prod(shape)).view(self.n, *shape)
        if (low, high) != (0.0, 1.0):
            x = x.mul_(high - low).add_(low)
        return x

    def normal(self, shape: Sequence[int] = (), mean: float = 0.0, std: float = 1.0) -> Tensor:
        """Return float32 (N, *shape), normal by the Box-Muller transform.

        sqrt(-2 ln u) cos(2 pi v) and sqrt(-2 ln u) sin(2 pi v); |z| stays below 5.9.
        """
        count = math.prod(shape)
        half = (count + 1) // 2
        u = self._unit(2 * half)
        radius = u[:, :half].log().mul_(-2.0 * std * std).sqrt_()
        angle = u[:, half:].mul(2.0 * math.pi)
        z = torch.empty_like(u)
        torch.mul(radius, angle.cos(), out=z[:, :half])
        torch.mul(radius, angle.sin_(), out=z[:, half:])
        if mean:
            z.add_(mean)
        return z[:, :count].reshape(self.n, *shape)

    def integers(self, low: int, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Return int64 (N, *shape), uniform on `low` .. `high` - 1 (`high` is left out).

        Takes the upper half of a 32 x 32 bit product, so a value's probability is off by
        less than 2**-32.
        """
        if not 0 < high - low <= 2**31:
            raise ValueError(f"integers needs low < high within 2**31, got {low} and {high}.")
        words = self.bits(math.prod(shape)).to(torch.int64).bitwise_and_(0xFFFFFFFF)
        return (words.mul_(high - low) >> 32).add_(low).view(self.n, *shape)

    def bernoulli(self, p: float, shape: Sequence[int] = ()) -> Tensor:
        """Return bool (N, *shape), true with probability `p` (to 2**-23)."""
        return self.uniform(shape) < p

    def sign(self, shape: Sequence[int] = ()) -> Tensor:
        """Return float32 (N, *shape) of -1 and +1, equally likely."""
        words = self.bits(math.prod(shape)).view(self.n, *shape)
        return (words >> 31).to(torch.float32).mul_(2).add_(1)
