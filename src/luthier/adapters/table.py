"""The table of adapters: which parameters move. One line each; the contract test walks all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from luthier.adapters import layers
from luthier.adapters.bitfit import attach_bitfit
from luthier.adapters.bottleneck import attach_bottleneck
from luthier.adapters.freeze import freeze, unfreeze_last, untie
from luthier.adapters.gradual import attach_gradual
from luthier.adapters.passed import attach_peft
from luthier.adapters.pissa import attach_pissa
from luthier.adapters.prompts import attach_p_tuning, attach_prefix, attach_prompt
from luthier.adapters.refusals import refused
from luthier.recipe import (
    BitFit,
    Bottleneck,
    Dora,
    Full,
    Gradual,
    Head,
    Ia3,
    LastN,
    Lora,
    LpFt,
    Norm,
    Peft,
    Pissa,
    Prefix,
    Prompt,
    PTuning,
    RsLora,
    read,
)

REFERENCE_WIDTH = 768  # the width at which the default rates of the table hold


@dataclass(frozen=True)
class Adapter:
    """One way to choose the parameters that move.

    Attributes:
        doc: one line.
        how: (model, options, seed, task) -> model; sets requires_grad and wraps where peft does the work.
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
    how: Callable[[nn.Module, Any, int, str], nn.Module]
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

    def attach(self, model: nn.Module, options: Any, seed: int, task: str = "labels") -> nn.Module:
        """Choose what moves on this model.

        Args:
            model: a backbone ("labels"), or a model with its output layer over tokens ("generate").
            options: of the recipe, of the row's own class.
            seed: of the random start.
            task: "labels" or "generate".

        Raises:
            ValueError: with the reason and a neighbour that serves, where the adapter can't stand on this model.
        """
        reason = refused(options.kind, model, task, options)
        if reason is not None:
            raise ValueError(reason)
        return self.how(model, options, seed, task)


def _head(model: nn.Module, options: Head, seed: int, task: str) -> nn.Module:
    """Labels: everything is frozen, the new last layer is the caller's. Text: the output layer, untied, learns."""
    freeze(model)
    if task == "generate":
        untie(model).requires_grad_(True)
    return model


def _full(model: nn.Module, options: Full, seed: int, task: str) -> nn.Module:
    model.requires_grad_(True)
    return model


def _last_n(model: nn.Module, options: LastN, seed: int, task: str) -> nn.Module:
    unfreeze_last(model, options.n)
    return model


def _lp_ft(model: nn.Module, options: LpFt, seed: int, task: str) -> nn.Module:
    """What its second stage moves, for whoever asks without training it: `run` runs the two stages."""
    second = read({"model": "pocket", "adapt": options.then, "data": {"train": "none"}}).adapt
    return ADAPTERS[options.then].attach(model, second, seed, task)


