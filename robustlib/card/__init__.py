"""A report card of anybody's classifier: first, what a user's words mean and whether they fit."""

from robustlib.card.images import CardImages, load_images
from robustlib.card.model import CardModel, Preparation, card_model, load_model
from robustlib.card.slips import Slip, slips

__all__ = [
    "CardImages",
    "CardModel",
    "Preparation",
    "Slip",
    "card_model",
    "load_images",
    "load_model",
    "slips",
]
