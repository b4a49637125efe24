"""Training: one loop for all recipes, resumable, its models found again in the store."""

from robustlib.training.augmentation import AUGMENTATIONS, flip_and_shift
from robustlib.training.loading import Loader
from robustlib.training.loop import (
    Budget,
    TrainedModel,
    TrainingDivergedError,
    channels_last,
    epochs_of,
    overview,
    train,
)

__all__ = [
    "AUGMENTATIONS",
    "Budget",
    "Loader",
    "TrainedModel",
    "TrainingDivergedError",
    "channels_last",
    "epochs_of",
    "flip_and_shift",
    "overview",
    "train",
]
