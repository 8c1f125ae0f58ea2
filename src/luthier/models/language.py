"""A language model as the methods see it: likelihoods of targets, whatever rows or bundles they lie in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from luthier.adapters.structure import plain
from luthier.errors import UserError
from luthier.models import masks
from luthier.models.boundary import Boundary, stop_at
from luthier.models.load import accepts
from luthier.models.tail import Tail

Batch = Mapping[str, torch.Tensor]


class LanguageModel(nn.Module):
    """A causal language model or an encoder-decoder, maybe with an adapter around it.

    A batch is what `data.bundles.lay` gives. It may bring what is frozen and was computed before: `states`
    (targets, width), the last hidden states at `at`; or `boundary` (rows, longest, width), the activations that enter
    the first block that learns (for an encoder-decoder: the states that leave its encoder).

    Args:
        backbone: transformers' model with its output layer, or peft's model around it.
        chunk: of how many targets logits exist at once; chosen by the size of the vocabulary where left out.
    """

    def __init__(self, backbone: nn.Module, chunk: int | None = None) -> None:
        super().__init__()
        self.backbone, self.chunk = backbone, chunk
        self.boundary: Boundary | None = None
        self._tail: Tail | None = None

    @property
    def lm(self) -> Any:
        """transformers' own model, inside whatever adapter."""
        return plain(self.backbone)

    @property
    def tail(self) -> Tail:
        """What lies behind the last hidden states."""
        lm = self.lm
        if self._tail is None or self._tail.lm is not lm:
            if hasattr(lm.base_model, "warn_if_padding_and_no_attention_mask"):
                lm.base_model.warn_if_padding_and_no_attention_mask = _silent  # it reads ids back from the device
            self._tail = Tail(lm, self.chunk)
        return self._tail

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return int(self.config.hidden_size)

    @property
    def config(self) -> Any:
        """transformers' configuration of the part that writes."""
        return self.lm.config.get_text_config(decoder=True)

    @property
    def encoder_decoder(self) -> bool:
        """The prompt is read by an encoder, and the branches by a decoder."""
        return bool(getattr(self.lm.config, "is_encoder_decoder", False))

    @property
    def virtual_tokens(self) -> bool:
        """An adapter puts virtual tokens before each row (prompt, prefix, p-tuning)."""
        active = getattr(self.backbone, "active_peft_config", None)
        return bool(getattr(active, "is_prompt_learning", False))

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model's forward is called with.

        Plain rows of a decoder bring no mask: what is padded lies on the right, where nothing sees it, and attention
        takes its causal kernel.

        Raises:
            UserError: for bundles under an adapter, or an attention implementation, that takes none.
        """
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"]}
        if "use_cache" in accepts(self.lm):
            inputs["use_cache"] = False
        if "decoder_input_ids" in batch:
            return inputs | self._encoded(batch)
        if "bundle" in batch:
            if self.virtual_tokens:
                raise UserError(
                    f"{type(self.backbone).__name__} puts virtual tokens before each row and takes no bundles.",
                    hint="Lay the items in plain rows (data.bundles.lay_plain).",
                )
            mask = masks.attention_mask(batch, self.config, self.lm.dtype)
            return inputs | {"attention_mask": mask, "position_ids": batch["position_ids"]}
        return inputs | ({"attention_mask": batch["attention_mask"]} if self.virtual_tokens else {})

    def _encoded(self, batch: Batch) -> dict[str, Any]:
        """Inputs of an encoder-decoder: each branch with its prompt, which is encoded once however many there are."""
        inputs: dict[str, Any] = {"decoder_input_ids": batch["decoder_input_ids"]}
        mask, owner = batch["attention_mask"], batch["pieces_of"]
        if len(batch["decoder_input_ids"]) == len(batch["input_ids"]):
            states = batch.get("boundary")
        elif self.virtual_tokens:  # the adapter puts them before the rows that the encoder reads: it reads them again
            return inputs | {"input_ids": batch["input_ids"][owner], "attention_mask": mask[owner]}
        else:
            states, mask = self.encoded(batch)[owner], mask[owner]
        return inputs | {"attention_mask": mask} | ({} if states is None else {"encoder_outputs": (states,)})

    def encoded(self, batch: Batch) -> torch.Tensor:
        """What leaves the encoder of an encoder-decoder: (items, longest prompt, width)."""
        if "boundary" in batch:
            return batch["boundary"]
        encoder = self.lm.get_encoder()
        out: torch.Tensor = encoder(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        return out

    def hidden(self, batch: Batch) -> torch.Tensor:
        """The states (rows, longest, width) that enter the output layer; it does not run.

        For an encoder-decoder (pieces, longest branch, width), of its decoder. Virtual tokens of an adapter are gone.
        """
        inputs = self.inputs(batch)
        length = batch["decoder_input_ids" if "decoder_input_ids" in batch else "input_ids"].shape[1]
        if "boundary" in batch and self.boundary is not None:
            with self.boundary.bypassed(inputs, batch["boundary"]):
                return self.run(inputs)
        states = self.run(inputs)
        return states[:, states.shape[1] - length :]

    def run(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The states (rows, tokens, width) that leave the transformer for these inputs; the output layer does not run."""
        tail = self.tail
        return tail.states(stop_at(tail.core, lambda: self.backbone(**inputs)))

    def states(self, batch: Batch) -> torch.Tensor:
        """The states (targets, width) that predict the targets."""
        if "states" in batch:
            return batch["states"]
        return self.hidden(batch).flatten(0, 1).index_select(0, batch["at"])

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (N, vocabulary) of states (N, width), by the model's own tail and all at once."""
        return self.tail.logits(states)

    def logprobs(self, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
        """Log-probability (targets,) of each target, differentiable.

        Where there are more targets than one chunk holds, logits are made chunk by chunk, and again in the backward.
        """
        return self.tail.logprobs(self.states(batch), batch["targets"], temperature)

    def nll(self, batch: Batch, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Sum of -w log p(target) over the targets: a scalar, with its gradient.

        The gradient is made in the forward, chunk by chunk, so neither logits nor their gradient outlive a chunk.

        Args:
            weights: (targets,) constants; 1 where left out.
        """
        return self.tail.nll(self.states(batch), batch["targets"], weights)

    def forward(self, batch: Batch) -> torch.Tensor:
        """`logprobs` of the batch."""
        return self.logprobs(batch)


def _silent(*args: Any, **kwargs: Any) -> None:
    """Rows without a mask are meant: what is padded lies behind what is read."""
