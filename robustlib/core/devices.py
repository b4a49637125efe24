"""Which device to compute on, and whether bfloat16 pays there."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from robustlib.core.checks import check_name

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str = "auto") -> torch.device:
    """The device named by "cpu", "cuda" or "auto" (a GPU if there is one).

    Raises:
        ValueError: unknown name, or "cuda" without a usable GPU.
    """
    check_name(name, DEVICES, "device")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError('device "cuda" was asked for, but no GPU is usable here; use "auto".')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def trains_in_bfloat16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies bfloat16 matrices, so that training uses them.

    That is: GPUs that support it, and CPUs with AMX (2.5 to 4 times faster than float32 there) or
    with AVX512-BF16 (1.3 times).
    Only training runs under it; every evaluation and attack is float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities()
    return bool(can.get("amx_bf16") or can.get("avx512_bf16"))


def training_autocast(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 autocast where `trains_in_bfloat16`, else a no-op.

    Weights are converted again in each layer: the cache that autocast has for them lives until the
    outermost autocast ends, so that within another one each step would compute with old weights.
    """
    return torch.autocast(
        device.type,
        dtype=torch.bfloat16,
        enabled=trains_in_bfloat16(device),
        cache_enabled=False,
    )


def sent(values: Tensor, device: torch.device) -> Tensor:
    """`values`, which lie in the memory of the host, on `device`.

    A GPU gets them in the order of its work; the host doesn't wait until it is done with that.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
