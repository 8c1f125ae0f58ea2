"""Speed of a reward model from K-way rankings, against TRL's RewardTrainer on all their pairs, at equal loss.

    python benchmarks/speed_reward.py                 the four cells, five repetitions each, alternating
    python benchmarks/speed_reward.py K4-192/48       one of them
    python benchmarks/speed_reward.py tiny            a cheap one, to see that it works

Both sides start from the same weights (a random Llama, and its own sequence-classification class with the same head), meet
the same rankings in the same order, and use AdamW at one rate without decay, gradients clipped to norm 1, fp32, one thread.
TRL gets every pair of a ranking as a row (what a user of it would write); we read each output once behind its prompt. The
loss of a step is the mean over all pairs on both sides and has to agree. Reported is CPU time a prompt, whole steps, and
their ratio; by tokens alone it would be K (K - 1) (P + C) / (P + K C).
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
import trl

import speed_text
from luthier.build import base_of
from luthier.data.examples import RECORDS
from luthier.data.judgements.loader import JudgedLoader
from luthier.data.loader import Plan
from luthier.data.memory import from_memory
from luthier.engine import optimizer
from luthier.engine.loss import combine, total_counts
from luthier.families import reward as family
from luthier.methods import method as method_of
from luthier.recipe import Data, read
from luthier.scored import forms_of

RESULTS = Path(__file__).parent / "results" / "speed_reward.json"
LR, PROMPTS, STEPS, TIMES = 1e-4, 4, 2, 5
KIND = "prompt,completions,ranks"
TINY = {"width": 64, "depth": 2, "heads": 4, "inner": 128, "vocabulary": 512}
CELLS: dict[str, tuple[dict[str, int], int, int, int]] = {
    "tiny": (TINY, 4, 24, 8),
    "K4-48/48": (speed_text.S, 4, 48, 48), "K4-192/48": (speed_text.S, 4, 192, 48),
    "K8-48/48": (speed_text.S, 8, 48, 48), "K8-128/32": (speed_text.S, 8, 128, 32),
}  # fmt: skip


def rankings(tokenizer: Any, count: int, outputs: int, prompt: int, answer: int) -> list[dict[str, Any]]:
    """Rankings without ties of random words: a word is a token."""
    random = np.random.default_rng(0)
    words = sorted(word for word in tokenizer.get_vocab() if not word.startswith("<"))

    def text(length: int) -> str:
        return " ".join(random.choice(words, length))

    return [
        {"prompt": text(prompt) + " ", "completions": [text(answer) for _ in range(outputs)],
         "ranks": (random.permutation(outputs) + 1).tolist()}
        for _ in range(count)
    ]  # fmt: skip


class Ours:
    """The house's own step: each output once, in bundles where they count less."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], store: Path) -> None:
        recipe = read({
            "model": str(folder), "adapt": "full", "method": {"kind": "reward", "loss": "all-pairs", "centring": 0.0},
            "data": {"train": "memory"},
        })  # fmt: skip
        given = from_memory(rows, RECORDS[KIND], KIND, Data(train="memory"))
        teach = method_of(recipe.method, KIND)
        lesson = teach.learn(given)
        self.built = family.build(recipe, base_of(recipe), teach, lesson, 512, "fp32")
        view = family.view(given, self.built, teach, lesson, store, "train")
        self.objective = teach.objective(lesson, torch.device("cpu"))
        forms, _ = forms_of(self.built.model, view.reader, "full")
        plan = Plan(PROMPTS, 8192, 500.0, 0, 1.0, STEPS)
        self.loader = JudgedLoader(view, plan, width=self.built.base.width, forms=forms)
        self.loader.order = lambda epoch: np.arange(len(rows))  # type: ignore[method-assign]
        self.start = {name: value.clone() for name, value in self.built.model.state_dict().items()}

    def head(self) -> torch.Tensor:
        """(1, width), that both sides start from."""
        return self.start["head.output.weight"]

    def fit(self) -> list[float]:
        """The loss of each step."""
        model = self.built.model
        model.load_state_dict(self.start)
        model.train()
        steps = optimizer.adamw(optimizer.groups(model, LR, 0.0, {}))
        learns, losses = [p for p in model.parameters() if p.requires_grad], []
        for step in self.loader.steps():
            totals, whole = total_counts(self.objective, step.micros), 0.0
            for micro in step.micros:
                part = combine(self.objective.loss(model, micro), totals)
                part.backward()
                whole += part.item()
            torch.nn.utils.clip_grad_norm_(learns, 1.0)
            steps.step()
            steps.zero_grad(set_to_none=True)
            losses.append(whole)
        return losses


