"""The table of adapters: which parameters move. One line each; the contract test walks all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from luthier.adapters.bridge import attach_lora
from luthier.adapters.freeze import freeze, unfreeze_last
from luthier.recipe import Full, Head, LastN, Lora

REFERENCE_WIDTH = 768  # the width at which the default rates of the table hold


@dataclass(frozen=True)
class Adapter:
    """One way to choose the parameters that move.

    Attributes:
        doc: one line.
        attach: (backbone, options, seed) -> backbone; sets requires_grad and wraps where peft does the work.
        lr: default peak learning rate with AdamW at a backbone 768 wide.
        scales: whether the default rate falls with the width, as 768 / width (the matrices that move are as wide
            as the model: Yang et al. 2022, arXiv:2203.03466, table 3, hidden weights under Adam).
        epochs: default number of passes.
        head_lr: default rate of a new last layer beside it.
        decay: default weight decay (decoupled); a linear probe wants much of it.
        stores: what the run keeps: "head", "adapter" or "model".
        identity: attaching changes no output.
        off_is_base: switched off, the base is exactly itself.
        merges: can be added into the base's weights.
        caches: the frozen part ends below something that learns, so its output can be kept.
        bundles: accepts one prompt with several branches (4-D masks).
        packs: accepts rows packed back to back.
        checkpointing: works with gradient checkpointing.
    """

    doc: str
    attach: Callable[[nn.Module, Any, int], nn.Module]
    options: type
    lr: float
    scales: bool
    epochs: float
    head_lr: float
    decay: float
    stores: str
    identity: bool
    off_is_base: bool
    merges: bool
    caches: bool
    bundles: bool
    packs: bool
    checkpointing: bool


def _head(model: nn.Module, options: Head, seed: int) -> nn.Module:
    freeze(model)
    return model


def _full(model: nn.Module, options: Full, seed: int) -> nn.Module:
    model.requires_grad_(True)
    return model


def _last_n(model: nn.Module, options: LastN, seed: int) -> nn.Module:
    unfreeze_last(model, options.n)
    return model


def _lora(model: nn.Module, options: Lora, seed: int) -> nn.Module:
    return attach_lora(model, options, seed)


ADAPTERS: dict[str, Adapter] = {
    "head": Adapter(
        doc="feature extraction: the pretrained model is frozen, only the new last layer learns, on cached features",
        attach=_head, options=Head, lr=1e-3, scales=False, epochs=30, head_lr=1e-3, decay=1.0, stores="head",
        identity=True, off_is_base=True, merges=True, caches=True, bundles=True, packs=True, checkpointing=True,
    ),
    "full": Adapter(
        doc="full fine-tuning: every parameter learns",
        attach=_full, options=Full, lr=5e-5, scales=True, epochs=5, head_lr=3e-3, decay=0.01, stores="model",
        identity=True, off_is_base=False, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "last-n": Adapter(
        doc="the last n blocks, the final norm and the new last layer learn, on cached activations below them",
        attach=_last_n, options=LastN, lr=1e-4, scales=True, epochs=8, head_lr=3e-3, decay=0.01, stores="model",
        identity=True, off_is_base=False, merges=True, caches=True, bundles=True, packs=True, checkpointing=True,
    ),
    "lora": Adapter(
        doc="low-rank updates beside every linear layer of every block (Hu et al. 2021, arXiv:2106.09685)",
        attach=_lora, options=Lora, lr=5e-4, scales=True, epochs=8, head_lr=3e-3, decay=0.01, stores="adapter",
        identity=True, off_is_base=True, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
}  # fmt: skip


def default_lr(kind: str, width: int) -> float:
    """The peak rate of a bare name on a backbone this wide; never above ten times the table's."""
    adapter = ADAPTERS[kind]
    return adapter.lr * min(10.0, REFERENCE_WIDTH / width) if adapter.scales else adapter.lr
