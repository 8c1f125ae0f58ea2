"""Speed and memory of learning from one's own samples, against the peers.

    python benchmarks/speed_ppo.py              all cells that are not there yet
    python benchmarks/speed_ppo.py grpo score   these, again
    python benchmarks/speed_ppo.py --table      write benchmarks/speed_ppo.md from the results

grpo         a GRPO step, LoRA, 4 prompts x 8, 64 + 64 tokens, against TRL's GRPOTrainer, stock and compact (see speed_text.py)
memory       live tensors after an actor-critic step, LoRA: one base, against four full models and four LoRA models
generate-S-8, generate-S-32, generate-M-8, generate-M-32
             the same greedy tokens as transformers.generate, 64 + 64 tokens
score        a reward model on 8 samples of one prompt, prompt to completion 4:1, in bundles, against separate rows

One thread, process CPU time; sides take turns, a figure is the median of the rounds' own ratios.
"""

from __future__ import annotations

import json
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
import contextlib
import gc
import io
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import speed_models
import speed_text

RESULTS = Path(__file__).parent / "results" / "speed_ppo.json"
ROUNDS = int(os.environ.get("LUTHIER_ROUNDS", "5"))
PROMPT, NEW, GROUP, PROMPTS = 64, 64, 8, 4
CPU = torch.device("cpu")


def reward(prompts: list[Any], completions: list[Any], **rest: Any) -> list[float]:
    """Something cheap that differs between completions; TRL and we call it alike."""
    return [float(len(str(completion)) % 7) for completion in completions]


def asked(count: int, vocabulary: int, length: int = PROMPT) -> list[str]:
    """Prompts of `length` tokens, BOS among them."""
    draw = np.random.default_rng(0)
    return [" ".join(f"w{word}" for word in draw.integers(10, vocabulary - 10, length - 1)) for _ in range(count)]


class OurGrpo:
    """Our run up to its loop; each `step` is a rollout and what is learned from it."""

    def __init__(self, folder: Path, steps: int) -> None:
        from luthier import run as runs
        from luthier import training
        from luthier.engine import machine
        from luthier.engine.cache import Cache
        from luthier.engine.log import Console
        from luthier.engine.stop import Stop
        from luthier.folder import Folder
        from luthier.recipe import read

        work = speed_models.WORK / "ours-grpo"
        shutil.rmtree(work / "run", ignore_errors=True)
        (work / "run").mkdir(parents=True)
        file = work / "prompts.jsonl"
        lines = asked(PROMPTS, speed_text.S["vocabulary"])
        file.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines), encoding="utf-8")
        recipe = read({
            "model": str(folder), "adapt": {"kind": "lora", "rank": 16, "alpha": 32.0},
            "method": {
                "kind": "grpo", "reward": f"{Path(__file__).resolve()}:reward", "kl": {"coef": 0.04}, "best_of": 0,
                "rollout": {"prompts": PROMPTS, "samples": GROUP, "max_new_tokens": NEW},
            },
            "data": {"train": str(file), "hold_out": {"eval": 0.0, "test": 0.0}},
            "train": {
                "steps": steps, "batch_size": PROMPTS * GROUP, "lr": 1e-5, "schedule": "linear", "warmup": 0, "clip": 1.0,
                "weight_decay": 0, "precision": "fp32", "threads": 1, "save_every": 10**9, "max_length": PROMPT + NEW,
            },
        })  # fmt: skip
        job = training.Job(
            recipe, Folder(work / "run"), Cache(work / "cache"), Console(True), Stop(), CPU, machine.PeakMemory(CPU)
        )
        job.record |= {"earlier": {}, "warnings": [], "frozen": {"kind": None}}
        case, family = runs.case_of(job, None)
        family.before(case)
        self.loop = training.loop_of(case, family, None)
        object.__setattr__(self.loop, "save", lambda: None)
        self.source = self.loop.batches.steps(0)
        self.loop.log.open(0)
        self.parameters = [p for group in self.loop.optimizer.param_groups for p in group["params"]]
        self.loop.mode(self.loop.model)

    def step(self) -> None:
        """One rollout and its step."""
        self.loop._step(next(self.source), self.parameters)

    def tokens(self) -> int:
        """Completion tokens of the last rollout."""
        return int(self.loop.batches.buffer.lengths.sum())


