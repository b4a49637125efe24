from __future__ import annotations

import pytest
import torch

from robustlib.core import devices


def test_bfloat16_is_used_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that only emulates bfloat16 says yes, unless it is asked without emulation."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for real in (True, False):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, r=real: including_emulation or r,
        )
        assert devices.trains_in_bfloat16(gpu) is real
    for capability in ("amx_bf16", "avx512_bf16", "avx512_f"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capability: {c: True})
        assert devices.trains_in_bfloat16(cpu) is (capability != "avx512_f")
        with devices.training_autocast(cpu):
            assert torch.is_autocast_enabled("cpu") is (capability != "avx512_f")


def test_devices_by_name() -> None:
    assert devices.pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="Did you mean 'cuda'"):
        devices.pick_device("cuda:0x")
    if not torch.cuda.is_available():
        assert devices.pick_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="no GPU is usable"):
            devices.pick_device("cuda")