class InOrder(trl.RewardTrainer):
    """RewardTrainer that takes the rows as they stand."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Theirs:
    """RewardTrainer on every pair of a ranking."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], head: torch.Tensor, work: Path) -> None:
        self.folder, self.head, self.work = folder, head, work
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        pairs = []
        for row in rows:
            order = np.argsort(row["ranks"])
            for at, better in enumerate(order):
                for worse in order[at + 1 :]:
                    told = {"chosen": row["prompt"] + row["completions"][better], "rejected": row["prompt"] + row["completions"][worse]}
                    pairs.append(told)
        self.pairs, self.size = datasets.Dataset.from_list(pairs), len(pairs) // STEPS

    def trainer(self) -> Any:
        """Fresh, from the start weights."""
        model = transformers.AutoModelForSequenceClassification.from_pretrained(self.folder, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = self.tokenizer.pad_token_id
        with torch.no_grad():
            model.score.weight.copy_(self.head)
        told = trl.RewardConfig(
            output_dir=str(self.work), per_device_train_batch_size=self.size, max_steps=STEPS, learning_rate=LR, weight_decay=0.0,
            lr_scheduler_type="constant", max_grad_norm=1.0, logging_steps=1, report_to=[], save_strategy="no", use_cpu=True,
            bf16=False, disable_dropout=True, gradient_checkpointing=False, max_length=512, disable_tqdm=True, seed=0,
        )  # fmt: skip
        return InOrder(model=model, args=told, processing_class=self.tokenizer, train_dataset=self.pairs)

    def fit(self, trainer: Any) -> list[float]:
        """The loss of each step."""
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def measure(name: str) -> dict[str, Any]:
    """CPU seconds a prompt of both sides, alternating, and the losses of both."""
    size, outputs, prompt, answer = CELLS[name]
    folder = speed_text.llama(**size)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = rankings(tokenizer, PROMPTS * STEPS, outputs, prompt, answer)
    with tempfile.TemporaryDirectory() as work:
        ours = Ours(folder, rows, Path(work))
        theirs = Theirs(folder, rows, ours.head(), Path(work) / "trl")
        told: dict[str, list[float]] = {"ours": [], "trl": []}
        for _ in range(1 if name == "tiny" else TIMES):
            trainer = theirs.trainer()
            for side, work_of in (("trl", lambda trainer=trainer: theirs.fit(trainer)), ("ours", ours.fit)):
                gc.collect()
                started = time.process_time()
                losses = work_of()
                told[side].append((time.process_time() - started) / len(rows))
                told[f"{side} losses"] = losses
    limit = outputs * (outputs - 1) * (prompt + answer) / (prompt + outputs * answer)
    ratio = float(np.median(told["trl"]) / np.median(told["ours"]))
    apart = max(abs(a - b) / abs(b) for a, b in zip(told["ours losses"], told["trl losses"], strict=True))
    return {"ratio": ratio, "limit": limit, "losses apart": apart} | told


def main() -> None:
    """The cells that are asked for."""
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in sys.argv[1:] or [name for name in CELLS if name != "tiny"]:
        found = measure(name)
        print(name, json.dumps(found), flush=True)
        if name != "tiny":
            results[name] = found
            RESULTS.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
