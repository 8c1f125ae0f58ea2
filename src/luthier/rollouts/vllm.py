"""vLLM as the sampler, on a GPU: the policy's weights are handed over before each rollout, and it is checked that they came.

What learns is merged into a copy of its own layers one at a time, so the policy itself is never changed; the engine
loads the merged tensors and hashes what it holds. Only `refresh` and `answers` are used of this class, and vLLM is
imported here alone.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.adapters import bridge
from luthier.errors import UserError
from luthier.models.generate import Answer, continued, cut_at
from luthier.models.language import LanguageModel
from luthier.models.sampling import Sampling

Weights = Iterator[tuple[str, torch.Tensor]]
PROBES = 8  # tensors whose hash is compared after a hand-over


class Vllm:
    """vLLM, kept in step with the policy."""

    def __init__(
        self, model: LanguageModel, tokenizer: Any, ends: tuple[int, ...], device: torch.device, precision: str,
        stop: Callable[[], bool], engine: Any = None,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.ends, self.stop = model, tokenizer, ends, stop
        self.engine = engine if engine is not None else _engine(model, tokenizer, device, precision)

    def refresh(self) -> None:
        """Hand the weights over.

        Raises:
            UserError: if the engine then holds other ones.
        """
        kind = self.engine.dtype
        sent = {
            name: value.to(kind) if value.is_floating_point() else value for name, value in merged_weights(self.model)
        }
        self.engine.load_weights(iter(sent.items()))
        common = sorted(
            sent.keys() & set(self.engine.names())
        )  # vLLM packs some (query, key and value) under other names
        names = common[:: max(1, len(common) // PROBES)]
        theirs = self.engine.hashes(names)
        wrong = [name for name in names if hash_of(sent[name]) != theirs.get(name)]
        if wrong or not names:
            what = f"{wrong[0]} and {len(wrong) - 1} more differ" if wrong else "it holds none of their names"
            raise UserError(
                f"vLLM does not hold the policy's weights after they were handed over: {what}.",
                hint="Sample in this process:  rollout: {backend: own}",
            )

    def answers(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Answer]]:
        """Completions, with the log-probabilities that vLLM gives; noise is vLLM's own, seeded."""
        found = []
        for prompt, several in zip(
            prompts, self.engine.generate([list(one) for one in prompts], sampling, self.ends), strict=True
        ):
            found.append([self._answer(prompt, ids, logprobs, sampling) for ids, logprobs in several])
        return found

    def _answer(self, prompt: Sequence[int], ids: list[int], logprobs: list[float], sampling: Sampling) -> Answer:
        end = ids[-1] if ids and ids[-1] in self.ends else None
        told = ids[:-1] if end is not None else ids
        text, stopped = cut_at(continued(self.tokenizer, prompt, told), sampling.stop)
        finish = "end" if end is not None else "stop" if stopped else "length"
        return Answer(told, text, logprobs, logprobs, finish, end)


def hash_of(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


@torch.no_grad()
def merged_weights(model: LanguageModel) -> Weights:
    """Names of the plain model and its tensors, adapters added in.

    Raises:
        UserError: for an adapter that no weights can hold.
    """
    reason = bridge.unmergeable(model.backbone)
    if reason is not None:
        raise UserError(f"vLLM takes plain weights: {reason}.", hint="Sample in this process:  rollout: {backend: own}")
    for name, module in model.lm.named_modules():
        delta = (
            module.get_delta_weight if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer") else None
        )
        for key, value in module.named_parameters(prefix=name, recurse=False):
            if ".lora_" not in key and ".base_layer" not in key:
                yield key, value
        if delta is None:
            continue
        weight = module.base_layer.weight
        total = weight + sum(delta(adapter) for adapter in module.active_adapters).to(weight.dtype)
        yield f"{name}.weight", total
        if getattr(module.base_layer, "bias", None) is not None:
            yield f"{name}.bias", module.base_layer.bias


def _engine(model: LanguageModel, tokenizer: Any, device: torch.device, precision: str) -> Any:
    """vLLM's engine on the policy's architecture.

    Raises:
        UserError: where it is not installed, or there is no GPU.
    """
    if device.type != "cuda":
        raise UserError(
            "rollout: {backend: vllm} needs a GPU.", hint="Leave it out: the policy then samples by itself."
        )
    try:
        importlib.import_module("vllm")
    except ImportError:
        raise UserError(
            "vLLM is not installed.", hint="pip install vllm, or leave out  rollout: {backend: vllm}"
        ) from None
    from luthier.rollouts.engine import Engine

    folder = Path(tempfile.mkdtemp(prefix="luthier-vllm-"))
    model.lm.config.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return Engine(folder, "bfloat16" if precision == "bf16" else "float32")
