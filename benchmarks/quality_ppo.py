"""Does learning from a reward work, and at what KL? stories260k, prompts from held-out stories, three seeds.

    python benchmarks/quality_ppo.py                 all cells that are not there yet
    python benchmarks/quality_ppo.py frontier/ppo    those whose name begins so
    python benchmarks/quality_ppo.py --table         write benchmarks/quality_ppo.md and the pictures from the results

frontier/METHOD/SEED   ppo, grpo, rloo, reinforce on a reward that can be gamed, watched by one that they never see;
                       best-of-n of the starting model is measured in each run; dpo: on the best and the worst of eight samples
taught/WAY/SEED        a reward model learned from rankings of a simulated judge (the gold reward with noise) is the only
                       teacher: one score, or the mean or the worst of four adapters
fluent/WAY/SEED        the same with another true judge, which no repetition troubles but language that nobody writes, and
                       further: 224 steps
steady/WAY/SEED        the same rollouts and rate with the clip and the KL, without the clip, and without both: how far each
                       rollout moves the policy, and the worst drop of the reward
Interrupted, a cell goes on from its last checkpoint. Each takes some minutes on one thread.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sets

RESULTS = Path(__file__).parent / "results" / "quality_ppo.json"
RULES = Path(__file__).parent / "ppo_rules.py"
WORK = sets.WORK / "ppo"
STORIES = str(sets.SHARED / "models" / "stories260k")
SEEDS = (0, 1, 2)
NEW, STEPS, BATCH = 40, 96, 64
TAUGHT = ("one", "mean", "worst")  # a reward model, and two ways to read an ensemble of four
JUDGE_STEPS = 64  # a single one was best on eval at 55 of 150, four at 77; all stop here
TRUE = {"taught": ("gold", STEPS), "fluent": ("fluent", 224)}  # the true judge that nobody learns from, and how far to go
ROLLOUT: dict[str, dict[str, Any]] = {
    "ppo": {"prompts": 128}, "grpo": {"prompts": 16, "samples": 8}, "rloo": {"prompts": 32, "samples": 4},
    "reinforce": {"prompts": 64},
}  # fmt: skip
RATE = {"ppo": 3e-4, "grpo": 5e-4, "rloo": 5e-4, "reinforce": 5e-4}
KEPT = ("step", "score", "kl", "drift", "clipped", "entropy", "repeated", "doubt")  # of a line of rollouts.jsonl
Cell = tuple[str, Callable[[], dict[str, Any]]]


def prompts() -> Path:
    """First words of stories, one file; splits go by their hash."""
    file = WORK / "prompts.jsonl"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        stories = (sets.SHARED / "data/tinystories/stories.jsonl").read_text(encoding="utf-8").splitlines()
        begun = dict.fromkeys(" ".join(json.loads(line)["text"].split()[:8]) for line in stories)
        file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in begun), encoding="utf-8")
    return file


def recipe(method: dict[str, Any], seed: int, **train: Any) -> dict[str, Any]:
    """A recipe of these cells."""
    kind = method["kind"]
    told = {"gold": f"{RULES}:gold", "rollout": {"max_new_tokens": NEW} | ROLLOUT[kind]} | method
    return {
        "model": STORIES, "adapt": "lora", "method": told, "seed": seed,
        "data": {"train": str(prompts()), "hold_out": {"eval": 0.12, "test": 0.12}},
        "train": {"steps": STEPS, "batch_size": BATCH, "lr": RATE[kind], "eval_every": 4, "precision": "fp32", "threads": 1,
                  "max_length": 128} | train,
    }  # fmt: skip


def tuned(made: dict[str, Any], name: str) -> dict[str, Any]:
    """Run it, or go on with it: run.json, with the curves of the evaluations and the rollouts."""
    from luthier.run import run

    made["data"].setdefault("on_bad_row", "skip")
    record = run(made, runs=WORK / "runs", name=name.replace("/", "-"), quiet=True, resume=True).record
    folder = WORK / "runs" / name.replace("/", "-")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    keys = ("step", "eval/reward", "eval/gold", "eval/kl")
    rollouts = folder / "rollouts.jsonl"
    told = (
        [json.loads(line) for line in rollouts.read_text(encoding="utf-8").splitlines()] if rollouts.is_file() else []
    )
    return {
        "test": record["metrics"].get("test"), "start": record.get("baselines", {}).get("base"), "yardstick": record.get("yardstick"),
        "curve": [[line[key] for key in keys if key in line] for line in lines if "eval/reward" in line],
        "rollouts": [{key: line.get(key) for key in KEPT} for line in told],
        "alarms": record.get("alarms"), "failing": [line["name"] for line in record["proofs"] if not line["passed"]],
        "cpu_seconds": record["time"]["cpu_seconds"],
    }  # fmt: skip


def frontier(kind: str, seed: int) -> dict[str, Any]:
    """A method on the reward that can be gamed."""
    method = {"kind": kind, "reward": f"{RULES}:happy", "kl": {"coef": 0.1}}
    return tuned(recipe(method, seed), f"frontier/{kind}/{seed}")


@torch.no_grad()
def sampled(model: Any, tokenizer: Any, asked: list[str], samples: int, seed: int) -> list[list[Any]]:
    """Completions of these prompts at temperature 1."""
    from luthier.models.generate import Sampling, generate

    ids = [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in asked]
    sampling = Sampling(max_new_tokens=NEW, temperature=1.0, samples=samples, seed=seed)
    return generate(model, tokenizer, ids, sampling, ends=(tokenizer.eos_token_id,))


def measured(run: Path, seed: int) -> dict[str, float]:
    """Reward, gold and KL of a run's model on the test prompts."""
    from luthier.data import sources
    from luthier.data.split import hash_split
    from luthier.models import load, spoken
    from luthier.models.language import LanguageModel
    from luthier.recipe import Data

    rules = _rules()
    model, _, base = spoken.read(run / "model")
    start = LanguageModel(load.causal(load.find(STORIES), attention="sdpa")).eval()
    rows = sources.load(str(prompts()), Data(train=str(prompts())), WORK / "rows", expect=("prompt",))
    held = hash_split(rows, {"eval": 0.12, "test": 0.12}, seed)["test"]
    asked = [rows.row(int(row))["prompt"] for row in held]
    found = [several[0] for several in sampled(model, base.tokenizer, asked, 1, -1 - seed)]
    gaps = []
    for text, answer in zip(asked, found, strict=True):
        prompt = [base.tokenizer.bos_token_id, *base.tokenizer(text, add_special_tokens=False)["input_ids"]]
        ids = torch.tensor([prompt + answer.tokens])
        logp = start.lm(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(1)
        gaps.append(sum(answer.logprobs) - logp.gather(1, ids[0, len(prompt) :, None]).sum().item())
    pairs = [(text, answer.text) for text, answer in zip(asked, found, strict=True)]
    told = {name: float(np.mean([getattr(rules, name)(*pair) for pair in pairs])) for name in ("happy", "gold")}
    return {"reward": told["happy"], "gold": told["gold"], "kl": float(np.mean(gaps))}


def _rules() -> Any:
    from luthier.evaluate.metrics import load_file

    return load_file(RULES)


def _asked(seed: int) -> list[str]:
    """Prompts that no held-out prompt of the seed is among."""
    from luthier.data import sources
    from luthier.data.split import hash_split
    from luthier.recipe import Data

    rows = sources.load(str(prompts()), Data(train=str(prompts())), WORK / "rows", expect=("prompt",))
    held = hash_split(rows, {"eval": 0.12, "test": 0.12}, seed)["train"]
    return [rows.row(int(row))["prompt"] for row in held]


def _samples(seed: int, count: int) -> list[tuple[str, list[str]]]:
    """Samples of the starting model."""
    from luthier.models import load
    from luthier.models.language import LanguageModel

    base = load.find(STORIES)
    model, asked = LanguageModel(load.causal(base, attention="sdpa")).eval(), _asked(seed)
    found = sampled(model, base.tokenizer, asked, count, 1000 + seed)
    return [(text, [answer.text for answer in several]) for text, several in zip(asked, found, strict=True)]


def dpo(seed: int) -> dict[str, Any]:
    """DPO on the best and the worst of eight samples, by the reward that can be gamed."""
    rules, rows = _rules(), []
    for text, several in _samples(seed, 8):
        ordered = sorted(several, key=lambda one: rules.happy(text, one))
        if rules.happy(text, ordered[-1]) > rules.happy(text, ordered[0]):
            rows.append({"prompt": text, "chosen": ordered[-1], "rejected": ordered[0]})
    file = WORK / f"pairs-{seed}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = {
        "model": STORIES, "adapt": "lora", "method": {"kind": "preference", "loss": "dpo", "beta": 0.1}, "seed": seed,
        "data": {"train": str(file), "hold_out": {"eval": 0.1, "test": 0.1}},
        "train": {"steps": STEPS, "batch_size": 32, "lr": 1e-3, "precision": "fp32", "threads": 1, "max_length": 128},
    }  # fmt: skip
    name = f"frontier/dpo/{seed}"
    found = tuned(made, name)
    return found | {"test": measured(WORK / "runs" / name.replace("/", "-"), seed), "curve": []}


