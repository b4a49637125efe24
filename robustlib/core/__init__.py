"""What every floor above uses: checks, random numbers, paths, devices, checked files, the store."""

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
