"""What teaches. One page per method: the objective on top, the wiring below."""

from __future__ import annotations

import importlib
from typing import Any

from luthier.recipe import SftSettings

# kind -> module:class; the class is imported when it is asked for.
METHODS: dict[str, str] = {
    "supervised": "luthier.methods.supervised:Supervised",
    "sft": "luthier.methods.sft:Sft",
    "multitask": "luthier.methods.multitask:Multitask",
    "fewshot": "luthier.methods.fewshot:FewShot",
    "reward": "luthier.methods.reward:Reward",
    "preference": "luthier.methods.preference:Preference",
    "ranking": "luthier.methods.ranking:PolicyRanking",
    "setfit": "luthier.methods.setfit:SetFit",
    "ppo": "luthier.methods.ppo:Ppo",
    "grpo": "luthier.methods.grpo:Grpo",
    "rloo": "luthier.methods.rloo:Rloo",
    "reinforce": "luthier.methods.reinforce:Reinforce",
}
WRITTEN = ("text", "prompt,completion", "messages")  # kinds of rows that teach a model to write


def method(settings: Any, kind: str | None = None) -> Any:
    """The method of these settings: the same fields, with its abilities.

    Args:
        kind: of the training rows; `supervised` without a task is `sft` where they hold text to be written.
    """
    if settings.kind == "supervised" and kind in WRITTEN and settings.task is None:
        settings = SftSettings(kind="sft")
    module, _, name = METHODS[settings.kind].partition(":")
    cls = getattr(importlib.import_module(module), name)
    if hasattr(cls, "variant"):  # one name, several learners
        cls = cls.variant(settings)
    return cls(**{key: getattr(settings, key) for key in type(settings).model_fields})