def taught(part: str, way: str, seed: int) -> dict[str, Any]:
    """A reward model from rankings by the true judge, with noise; then PPO on it alone."""
    from luthier.run import run

    true, steps = TRUE[part]
    draw, rule, rows = random.Random(seed), getattr(_rules(), true), []
    for text, several in _samples(seed, 4):
        scores = [rule(text, one) + draw.gauss(0, 0.15) for one in several]
        ranks = [1 + sum(other > score for other in scores) for score in scores]
        rows.append({"prompt": text, "completions": several, "ranks": ranks})
    file = WORK / f"rankings-{true}-{seed}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    several = {} if way == "one" else {"ensemble": 4, "members": "adapters"}
    judge = {
        "model": STORIES, "adapt": "lora", "seed": seed, "data": {"train": str(file)}, "method": {"kind": "reward"} | several,
        "train": {"steps": JUDGE_STEPS, "eval_every": JUDGE_STEPS, "batch_size": 32, "lr": 1e-3, "precision": "fp32",
                  "threads": 1, "max_length": 128},
    }  # fmt: skip
    name = f"judge-{true}-{'several' if several else 'one'}-{seed}"
    accuracy = run(judge, runs=WORK / "runs", name=name, quiet=True, resume=True).record["metrics"]["test"]["pair-accuracy"]
    method = {
        "kind": "ppo", "reward": str(WORK / "runs" / name), "gold": f"{RULES}:{true}", "kl": {"coef": 0.0}, "best_of": 0,
        "reward_scale": "running", "anyway": True,  # a judge that hardly beats length is one to over-optimise
    } | ({"combine": way} if several else {})  # fmt: skip
    found = tuned(recipe(method, seed, lr=2e-3, steps=steps), f"{part}/{way}/{seed}")  # far enough to go too far
    return found | {"pairs": accuracy}


