"""What a run that teaches writing keeps in `model/`, and reading it back.

A whole model loads in plain transformers; an adapter in plain peft on its base; for `head` the new output layer lies
alone in head.safetensors (`output.weight`, and `output.bias` where there is one).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.adapters import bridge
from luthier.adapters.freeze import untie
from luthier.adapters.structure import plain
from luthier.errors import UserError
from luthier.models import load, saved
from luthier.models.language import LanguageModel
from luthier.models.saved import ABOUT, About


def save(model: LanguageModel, about: About, tokenizer: Any, folder: Path) -> int:
    """Write the folder; returns the bytes of weights in it."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone: Any = model.backbone
    with load.quiet():
        if about.stores == "model":
            backbone.save_pretrained(str(folder))
        elif about.stores == "adapter":
            bridge.save(backbone, folder, about.base)
        else:
            save_file(output_of(backbone), folder / "head.safetensors")
        tokenizer.save_pretrained(str(folder))
    saved.keep(about, folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def started_from(told: About) -> tuple[load.Base, nn.Module]:
    """The causal model that a run started from: a pretrained one, or an earlier run's."""
    earlier = Path(told.base)
    if (earlier / ABOUT).is_file() and saved.about(earlier).stores != "model":
        return tuned(earlier)
    base = load.find(told.base, told.revision, random=told.random)
    return base, load.causal(base, attention=told.attention, quantize=told.quantize)


def tuned(folder: Path) -> tuple[load.Base, nn.Module]:
    """The model of an earlier run as one plain model: its adapter merged.

    Raises:
        UserError: if that run did not teach writing: its output layer is no language model's.
    """
    told = saved.about(folder)
    if told.family == "multitask" and any(part["family"] == "language" for part in (told.tasks or {}).values()):
        from luthier.models import joint

        return joint.trunk(folder, writes=True)
    if told.family != "language":
        raise UserError(
            f"The run in {str(folder)!r} learned {told.task}: it has no output layer that writes.",
            hint="Start from a run whose method is sft, or from the pretrained model.",
        )
    model, _, base = read(folder)
    return base, bridge.merged(model.backbone)


def read(folder: Path) -> tuple[LanguageModel, About, load.Base]:
    """The tuned model in evaluation mode.

    Raises:
        UserError: if the base is gone or is not the one that the run was trained on.
    """
    told = saved.about(folder)
    if told.part is not None:
        from luthier.models import joint

        return joint.part(folder, told)
    if told.stores == "model":
        base = load.find(str(folder))
        backbone = load.causal(base, attention=told.attention)
    else:
        base, backbone = started_from(told)
        saved.same_base(told, backbone)
        if told.stores == "adapter":
            backbone = bridge.load(backbone, folder)
        else:
            set_output(untie(backbone), load_file(folder / "head.safetensors"))
    base = replace(base, tokenizer=load.tokenizer_of(str(folder)))
    return LanguageModel(backbone.eval()).eval(), told, base


def set_output(layer: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """The output layer from `output.weight` and `output.bias`."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(tensors[f"output.{name}"])


def output_of(backbone: Any) -> dict[str, torch.Tensor]:
    """The output layer as `output.weight` and `output.bias`."""
    layer = plain(backbone).get_output_embeddings()  # type: ignore[operator]
    return {f"output.{name}": p.detach().cpu().contiguous() for name, p in layer.named_parameters()}
