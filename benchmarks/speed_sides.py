"""The two sides of a comparison: luthier through its own functions, Hugging Face's Trainer with its defaults.

Both start from the same weights, head included, meet the same rows in the same order, and use AdamW (fused) at a rate
that falls linearly from the first step, no weight decay, gradients clipped to norm 1, no dropout, fp32. These are
Trainer's own defaults. Nothing is saved or evaluated on the way; luthier still writes its last checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

import speed_models
from luthier import frozen
from luthier.adapters.freeze import train_mode
from luthier.build import base_of, build
from luthier.data.examples import RECORDS
from luthier.data.loader import Loader
from luthier.data.memory import from_memory
from luthier.data.render import encode
from luthier.data.view import View
from luthier.engine import optimizer
from luthier.engine.cache import Cache
from luthier.engine.log import Console, Log
from luthier.engine.loop import Loop, Settings
from luthier.engine.stop import Stop
from luthier.methods import method as method_of
from luthier.methods.supervised import Objective
from luthier.recipe import Data, read
from luthier.run import plan_of

CPU = torch.device("cpu")
BATCH, EPOCHS = 8, 5


class Ours:
    """A recipe up to its loop: data tokenised, model loaded. `fit` is what is timed.

    Args:
        adapt: head, last-n or full.
        pooling: mean (a plain linear head) or cls (BERT's own pooler and classifier).
    """

    def __init__(self, model: Path, adapt: Any, pooling: str, rows: int, lr: float, epochs: int = EPOCHS) -> None:
        self.lr, self.epochs = lr, epochs
        self.recipe = read({
            "model": str(model), "adapt": adapt, "data": {"train": "memory"},
            "method": {"kind": "supervised", "task": "classify", "pooling": pooling, "features": "raw"},
            "train": {"batch_size": BATCH, "epochs": epochs, "precision": "fp32"},
        })  # fmt: skip
        self.work = speed_models.WORK / "ours"
        self.rows = from_memory(speed_models.texts(rows), RECORDS["text,label"], "text,label", Data(train="memory"))
        self.teach = method_of(self.recipe.method)
        self.schema = self.teach.learn(self.rows)
        base = base_of(self.recipe)
        self.built = build(self.recipe, base, self.schema.task, self.schema.labels, speed_models.LONGEST, "fp32")
        self.encoded = encode(self.rows, base.tokenizer, speed_models.LONGEST, self.work / "rows")
        self.targets = self.teach.targets(self.rows, self.schema, self.encoded, "train")
        self.view = self.fresh_view()
        self.plan = plan_of(self.recipe, self.built.parameters, base, rows, CPU, None)
        self.start = {name: value.clone() for name, value in self.built.model.state_dict().items()}
        self.attached: dict[str, Any] = {}

    def fresh_view(self) -> View:
        """The rows without any column of features."""
        return View(self.rows, self.encoded, self.targets, self.built.base.pad_id)

    def reset(self, clear: bool) -> None:
        """Back to the first weights; with `clear` to an empty cache."""
        with torch.no_grad():
            self.built.model.load_state_dict(self.start)
        self.built.model.boundary = None
        self.view = self.fresh_view()
        if clear:
            shutil.rmtree(self.work / "cache", ignore_errors=True)
        shutil.rmtree(self.work / "run", ignore_errors=True)
        (self.work / "run").mkdir(parents=True)

    def fit(self) -> list[float]:
        """Features from the cache or computed into it, the loop, its last checkpoint; the loss of each step."""
        stop, console = Stop(), Console(quiet=True)
        cache = Cache(self.work / "cache")
        work = frozen.Work(cache, console, stop, CPU, "fp32", self.plan.micro_tokens, self.plan.overhead)
        self.attached = frozen.attach(self.built.model, {"train": self.view}, work, self.plan.epochs, "sdpa")
        loop = self.loop(console, stop)
        loop.run()
        loop.log.close()
        return losses_of(loop.log.file)

    def loader(self) -> Loader:
        """The steps of the run."""
        view = self.view
        return Loader(view.lengths, len(view), lambda ids: self.teach.collate(view, ids, self.schema), self.plan)

    def loop(self, console: Console, stop: Stop) -> Loop:
        """As `run` wires it, without evaluation."""
        settings = Settings(
            self.plan.steps, "linear", 0.0, 1.0, "fp32", save_every=10**9, eval_every=10**9, keep=2, patience=None,
            metric="accuracy", higher=True,
        )  # fmt: skip
        groups = optimizer.groups(self.built.model, self.lr, 0.0, {})
        folder = self.work / "run"
        log = Log(folder / "metrics.jsonl", [], "speed", {})
        return Loop(
            self.built.model, Objective.of(self.schema, CPU), self.loader(), optimizer.adamw(groups), settings,
            folder / "checkpoints", {}, log, console, stop, CPU, None, train_mode,
        )  # fmt: skip


def losses_of(file: Path) -> list[float]:
    """Of each step, from metrics.jsonl; lines of evaluations are passed over."""
    import json

    lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


class MeanClassifier(nn.Module):
    """Backbone, mean over real tokens, linear layer, cross-entropy: what a user of Trainer writes for a linear probe."""

    def __init__(self, backbone: nn.Module, labels: int) -> None:
        super().__init__()
        self.backbone, self.config = backbone, backbone.config
        self.output = nn.Linear(backbone.config.hidden_size, labels)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """Loss and logits."""
        hidden = self.backbone(input_ids, attention_mask, token_type_ids).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits = self.output((hidden * weight).sum(1) / weight.sum(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def peer_model(folder: Path, ours: Ours, depth_frozen: int) -> nn.Module:
    """The same model on their side: BERT's own class where the head is BERT's own, else the linear probe."""
    head = ours.built.model.head
    with torch.random.fork_rng(devices=[]):
        if head.hidden is None:
            backbone = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa")
            model: Any = MeanClassifier(backbone, speed_models.LABELS)
            model.output.load_state_dict(head.output.state_dict())
            bert = backbone
        else:
            model = transformers.BertForSequenceClassification.from_pretrained(folder, attn_implementation="sdpa")
            bert = model.bert
            bert.pooler.dense.load_state_dict(head.hidden.state_dict())
            model.classifier.load_state_dict(head.output.state_dict())
    if depth_frozen:
        bert.embeddings.requires_grad_(False)
        bert.encoder.layer[:depth_frozen].requires_grad_(False)
    return model


class InOrder(torch.utils.data.Sampler[int]):
    """The order that the other side meets the rows in."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.epoch = loader, 0

    def __len__(self) -> int:
        return self.loader.rows

    def __iter__(self) -> Iterator[int]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return iter(self.loader.order(epoch).tolist())


class Trainer(transformers.Trainer):
    """Their Trainer with the order given and the losses kept; nothing else is changed."""

    order: InOrder
    kept: list[torch.Tensor]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> InOrder:
        return self.order

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(*args, **kwargs)
        self.kept.append((result[0] if isinstance(result, tuple) else result).detach())
        return result


class Peer:
    """Trainer on the same rows; only `train()` is timed, not its construction."""

    def __init__(self, folder: Path, ours: Ours, depth_frozen: int = 0) -> None:
        self.ours = ours
        self.model = peer_model(folder, ours, depth_frozen)
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}
        encoded, types = ours.encoded, ours.encoded.types
        self.data = []
        for number in range(len(encoded)):
            ids = encoded.row(encoded.ids, number).tolist()
            row = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": int(ours.targets[number])}
            if types is not None:
                row["token_type_ids"] = encoded.row(types, number).tolist()
            self.data.append(row)

    def reset(self) -> None:
        """Back to the first weights, with a new Trainer."""
        with torch.no_grad():
            self.model.load_state_dict(self.start)
        arguments = transformers.TrainingArguments(
            output_dir=str(speed_models.WORK / "peer"), per_device_train_batch_size=BATCH, num_train_epochs=self.ours.epochs,
            learning_rate=self.ours.lr, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        self.trainer = Trainer(
            self.model, arguments, train_dataset=self.data, processing_class=self.ours.built.base.tokenizer
        )
        self.trainer.order, self.trainer.kept = InOrder(self.ours.loader()), []

    def fit(self) -> list[float]:
        """train(); the loss of each step."""
        self.trainer.train()
        return [value.item() for value in self.trainer.kept]


def same(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of a step's loss.

    Raises:
        AssertionError: if a loss differs in its first four digits (5e-5 relative).
    """
    assert len(ours) == len(theirs), f"{len(ours)} steps against {len(theirs)}"
    apart = np.abs(np.array(ours) - np.array(theirs)) / np.maximum(np.abs(np.array(theirs)), 1e-12)
    assert apart.max() < 5e-5, f"losses differ by {apart.max():.2e} at step {int(apart.argmax()) + 1}"
    return float(apart.max())
