"""Training: one loop for all recipes, resumable, its models found again in the store."""

from robustlib.training.augmentation import AUGMENTATIONS, flip_and_shift
from robustlib.training.jobs import train
from robustlib.training.loading import Loader, resident
from robustlib.training.loop import Budget, TrainingDivergedError, channels_last
from robustlib.training.trained import StoredModel, TrainedModel, epochs_of, overview

__all__ = [
    "AUGMENTATIONS",
    "Budget",
    "Loader",
    "StoredModel",
    "TrainedModel",
    "TrainingDivergedError",
    "channels_last",
    "epochs_of",
    "flip_and_shift",
    "overview",
    "resident",
    "train",
]
