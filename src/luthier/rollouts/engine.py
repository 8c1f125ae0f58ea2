"""The few calls of vLLM that a rollout needs, behind plain types: ids in, ids and log-probabilities out."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.models.sampling import Sampling

SHARE = 0.4  # of the GPU's memory: the policy trains beside it


class Engine:
    """vLLM with weights that are handed over, not read from a folder."""

    def __init__(self, folder: Path, dtype: str) -> None:
        vllm = importlib.import_module("vllm")
        self._params = vllm.SamplingParams
        self.dtype = getattr(torch, dtype)
        self._llm = vllm.LLM(
            model=str(folder), load_format="dummy", dtype=dtype, gpu_memory_utilization=SHARE, enforce_eager=False,
            enable_prefix_caching=False,
        )  # fmt: skip

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Take these tensors, by the names of the plain model."""
        told = list(weights)
        self._llm.apply_model(lambda model: model.load_weights(iter(told)))

    def names(self) -> list[str]:
        """Of the tensors that the engine holds."""
        found: list[str] = self._llm.apply_model(lambda model: [name for name, _ in model.named_parameters()])[0]
        return found

    def hashes(self, names: Sequence[str]) -> dict[str, str]:
        """sha256 of the tensors that the engine holds under these names."""

        def read(model: Any) -> dict[str, str]:
            held = dict(model.named_parameters())
            return {
                name: hashlib.sha256(
                    held[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                ).hexdigest()
                for name in names
                if name in held
            }

        found: dict[str, str] = self._llm.apply_model(read)[0]
        return found

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, ends: Sequence[int]
    ) -> list[list[tuple[list[int], list[float]]]]:
        """(ids, log-probabilities) of each completion of each prompt; the end stands among the ids."""
        params = self._params(
            n=sampling.samples, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k or -1,
            min_p=sampling.min_p, max_tokens=sampling.max_new_tokens, stop=list(sampling.stop) or None,
            stop_token_ids=list(ends), seed=sampling.seed % 2**31, logprobs=0, detokenize=bool(sampling.stop),
        )  # fmt: skip
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [
            [
                (
                    list(one.token_ids),
                    [table[token].logprob for token, table in zip(one.token_ids, one.logprobs, strict=True)],
                )
                for one in output.outputs
            ]
            for output in outputs
        ]