class TheirGrpo:
    """TRL's GRPOTrainer, generation included; after each of its steps `between` runs, which is not its time."""

    def __init__(self, folder: Path, which: str, steps: int, between: Callable[[], None]) -> None:
        import datasets
        import peft
        import trl

        datasets.disable_progress_bars()
        options = {
            "output_dir": str(speed_models.WORK / "peer-grpo"), "per_device_train_batch_size": PROMPTS * GROUP,
            "num_generations": GROUP, "max_completion_length": NEW, "beta": 0.04, "learning_rate": 1e-5, "max_steps": steps,
            "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
            "logging_strategy": "no", "disable_tqdm": True, "temperature": 1.0, "dataloader_pin_memory": False,
            "generation_kwargs": {"min_new_tokens": NEW},
        }  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
        data = datasets.Dataset.from_dict({"prompt": asked(PROMPTS, speed_text.S["vocabulary"])})
        self.which, self.took = which, list[float]()
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer = trl.GRPOTrainer(
                model,
                reward,
                args=trl.GRPOConfig(**options),
                train_dataset=data,
                processing_class=tokenizer,
                peft_config=lora,
            )
        took, began = self.took, list[float]()

        class Between(transformers.TrainerCallback):
            """Notes the clock between two steps, and lets the other side have its turn."""

            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                if not began:
                    began.append(time.process_time())

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                took.append(time.process_time() - began[-1])
                between()
                began.append(time.process_time())

        self.trainer.add_callback(Between())

    def train(self) -> list[float]:
        """CPU seconds of each step."""
        with contextlib.redirect_stdout(io.StringIO()), speed_text._as(self.which):
            self.trainer.train()
        return self.took


def grpo() -> dict[str, Any]:
    """A step of the peer and one of ours in turn, the first of each left out; the figure is the median of the rounds' ratios."""
    folder = speed_text.llama(**speed_text.S)
    ours, mine, found = OurGrpo(folder, 2 * (ROUNDS + 1)), list[float](), dict[str, list[float]]()

    def turn() -> None:
        started = time.process_time()
        ours.step()
        mine.append(time.process_time() - started)

    tokens = []
    for which in ("stock", "compact"):
        found[which] = TheirGrpo(folder, which, ROUNDS + 1, turn).train()[1:]
        found[f"ours beside {which}"] = mine[-ROUNDS:]
        tokens.append(ours.tokens())
    ratios = {
        which: statistics.median(np.divide(found[which], found[f"ours beside {which}"]).tolist()) for which in ("stock", "compact")
    }
    return {"seconds": found, "ratios": ratios, "tokens": tokens, "goal": {"stock": 1.6, "compact": 1.3}}


def memory() -> dict[str, Any]:
    """Bytes of live tensors after one AdamW step of an actor-critic on the M model.

    Reward and value models are a transformer with a scalar head on all sides, as TRL's PPO held them and as our reward
    runs are: none has an output layer.
    """
    from luthier.adapters import ADAPTERS
    from luthier.models.actor import Actor
    from luthier.recipe import read

    folder = speed_text.llama(**speed_text.M)
    ids = torch.randint(5, speed_text.M["vocabulary"], (2, 64), generator=torch.Generator().manual_seed(0))

    def causal() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )

    def scorer() -> Any:
        return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")

    def lora(model: Any, task: str = "generate") -> Any:
        options = read({"model": "pocket", "adapt": "lora", "data": {"train": "x"}}).adapt
        return ADAPTERS["lora"].attach(model, options, 0, task)

    def learn(models: list[Any], loss: Callable[[], torch.Tensor]) -> Any:
        optimizer = torch.optim.AdamW([p for model in models for p in model.parameters() if p.requires_grad])
        loss().backward()
        optimizer.step()
        return optimizer

    def separate(adapted: bool) -> int:
        models = [causal(), causal(), scorer(), scorer()]  # policy, reference, reward, value
        learners = [lora(models[0]), lora(models[3], "labels")] if adapted else models[::3]
        for frozen in models[1:3]:
            frozen.requires_grad_(False)
        head = torch.nn.Linear(speed_text.M["width"], 1)

        def loss() -> torch.Tensor:
            policy = learners[0](input_ids=ids).logits.log_softmax(-1)[..., 0].mean()
            value = learners[1](input_ids=ids).last_hidden_state
            return policy + head(value).square().mean()

        optimizer = learn([*learners, head], loss)
        return live([*models, *learners, head], optimizer)

    def shared() -> int:
        actor = Actor(lora(causal()), "lora", critic=True)
        judge = lora(scorer(), "labels")
        from luthier.models.sharing import share

        judge.requires_grad_(False)
        share(judge, actor.backbone)
        batch = {"input_ids": ids, "at": torch.arange(60), "targets": torch.zeros(60, dtype=torch.int64)}

        def loss() -> torch.Tensor:
            states = actor.states(batch)
            return actor.tail.logprobs(states, batch["targets"]).mean() + actor.values(batch, states).square().mean()

        optimizer = learn([actor], loss)
        return live([actor, judge], optimizer)

    def live(models: list[Any], optimizer: Any) -> int:
        gc.collect()
        kept: dict[int, int] = {}
        for model in models:
            for tensor in (
                *model.parameters(),
                *model.buffers(),
                *(p.grad for p in model.parameters() if p.grad is not None),
            ):
                kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        for state in optimizer.state.values():
            for tensor in state.values():
                if isinstance(tensor, torch.Tensor):
                    kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return sum(kept.values())

    found = {"four full": separate(False), "four lora": separate(True), "one base": shared()}
    ratios = {name: found[name] / found["one base"] for name in ("four full", "four lora")}
    return {"bytes": found, "ratios": ratios, "goal": {"four full": 7.0, "four lora": 3.0}}


