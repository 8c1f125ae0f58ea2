"""The demo: 480 messages, three ways of fine-tuning one small model, one table, offline."""

from luthier.demo.show import demo

__all__ = ["demo"]
