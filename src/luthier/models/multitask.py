"""Several tasks on one trunk: a head for each task that ends in labels or numbers, the trunk's own output layer for text.

Each task has a model of its own, which is but a look at the shared parts: what reads or scores one task (proofs, caches,
evaluation, export) takes that and needs not know of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from luthier.adapters import virtual_tokens
from luthier.models.heads import POOLINGS, Head, TaskModel
from luthier.models.joined import Joined
from luthier.models.language import LanguageModel

Batch = Mapping[str, torch.Tensor]


class ReaderModel(TaskModel):
    """A head on the hidden states of a model that writes: the output layer does not run.

    Of an encoder-decoder the head reads what leaves the encoder.
    """

    def __init__(self, writer: LanguageModel, head: Head, pooling: str) -> None:
        super().__init__(writer.backbone, head, pooling)
        self._writer = (writer,)  # not a part of this model: it holds the same backbone

    def states(self, batch: Batch) -> torch.Tensor:
        """The last hidden states (rows, tokens, width)."""
        writer, inputs = self._writer[0], self.inputs(batch)
        if writer.encoder_decoder:
            out: torch.Tensor = writer.lm.get_encoder()(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).last_hidden_state
            return out
        if "boundary" in batch and self.boundary is not None:
            with self.boundary.bypassed(inputs, batch["boundary"]):
                found: torch.Tensor = writer.run(inputs)
                return found
        return writer.run(inputs)[:, virtual_tokens(self.backbone) :]


class MultiTask(nn.Module):
    """One trunk and its tasks.

    A micro-batch holds, beside what the trunk reads, `<task>/targets` of each task in it, or where tasks of a joined group
    are in it together `<group>/targets` and `<group>/task`, the number of each row's task within the group. The rows stand
    one below the other in the order of these keys. A micro-batch of text holds one task.

    Args:
        backbone: a backbone, or where a task writes a model with its output layer; adapters around it are fine.
        heads: task -> its new last layer; tasks that write have none.
        poolings: task -> how its head reads token states.
        writes: names of the tasks that write.
        balanced: the logarithms of the tasks' variances are learned (`balance: uncertainty`).
    """

    def __init__(
        self, backbone: nn.Module, heads: Mapping[str, Head], poolings: Mapping[str, str], writes: tuple[str, ...],
        balanced: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = backbone
        self.names = tuple(heads) + writes
        self.head = nn.ModuleDict({str(number): head for number, head in enumerate(heads.values())})
        if balanced:
            self.head.register_parameter("log_variance", nn.Parameter(torch.zeros(len(self.names))))
        self.carried: frozenset[str] = frozenset()  # tasks whose head goes on from an earlier run
        self._tasks: dict[str, Any] = {}
        self._joined: dict[str, tuple[Joined, TaskModel]] = {}
        writer = LanguageModel(backbone) if writes else None
        for name, head in heads.items():
            made = TaskModel(backbone, head, poolings[name]) if writer is None else ReaderModel(writer, head, poolings[name])
            self._tasks[name] = made
        for name in writes:
            self._tasks[name] = LanguageModel(backbone)  # each with a boundary of its own

    def join(self, groups: Mapping[str, tuple[str, ...]]) -> None:
        """Make the heads of each group one layer, as they learn; each task keeps its own head as a view of it.

        Args:
            groups: a name -> tasks of one kind and one pooling.
        """
        places = {name: str(number) for number, name in enumerate(self.names)}
        for group, members in groups.items():
            made = Joined([self._tasks[name].head for name in members])
            for name, part in zip(members, made.parts, strict=True):
                self._tasks[name].head = part
                del self.head[places[name]]
            self.head[group.strip("*")] = made
            self._joined[group] = (made, self._tasks[members[0]])

    @property
    def tasks(self) -> Mapping[str, Any]:
        """Task -> its model, TaskModel or LanguageModel; all of them share this one's parts."""
        return self._tasks

    @property
    def log_variance(self) -> torch.Tensor | None:
        """(tasks,) s = log sigma^2 of each, where it is learned; in the order of `names`."""
        return self.head._parameters.get("log_variance")

    def outputs(self, batch: Batch, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Logits of each task, over its own rows: the trunk runs once.

        Args:
            batch: what the trunk reads.
            sizes: how many rows of each task or joined group, one below the other; of a group, all its heads' outputs come out.
        """
        if "pooled" in batch and len(sizes) == 1 and (only := next(iter(sizes))) in self._joined:
            return {only: self._joined[only][0](batch["pooled"], batch[f"{only}/task"])}
        models = {name: self._joined[name][1] if name in self._joined else self._tasks[name] for name in sizes}
        first = next(iter(models.values()))
        poolings = {model.pooling for model in models.values()}
        counts = list(sizes.values())
        if "pooled" in batch:
            parts = torch.split(batch["pooled"], counts)
        elif len(poolings) == 1:
            parts = torch.split(first.features(batch), counts)
        else:
            states, masks = torch.split(first.states(batch), counts), torch.split(batch["attention_mask"], counts)
            pooled = zip(models.values(), states, masks, strict=True)
            parts = tuple(POOLINGS[model.pooling](state, mask) for model, state, mask in pooled)
        return {
            name: self._joined[name][0](part, batch[f"{name}/task"]) if name in self._joined else model.head(part)
            for (name, model), part in zip(models.items(), parts, strict=True)
        }

    def answers(self, batch: Batch, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Logits of each of these tasks, over all rows: one pass of the trunk for all of them."""
        models: dict[str, TaskModel] = {name: self._tasks[name] for name in names}
        states = next(iter(models.values())).states(batch)
        pooled: dict[str, torch.Tensor] = {}
        for pooling in dict.fromkeys(model.pooling for model in models.values()):
            pooled[pooling] = POOLINGS[pooling](states, batch["attention_mask"])
        return {name: model.head(pooled[model.pooling]) for name, model in models.items()}
