"""What every floor above uses: checks, random numbers, paths, devices, checked files, the store."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustlib.core.checks import UnknownNameError
    from robustlib.core.devices import pick_device
    from robustlib.core.identity import UnidentifiedError, fingerprint
    from robustlib.core.inference import ProbabilityWarning, TrainModeWarning
    from robustlib.core.randomness import Stream, derive_seed
    from robustlib.core.store import DamagedArtifactWarning, Store, StoreError

__all__ = [
    "DamagedArtifactWarning",
    "ProbabilityWarning",
    "Store",
    "StoreError",
    "Stream",
    "TrainModeWarning",
    "UnidentifiedError",
    "UnknownNameError",
    "derive_seed",
    "fingerprint",
    "pick_device",
]

_HOMES = {
    "DamagedArtifactWarning": "store",
    "ProbabilityWarning": "inference",
    "Store": "store",
    "StoreError": "store",
    "Stream": "randomness",
    "TrainModeWarning": "inference",
    "UnidentifiedError": "identity",
    "UnknownNameError": "checks",
    "derive_seed": "randomness",
    "fingerprint": "identity",
    "pick_device": "devices",
}


def __getattr__(name: str) -> Any:
    """The names above, imported when they are asked for: most of their modules need torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
