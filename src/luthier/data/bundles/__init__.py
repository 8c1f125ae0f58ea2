"""The only place that pads, packs or cuts a batch into micro-batches.

A bundle is one prompt with K branches: the prompt's tokens once, then the branches one after the other. A tree branches
again and again.
"""

from __future__ import annotations

from luthier.data.bundles.arrange import FORMS, Arrangement, arrange, cost
from luthier.data.bundles.lay import Batch, Item, lay, lay_plain
from luthier.data.bundles.rectangle import cut, join, pad
from luthier.data.bundles.tree import Query, Tree, grow, lay_trees, shared

__all__ = [
    "FORMS", "Arrangement", "Batch", "Item", "Query", "Tree", "arrange", "cost", "cut", "grow", "join", "lay", "lay_plain",
    "lay_trees", "pad", "shared",
]  # fmt: skip