def generating(size: str, batch: int) -> Callable[[], dict[str, Any]]:
    """Greedy tokens of both, equal, in turn."""

    def cell() -> dict[str, Any]:
        from luthier.models.generate import Sampling, generate
        from luthier.models.language import LanguageModel

        shape = {"S": speed_text.S, "M": speed_text.M}[size]
        folder = speed_text.llama(**shape)
        lm = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = [tokenizer(text)["input_ids"] for text in asked(batch, shape["vocabulary"])]
        rectangle, model = torch.tensor(ids), LanguageModel(lm)
        lm.generation_config.eos_token_id = None

        def ours() -> Any:
            return [
                several[0].ids for several in generate(model, tokenizer, ids, Sampling(max_new_tokens=NEW), ends=())
            ]

        def theirs() -> Any:
            with torch.no_grad():
                out = lm.generate(rectangle, attention_mask=torch.ones_like(rectangle), do_sample=False, max_new_tokens=NEW,
                                  min_new_tokens=NEW, pad_token_id=0)  # fmt: skip
            return out[:, PROMPT:].tolist()

        goals = {"S": 1.15, "M": 1.05}
        return in_turn({"theirs": theirs, "ours": ours}, equal=True) | {"goal": {"theirs": goals[size]}}

    return cell


def score() -> dict[str, Any]:
    """States behind 8 completions of one prompt, read once, against rows that repeat the prompt."""
    from luthier.data.bundles import lay, lay_plain
    from luthier.models.language import LanguageModel

    folder = speed_text.llama(**speed_text.S)
    model = LanguageModel(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).eval()
    draw = np.random.default_rng(0)
    items = []
    for _ in range(4):
        branch = np.repeat(np.arange(9), [128, *([32] * 8)])
        items.append((draw.integers(5, 8000, len(branch)), branch, (branch > 0).astype(np.int8)))

    def read(batch: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
        def once() -> torch.Tensor:
            with torch.no_grad():
                return model.states(batch)

        return once

    sides = {"theirs": read(lay_plain(items, 0)), "ours": read(lay(items, 0))}
    assert torch.allclose(sides["theirs"](), sides["ours"](), atol=1e-3)
    return in_turn(sides) | {"goal": {"theirs": 2.5}}


def in_turn(sides: dict[str, Callable[[], Any]], equal: bool = False) -> dict[str, Any]:
    """Seconds of each side, one warm round first."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        told = {}
        for name, work in sides.items():
            started = time.process_time()
            told[name] = work()
            if number:
                found[name].append(time.process_time() - started)
        if equal:
            agree = np.mean(np.array(told["ours"]) == np.array(told["theirs"]))
            assert agree > 0.99, f"only {agree:.3f} of the tokens agree"
    ratio = statistics.median(one / two for one, two in zip(found["theirs"], found["ours"], strict=True))
    return {"seconds": found, "ratios": {"theirs": ratio}}


CELLS: dict[str, Callable[[], dict[str, Any]]] = {
    "grpo": grpo, "memory": memory, "generate-S-8": generating("S", 8), "generate-S-32": generating("S", 32),
    "generate-M-8": generating("M", 8), "generate-M-32": generating("M", 32), "score": score,
}  # fmt: skip


def load() -> dict[str, Any]:
    """Finished cells."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def table(found: dict[str, Any]) -> str:
    """The results as a page."""
    lines = ["# On-policy: speed and memory against the peers", "", "Written by `python benchmarks/speed_ppo.py --table`.", "",
             "Memory: what the roles hold (weights, gradients, Adam), no activations; reward and value models have no output layer on",
             "either side.",
             "While it writes, a model holds up to 1 GiB of packed copies of its weights beside that (`models/packed.py`).", "",
             "| cell | against | ratio | asked for |", "|---|---|---|---|"]  # fmt: skip
    for name, result in sorted(found.items()):
        for peer, ratio in result["ratios"].items():
            lines.append(f"| {name} | {peer} | {ratio:.2f}x | {result['goal'].get(peer, '')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing or named."""
    wanted = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if unknown := set(wanted) - set(CELLS):
        raise SystemExit(f"no cell {sorted(unknown)[0]!r}; there are {', '.join(CELLS)}")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if "--table" not in sys.argv:
        for name, cell in CELLS.items():
            if name not in wanted and (wanted or name in load()):
                continue
            result = cell()
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(load() | {name: result}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            print(name, result["ratios"], flush=True)
    (Path(__file__).parent / "speed_ppo.md").write_text(table(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
