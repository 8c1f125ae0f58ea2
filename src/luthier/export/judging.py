"""A reward run as a model that ends in a number: what `export` writes as a sequence-classification model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from luthier.errors import UserError
from luthier.folder import Folder
from luthier.models import reward, saved
from luthier.models.heads import Head, TaskModel
from luthier.models.load import Base
from luthier.models.saved import About

PAD = "<|pad|>"  # of a tokenizer that has no token but EOS to pad with


def as_scores(run: Folder) -> tuple[TaskModel, About, Base]:
    """The run's model with a plain head: of an ensemble of heads their mean, or one number a member where the run takes
    the worst of them or weighs their uncertainty.

    Raises:
        UserError: for an ensemble of adapters.
    """
    told = saved.about(run.model)
    known: dict[str, Any] = told.judging or {}
    if known["kind"] == "adapters":
        raise UserError(
            f"The run {str(run.path)!r} is an ensemble of {known['members']} adapters, which are as many models.",
            hint="An ensemble of heads (members: heads) exports as one model.",
        )
    model, about, base = reward.read(run.model)
    source: Head = model.head
    weight = source.output.weight.detach()
    bias: torch.Tensor | None = source.output.bias
    if known["combine"] == "mean":
        weight, bias = weight.mean(dim=0, keepdim=True), None if bias is None else bias.detach().mean(dim=0, keepdim=True)
    head = Head(weight.shape[1], len(weight), bias=bias is not None, hidden=told.hidden)
    with torch.no_grad():
        head.output.weight.copy_(weight)
        if bias is not None:
            head.output.bias.copy_(bias)
        if source.hidden is not None and head.hidden is not None:
            head.hidden.load_state_dict(source.hidden.state_dict())
    names = () if len(weight) == 1 else tuple(f"member {number}" for number in range(len(weight)))
    about = replace(about, task="regress", labels=names)
    return TaskModel(model.backbone, head, model.pooling).eval(), about, base


def asked(prompt: str, output: str, base: Base) -> Any:
    """Prompt and output as plain code gives them to the tokenizer: a pair for encoders, one text that ends in EOS else."""
    if base.encoder or base.encoder_decoder:
        return [prompt, output]
    return f"{prompt}{output}{base.tokenizer.eos_token or ''}"
