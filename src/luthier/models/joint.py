"""What a run of several tasks keeps in `model/`, and reading back all of it or one task.

The trunk lies there as the adapter or the whole model does after any run. head.safetensors holds every head, as
`<task>/output.weight` and `<task>/output.bias`, and under `output.weight` the trunk's own output layer where that alone
learned to write.
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
from luthier.models import load, saved, spoken
from luthier.models.heads import Head, TaskModel
from luthier.models.multitask import MultiTask, ReaderModel
from luthier.models.saved import About


def save(model: MultiTask, about: About, tokenizer: Any, folder: Path) -> int:
    """Write the folder; returns the bytes of weights in it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}/{key}": p.detach().cpu().contiguous()
        for name, task in model.tasks.items() if isinstance(task, TaskModel) for key, p in task.head.weights().items()
    }  # fmt: skip
    backbone: Any = model.backbone
    with load.quiet():
        if about.stores == "model":
            backbone.save_pretrained(str(folder))
        elif about.stores == "adapter":
            bridge.save(backbone, folder, about.base)
        elif _writes(about):
            tensors |= spoken.output_of(backbone)
        tokenizer.save_pretrained(str(folder))
    save_file(tensors, folder / "head.safetensors")
    saved.keep(about, folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def parts_of(about: About) -> dict[str, About]:
    """What joins each task to the trunk."""
    return {name: saved.plain(values) for name, values in (about.tasks or {}).items()}


def _writes(about: About) -> tuple[str, ...]:
    return tuple(name for name, part in parts_of(about).items() if part.family == "language")


def read(folder: Path) -> tuple[MultiTask, About, load.Base]:
    """The tuned model of all tasks, in evaluation mode.

    Raises:
        UserError: if the base is gone or is not the one that the run was trained on.
    """
    about = saved.about(folder)
    writes, parts, tensors = _writes(about), parts_of(about), load_file(folder / "head.safetensors")
    if about.stores == "model":
        base = load.find(str(folder))
        backbone = load.causal(base, attention=about.attention) if writes else load.backbone(base, attention=about.attention)
    else:
        base, backbone = (spoken if writes else saved).started_from(about)
        saved.same_base(about, backbone)
        if about.stores == "adapter":
            backbone = bridge.load(backbone, folder)
        elif writes:
            spoken.set_output(untie(backbone), tensors)
    base = replace(base, tokenizer=load.tokenizer_of(str(folder)))
    heads = {name: _head(name, tensors) for name in parts if name not in writes}
    poolings = {name: part.pooling for name, part in parts.items()}
    return MultiTask(backbone.eval(), heads, poolings, writes).eval(), about, base


def heads_of(folder: Path) -> dict[str, tuple[About, Head]]:
    """The heads that a run left, for one that goes on from it."""
    tensors = load_file(folder / "head.safetensors")
    parts = parts_of(saved.about(folder))
    return {name: (part, _head(name, tensors)) for name, part in parts.items() if part.family == "labels"}


def _head(name: str, tensors: Mapping[str, torch.Tensor]) -> Head:
    own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
    weight = own["output.weight"]
    head = Head(weight.shape[1], weight.shape[0], bias="output.bias" in own)
    head.load_state_dict(own, strict=False)  # shift and scale were folded in
    return head


def part(folder: Path, told: About) -> tuple[Any, About, load.Base]:
    """One task of a run: its model on the shared trunk."""
    assert told.part is not None
    where, _, name = told.part.rpartition(":")
    model, _, base = read(folder / where)
    return model.tasks[name].eval(), told, base


def trunk(folder: Path, writes: bool) -> tuple[load.Base, nn.Module]:
    """What a later run starts from: the trunk with its adapter merged, with its output layer where the run writes."""
    model, _, base = read(folder)
    whole: Any = bridge.merged(model.backbone)
    return base, whole if writes else body_of(whole)


def body_of(whole: Any) -> nn.Module:
    """The model below the output layer, where there is one; of an encoder-decoder that writes, its encoder."""
    if whole.get_output_embeddings() is None:
        found: nn.Module = whole
    else:
        found = whole.get_encoder() if getattr(whole.config, "is_encoder_decoder", False) else whole.base_model
    return found


def alone(model: Any, about: About) -> tuple[Any, About]:
    """One task as a model that needs no trunk but its own.

    A head on a model that writes becomes a head on the plain backbone, with the adapter merged: what the adapter's files
    name are layers of a model with an output layer.
    """
    if not isinstance(model, ReaderModel):
        return model, replace(about, part=None)
    body = body_of(bridge.merged(model.backbone))
    return TaskModel(body.eval(), model.head, model.pooling).eval(), replace(about, part=None, stores="model")