STEADY: dict[str, dict[str, Any]] = {
    "clip and kl": {"clip": 0.2, "kl": {"coef": 0.05}},
    "no clip": {"clip": None, "kl": {"coef": 0.05}},
    "neither": {"clip": None, "kl": {"coef": 0.0}},
}


def steady(way: str, seed: int) -> dict[str, Any]:
    """How far each rollout moves the policy; the distance of the weights is noted as each rollout begins."""
    from luthier.rollouts.source import Rollouts

    begin, moved, before = Rollouts._begin, [], list[torch.Tensor]()

    def noted(self: Rollouts, step: int) -> None:
        now = [p.detach().clone() for p in self.setup.reader.actor.parameters() if p.requires_grad]
        if before:
            far = sum((one - two).square().sum() for one, two in zip(now, before, strict=True)).sqrt()
            moved.append((far / sum(one.square().sum() for one in before).sqrt()).item())
        before[:] = now
        begin(self, step)

    Rollouts._begin = noted  # type: ignore[method-assign]
    name = f"steady/{way}/{seed}"
    shutil.rmtree(WORK / "runs" / name.replace("/", "-"), ignore_errors=True)  # distances are of a whole run
    try:
        method = {"kind": "ppo", "reward": f"{RULES}:happy", "best_of": 0, **STEADY[way]}
        found = tuned(recipe(method, seed, lr=5e-3, steps=128), name)
    finally:
        Rollouts._begin = begin  # type: ignore[method-assign]
    scores = np.array([line["score"] for line in found["rollouts"]])
    drops = np.maximum.accumulate(scores) - scores
    drift = [line["drift"] for line in found["rollouts"] if line["drift"] is not None]
    return found | {"moved": moved, "drift": float(np.mean(drift)), "worst_drop": float(drops.max())}


def cells() -> Iterator[Cell]:
    """Name and work of each, one seed of all before the next."""
    for seed in SEEDS:
        for kind in ROLLOUT:
            yield f"frontier/{kind}/{seed}", lambda kind=kind, seed=seed: frontier(kind, seed)
        yield f"frontier/dpo/{seed}", lambda seed=seed: dpo(seed)
        for way in STEADY:
            yield f"steady/{way}/{seed}", lambda way=way, seed=seed: steady(way, seed)
        for part in TRUE:
            for way in TAUGHT:
                yield f"{part}/{way}/{seed}", lambda part=part, way=way, seed=seed: taught(part, way, seed)


def load() -> dict[str, Any]:
    """Finished cells."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def main() -> None:
    """Run what is missing or named."""
    import quality_ppo_table

    wanted = tuple(argument for argument in sys.argv[1:] if not argument.startswith("--"))
    if "--table" not in sys.argv:
        torch.set_num_threads(1)
        for name, work in cells():
            if name in load() or (wanted and not name.startswith(wanted)):
                continue
            started = time.time()
            found = work()
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(load() | {name: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            print(f"{name}: {time.time() - started:.0f} s, {found['test']}", flush=True)
    quality_ppo_table.write(load())


if __name__ == "__main__":
    main()
