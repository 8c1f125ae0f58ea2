"""Which parameters move."""

from luthier.adapters.table import ADAPTERS, Adapter, default_lr

__all__ = ["ADAPTERS", "Adapter", "default_lr"]
