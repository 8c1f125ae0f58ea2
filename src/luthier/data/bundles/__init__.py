"""The only place that pads, packs or cuts a batch into micro-batches.

A bundle is one prompt with K branches: the prompt's tokens once, then the branches one after the other.
"""

from __future__ import annotations

from luthier.data.bundles.arrange import FORMS, Arrangement, arrange, cost
from luthier.data.bundles.lay import Batch, Item, lay, lay_plain
from luthier.data.bundles.rectangle import cut, join, pad

__all__ = ["FORMS", "Arrangement", "Batch", "Item", "arrange", "cost", "cut", "join", "lay", "lay_plain", "pad"]
