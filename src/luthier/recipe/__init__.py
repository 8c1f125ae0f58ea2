"""The recipe: what a run is, as plain data. Reading, checking and writing it imports no torch."""

from luthier.recipe.read import read, write
from luthier.recipe.settings import (
    Data,
    Full,
    Head,
    HoldOut,
    LastN,
    Lora,
    Model,
    Recipe,
    Settings,
    SupervisedSettings,
    Train,
)

__all__ = [
    "Data", "Full", "Head", "HoldOut", "LastN", "Lora", "Model", "Recipe", "Settings", "SupervisedSettings",
    "Train", "read", "write",
]  # fmt: skip