ADAPTERS: dict[str, Adapter] = {
    "head": Adapter(
        doc="feature extraction: the pretrained model is frozen, only the new last layer learns, on cached features",
        how=_head, options=Head, lr=1e-3, scales=False, epochs=30, head_lr=1e-3, decay=1.0, stores="head",
        identity=True, off_is_base=True, merges=True, caches=True, bundles=True, packs=True, checkpointing=True,
    ),
    "full": Adapter(
        doc="full fine-tuning: every parameter learns",
        how=_full, options=Full, lr=5e-5, scales=True, epochs=5, head_lr=3e-3, decay=0.01, stores="model",
        identity=True, off_is_base=False, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "last-n": Adapter(
        doc="the last n blocks, the final norm and the new last layer learn, on cached activations below them",
        how=_last_n, options=LastN, lr=1e-4, scales=True, epochs=8, head_lr=3e-3, decay=0.01, stores="model",
        identity=True, off_is_base=False, merges=True, caches=True, bundles=True, packs=True, checkpointing=True,
    ),
    "gradual": Adapter(
        doc="full fine-tuning that opens the model from the top, a block more each epoch (Howard and Ruder 2018, arXiv:1801.06146)",
        how=attach_gradual, options=Gradual, lr=5e-5, scales=True, epochs=8, head_lr=3e-3, decay=0.01, stores="model",
        identity=True, off_is_base=False, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "lp-ft": Adapter(
        doc="the last layer probed on frozen features, then everything from there: two stages (Kumar et al. 2022, arXiv:2202.10054)",
        how=_lp_ft, options=LpFt, lr=5e-5, scales=True, epochs=5, head_lr=3e-3, decay=0.01, stores="model",
        identity=True, off_is_base=False, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "bitfit": Adapter(
        doc="only the biases learn (Ben Zaken et al. 2022, arXiv:2106.10199); refused where a model has none",
        how=attach_bitfit, options=BitFit, lr=3e-3, scales=False, epochs=8, head_lr=3e-3, decay=0.0, stores="adapter",
        identity=True, off_is_base=True, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "norm": Adapter(
        doc="only the norms learn (Zhao et al. 2024, arXiv:2312.11420)",
        how=layers.attach_norm, options=Norm, lr=3e-3, scales=False, epochs=8, head_lr=3e-3, decay=0.0, stores="adapter",
        identity=True, off_is_base=True, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "lora": Adapter(
        doc="low-rank updates beside every linear layer of every block (Hu et al. 2021, arXiv:2106.09685)",
        how=layers.attach_lora, options=Lora, lr=5e-4, scales=True, epochs=8, head_lr=3e-3, decay=0.01, stores="adapter",
        identity=True, off_is_base=True, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "rslora": Adapter(
        doc="lora scaled by the root of the rank, for high ranks (Kalajdzievski 2023, arXiv:2312.03732)",
        how=layers.attach_rslora, options=RsLora, lr=5e-4, scales=True, epochs=8, head_lr=3e-3, decay=0.01, stores="adapter",
        identity=True, off_is_base=True, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "dora": Adapter(
        doc="lora on directions, magnitudes learned beside them (Liu et al. 2024, arXiv:2402.09353); slower than lora",
        how=layers.attach_dora, options=Dora, lr=5e-4, scales=True, epochs=8, head_lr=3e-3, decay=0.01, stores="adapter",
        identity=True, off_is_base=True, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "pissa": Adapter(
        doc="lora from the principal singular vectors (Meng et al. 2024, arXiv:2404.02948); the base stays as it is",
        how=attach_pissa, options=Pissa, lr=2e-4, scales=True, epochs=8, head_lr=3e-3, decay=0.0, stores="adapter",
        identity=True, off_is_base=True, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "ia3": Adapter(
        doc="learned factors on keys, values and feed-forward activations (Liu et al. 2022, arXiv:2205.05638)",
        how=layers.attach_ia3, options=Ia3, lr=2e-2, scales=False, epochs=8, head_lr=3e-3, decay=0.0, stores="adapter",
        identity=True, off_is_base=True, merges=True, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "prefix": Adapter(
        doc="learned keys and values before the text in every block (Li and Liang 2021, arXiv:2101.00190)",
        how=attach_prefix, options=Prefix, lr=1e-2, scales=False, epochs=8, head_lr=3e-3, decay=0.0, stores="adapter",
        identity=False, off_is_base=True, merges=False, caches=False, bundles=False, packs=False, checkpointing=False,
    ),
    "prompt": Adapter(
        doc="learned embeddings before the text (Lester et al. 2021, arXiv:2104.08691)",
        how=attach_prompt, options=Prompt, lr=1e-2, scales=False, epochs=8, head_lr=3e-3, decay=0.0, stores="adapter",
        identity=False, off_is_base=True, merges=False, caches=False, bundles=False, packs=False, checkpointing=True,
    ),
    "p-tuning": Adapter(
        doc="learned embeddings before the text, made by a small network (Liu et al. 2021, arXiv:2103.10385)",
        how=attach_p_tuning, options=PTuning, lr=1e-3, scales=True, epochs=8, head_lr=3e-3, decay=0.0, stores="adapter",
        identity=False, off_is_base=True, merges=False, caches=False, bundles=False, packs=False, checkpointing=True,
    ),
    "bottleneck": Adapter(
        doc="small networks after attention and feed-forward (Houlsby et al. 2019, arXiv:1902.00751; pfeiffer: 2005.00247)",
        how=attach_bottleneck, options=Bottleneck, lr=1e-3, scales=True, epochs=8, head_lr=3e-3, decay=0.01, stores="adapter",
        identity=True, off_is_base=True, merges=False, caches=False, bundles=True, packs=True, checkpointing=True,
    ),
    "peft": Adapter(
        doc="any other adapter of peft's, such as {kind: peft, type: VERA}; nothing is promised of it",
        how=attach_peft, options=Peft, lr=1e-3, scales=False, epochs=8, head_lr=3e-3, decay=0.0, stores="adapter",
        identity=False, off_is_base=False, merges=True, caches=False, bundles=False, packs=False, checkpointing=False,
    ),
}  # fmt: skip


def default_lr(kind: str, width: int) -> float:
    """The peak rate of a bare name on a backbone this wide; never above ten times the table's."""
    adapter = ADAPTERS[kind]
    return adapter.lr * min(10.0, REFERENCE_WIDTH / width) if adapter.scales else adapter.lr


def positions_taken(options: Any) -> int:
    """How many of the model's positions learned tokens take: the longest row is shorter by so many."""
    if options.kind in ("prefix", "prompt", "p-tuning"):
        return int(options.tokens)
    return int(options.options.get("num_virtual_tokens", 0)) if options.kind == "peft" else 0
