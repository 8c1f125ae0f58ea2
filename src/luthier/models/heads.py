"""The new last layer, and the model that it makes together with a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from luthier.adapters import virtual_tokens
from luthier.models.boundary import Boundary
from luthier.models.load import accepts, position_offset

Batch = Mapping[str, torch.Tensor]


def pool_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens. hidden (rows, tokens, width), mask (rows, tokens) -> (rows, width)."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def pool_cls(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The first real token, whichever side is padded."""
    first = mask.argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def pool_last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last real token, whichever side is padded: found by the mask, never by the padding id."""
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def pool_none(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Every token's state, for tagging."""
    return hidden


POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": pool_mean,
    "cls": pool_cls,
    "last": pool_last,
    "none": pool_none,
}


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class Head(nn.Module):
    """The new last layer: optionally one hidden layer as the architecture's own class has it, then a linear map.

    Args:
        width: of the features.
        outputs: how many numbers come out.
        bias: decoders' own classes (LlamaForSequenceClassification ...) have none with last-token pooling.
        hidden: None, "tanh" (BERT's pooler, RoBERTa's head) or "relu" (DistilBERT's).
        dropout: before the last map, in training only.

    The buffers `shift` and `scale` standardise frozen features; `fold` moves them into the weights.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, width: int, outputs: int, *, bias: bool = True, hidden: str | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width) if hidden else None
        self.activation = ACTIVATIONS[hidden] if hidden else None
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, outputs, bias=bias)
        nn.init.normal_(self.output.weight, std=0.02)
        if bias:
            nn.init.zeros_(self.output.bias)
        self.register_buffer("shift", torch.zeros(width), persistent=True)
        self.register_buffer("scale", torch.ones(width), persistent=True)
        self.standardized, self.biased = False, bias

    def weights(self) -> dict[str, torch.Tensor]:
        """What is saved of it, by name: output.weight, output.bias, and those of a hidden layer."""
        return dict(self.named_parameters())

    def start_from(self, pooler: nn.Linear | None) -> None:
        """Take the pretrained pooler as the hidden layer, where there is one."""
        if self.hidden is not None and pooler is not None:
            with torch.no_grad():
                self.hidden.weight.copy_(pooler.weight)
                self.hidden.bias.copy_(pooler.bias)

    def standardize(
        self, mean: torch.Tensor, deviation: torch.Tensor, *, from_zero: bool, keep: bool = False
    ) -> None:
        """Scale features to mean 0 (where there is a bias to fold it into) and deviation 1.

        `from_zero`: start from zero weights, which serves where nothing below the head learns.
        `keep`: change the weights so that the outputs stay what they are (the reverse of `fold`), for a head that goes
        on learning.
        """
        if not self.biased:
            deviation, mean = (deviation**2 + mean**2).sqrt(), torch.zeros_like(mean)
        with torch.no_grad():
            self.shift.copy_(mean)
            self.scale.copy_(1.0 / deviation.clamp(min=1e-6))
            if keep:
                if self.biased:
                    self.output.bias.add_(self.output.weight @ self.shift)
                self.output.weight.div_(self.scale)
            elif from_zero:
                self.output.weight.zero_()
        self.standardized = True

    def unscale(self, mean: float, deviation: float) -> None:
        """From scores on the scale of the data, which a saved head gives, to scores of mean 0 and deviation 1."""
        with torch.no_grad():
            self.output.weight.div_(deviation)
            if self.biased:
                self.output.bias.sub_(mean).div_(deviation)

    def fold(self, mean: float = 0.0, deviation: float = 1.0) -> None:
        """Move all scales into the weights, so that the saved head is one plain linear map.

        W (s (x - m)) + b = (W s) x + (b - (W s) m), and d z + c for scores of mean c and deviation d.
        """
        with torch.no_grad():
            if self.standardized:
                self.output.weight.mul_(self.scale)
                if self.biased:
                    self.output.bias.sub_(self.output.weight @ self.shift)
            self.output.weight.mul_(deviation)
            if self.biased:
                self.output.bias.mul_(deviation).add_(mean)
            self.shift.zero_()
            self.scale.fill_(1.0)
        self.standardized = False

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., outputs)."""
        if self.standardized:
            features = (features - self.shift) * self.scale
        if self.hidden is not None and self.activation is not None:
            features = self.activation(self.hidden(features))
        out: torch.Tensor = self.output(self.dropout(features))
        return out


class TaskModel(nn.Module):
    """A backbone and a head.

    A batch brings `input_ids` and `attention_mask`, or, where the frozen part is cached, `pooled` features
    (rows, width) or the `boundary` activations (rows, tokens, width) that enter the first block that learns.
    """

    def __init__(self, backbone: nn.Module, head: Head, pooling: str) -> None:
        super().__init__()
        self.backbone, self.head, self.pooling = backbone, head, pooling
        self.boundary: Boundary | None = None
        self._takes = accepts(backbone)
        self._offset = position_offset(backbone)

    @property
    def width(self) -> int:
        """Of what the head reads."""
        return self.head.output.in_features

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the backbone's forward is called with. Positions count real tokens, so padding may stand anywhere."""
        mask = batch["attention_mask"]
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": mask}
        if "position_ids" in self._takes:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + self._offset
        if "token_type_ids" in self._takes and "token_type_ids" in batch:
            inputs["token_type_ids"] = batch["token_type_ids"]
        if "use_cache" in self._takes:
            inputs["use_cache"] = False
        return inputs

    def states(self, batch: Batch) -> torch.Tensor:
        """The last hidden states (rows, tokens, width)."""
        if "boundary" in batch and self.boundary is not None:
            return self.boundary.resume(self.inputs(batch), batch["boundary"])
        out: torch.Tensor = self.backbone(**self.inputs(batch)).last_hidden_state
        return out[:, virtual_tokens(self.backbone) :]

    def features(self, batch: Batch) -> torch.Tensor:
        """What the head reads: (rows, width), or (rows, tokens, width) for tagging."""
        if "pooled" in batch:
            return batch["pooled"]
        return POOLINGS[self.pooling](self.states(batch), batch["attention_mask"])

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits: (rows, outputs), or (rows, tokens, outputs) for tagging."""
        logits: torch.Tensor = self.head(self.features(batch))
        return logits
