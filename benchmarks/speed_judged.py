"""Preference learning against TRL's DPOTrainer: the same pairs, equal loss, interleaved, one thread, process CPU time.

    python benchmarks/speed_judged.py                      all cells that are not there yet
    python benchmarks/speed_judged.py full-1:1 memory      these, again
    python benchmarks/speed_judged.py lora-1:1 --rounds 1  fewer measured rounds (5), for a look
    python benchmarks/speed_judged.py --table              write benchmarks/speed_judged.md from the results

A cell is one warm round and then the measured ones. In a round TRL trains an epoch with `compact` forced (as on a GPU; as it
is on a CPU it is slower and no side to beat); then ours twice: with the reference's pass counted, and with it cached, as
from the second epoch on. Both start from the same weights, meet the same pairs in the same order, 8 a step, and use AdamW (fused) at a
rate that falls linearly from the first step, no weight decay, gradients clipped to norm 1, no dropout.
"""

from __future__ import annotations

import json
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
import contextlib
import io
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "speed_judged.json"
BATCH, PAIRS, ROUNDS, LR, BETA = 8, 16, 5, 1e-4, 0.1
SHAPES = {"1:1": (64, 64), "4:1": (128, 32), "16:1": (256, 16)}  # tokens of prompt and completion, each +- 25 %
CELLS: dict[str, tuple[str, str]] = {
    "full-1:1": ("full", "1:1"), "full-4:1": ("full", "4:1"), "full-16:1": ("full", "16:1"), "lora-1:1": ("lora", "1:1"),
    "lora-4:1": ("lora", "4:1"), "memory": ("full", "4:1"),
}  # fmt: skip
MUST = {
    "full-1:1": (1.35, 1.8), "full-4:1": (1.45, 1.9), "full-16:1": (1.7, 2.2), "lora-1:1": (None, 2.0), "lora-4:1": (None, 2.2),
}  # fmt: skip


def pairs(shape: str, count: int, vocabulary: int, seed: int = 0) -> list[dict[str, str]]:
    """Zipf words; BOS and EOS take a place each."""
    draw = np.random.default_rng(seed)
    words = vocabulary - 4
    share = 1.0 / np.arange(1, words + 1)
    prompt, completion = SHAPES[shape]

    def text(length: int) -> str:
        wanted = int(draw.integers(round(0.75 * length), round(1.25 * length) + 1)) - 1
        return " ".join(f"w{number}" for number in draw.choice(words, wanted, p=share / share.sum()))

    made = [(text(prompt), text(completion), text(completion)) for _ in range(count)]
    return [{"prompt": one, "chosen": f" {good}", "rejected": f" {bad}"} for one, good, bad in made]


class Ours:
    """A recipe up to its loop, as `run` wires it; `fit` is the loop, its optimizer and its log included."""

    def __init__(self, folder: Path, rows: list[dict[str, str]], adapt: str) -> None:
        import torch

        import speed_models
        from luthier.build import base_of
        from luthier.data.examples import RECORDS
        from luthier.data.memory import from_memory
        from luthier.families import preference
        from luthier.methods import method as method_of
        from luthier.recipe import Data, read
        from luthier.run import max_length, plan_of

        recipe = read({
            "model": str(folder), "adapt": adapt, "method": {"kind": "preference", "loss": "dpo", "beta": BETA},
            "data": {"train": "memory"},
            "train": {"batch_size": BATCH, "epochs": 1, "lr": LR, "schedule": "linear", "warmup": 0, "clip": 1.0,
                      "weight_decay": 0, "precision": "fp32", "threads": 1, "save_every": 10**9},
        })  # fmt: skip
        self.work, self.recipe, self.cpu = speed_models.WORK / "ours-judged", recipe, torch.device("cpu")
        kind = "prompt,chosen,rejected"
        given = from_memory(rows, RECORDS[kind], kind, Data(train="memory"))
        self.teach = method_of(recipe.method, kind)
        self.schema = self.teach.learn(given)
        base = base_of(recipe)
        self.built = preference.build(recipe, base, self.teach, self.schema, max_length(recipe, base), "fp32")
        self.view: Any = preference.view(given, self.built, self.teach, self.schema, self.work / "rows", "train")
        self.plan = plan_of(recipe, self.built.parameters, base, len(self.view), self.cpu, None)
        self.start = {name: value.clone() for name, value in self.built.model.state_dict().items()}

    def order(self) -> list[int]:
        """The pairs as they are met."""
        from luthier.data.judgements.loader import JudgedLoader

        loader = JudgedLoader(self.view, self.plan, width=1, forms=("rows",))
        return [int(self.view.judged.row[number]) for number in loader.order(0)]

    def reset(self, clear: bool) -> None:
        """Back to the first weights; with `clear` the reference is not known yet."""
        import torch

        with torch.no_grad():
            self.built.model.load_state_dict(self.start)
        shutil.rmtree(self.work / "run", ignore_errors=True)
        (self.work / "run").mkdir(parents=True)
        if clear:
            shutil.rmtree(self.work / "cache", ignore_errors=True)

    def fit(self) -> list[float]:
        """The reference's column (from the cache where it is there), then the loop; the loss of each step."""
        import speed_sides

        loop = self.loop()
        object.__setattr__(loop, "save", lambda: None)  # the peers save nothing either
        loop.run()
        loop.log.close()
        return speed_sides.losses_of(loop.log.file)

    def loop(self) -> Any:
        """The loop of the run, without evaluation."""
        from luthier import frozen, training
        from luthier.engine import machine
        from luthier.engine.cache import Cache
        from luthier.engine.log import Console
        from luthier.engine.stop import Stop
        from luthier.families import preference
        from luthier.folder import Folder

        job = training.Job(
            self.recipe, Folder(self.work / "run"), Cache(self.work / "cache"), Console(quiet=True), Stop(), self.cpu,
            machine.PeakMemory(self.cpu),
        )  # fmt: skip
        work = frozen.Work(job.cache, job.console, job.stop, self.cpu, "fp32", self.plan.micro_tokens, self.plan.overhead)
        nothing: Any = None
        metric: Any = ("loss", type("", (), {"higher_is_better": False}))
        case = training.Case(
            job, self.teach, self.schema, nothing, self.built, {"train": self.view}, metric, "fp32", self.plan
        )
        preference._columns(case, self.view, work)
        job.record["frozen"] = preference.freeze(case, work, None)
        return training.loop_of(case, preference, None)


class Peer:
    """TRL's DPOTrainer on the same pairs; only `train()` is timed, not its construction.

    Args:
        which: "stock" or "compact".
        ours: where the first weights of an adapter come from.
    """

    def __init__(self, folder: Path, rows: list[dict[str, str]], adapt: str, which: str, ours: Ours) -> None:
        self.folder, self.rows, self.adapt, self.which, self.ours = folder, rows, adapt, which, ours

    def reset(self) -> None:
        """A new trainer on the first weights."""
        import datasets
        import peft
        import torch
        import transformers
        import trl

        import speed_models
        import speed_text

        class Dpo(speed_text._Kept, trl.DPOTrainer):
            pass

        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        options = trl.DPOConfig(
            output_dir=str(speed_models.WORK / "peer-judged"), per_device_train_batch_size=BATCH, beta=BETA,
            max_steps=-(-len(self.rows) // BATCH), learning_rate=LR, lr_scheduler_type="linear", use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False, max_length=None,
        )  # fmt: skip
        config = None
        if self.adapt == "lora":
            config = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        datasets.disable_progress_bars()
        self.trainer: Any = Dpo(
            model, args=options, train_dataset=datasets.Dataset.from_list(self.rows), processing_class=tokenizer,
            peft_config=config,
        )  # fmt: skip
        if config is not None:
            mine = {name.removeprefix("backbone."): value for name, value in self.ours.start.items() if "lora_" in name}
            theirs = {name for name, _ in self.trainer.model.named_parameters() if "lora_" in name}
            assert theirs == set(mine), sorted(theirs ^ set(mine))[:2]
            self.trainer.model.load_state_dict(mine, strict=False)
        self.trainer.order, self.trainer.kept = speed_text.InOrder(self.ours.order()), []

    def fit(self) -> list[float]:
        """train(); the loss of each step."""
        import speed_text

        with contextlib.redirect_stdout(io.StringIO()), speed_text._as(self.which):
            self.trainer.train()
        return [value.item() for value in self.trainer.kept]


def cell(adapt: str, shape: str, rounds: int) -> dict[str, Any]:
    """Each peer and ours in turn.

    Raises:
        AssertionError: if a step's losses differ.
    """
    import trl

    import speed_cells
    import speed_text

    speed_cells._quiet()
    folder = speed_text.llama(**speed_text.S)
    rows = pairs(shape, PAIRS, speed_text.S["vocabulary"])
    ours = Ours(folder, rows, adapt)
    peers = {name: Peer(folder, rows, adapt, name, ours) for name in ("compact",)}
    result: dict[str, Any] = {"seconds": {}, "apart": 0.0, "trl": trl.__version__}
    for number in range(1 + rounds):
        took, found = {}, {}
        for name, side in peers.items():
            side.reset()
            took[name], found[name] = speed_cells.timed(side.fit)
        for name in ("reference timed", "reference cached"):
            ours.reset(clear=name == "reference timed")
            took[name], found[name] = speed_cells.timed(ours.fit)
        apart = max(speed_text._apart(found[name], found["compact"], 1e-4) for name in found)
        result["losses"] = {name: [round(loss, 7) for loss in losses] for name, losses in found.items()}
        if number:
            result["apart"] = max(result["apart"], apart)
            for name, seconds in took.items():
                result["seconds"].setdefault(name, []).append(seconds)
    result["ratios"] = {
        f"{way}, against {peer}": [
            theirs / mine for theirs, mine in zip(result["seconds"][peer], result["seconds"][way], strict=True)
        ]
        for way in ("reference timed", "reference cached") for peer in peers
    }  # fmt: skip
    return result | {"data": {"pairs": PAIRS, "shape": shape, "form": ours.view.forms[0]}}


STEPS = 2  # of a side of the memory cell, the second is measured


def memory() -> dict[str, Any]:
    """Peak of a step of full fine-tuning, 8 pairs of 128 + 2 x 32 tokens, a process a side, as `speed_memory` measures."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found: dict[str, Any] = {}
    for side in ("compact", "ours"):
        command = [sys.executable, str(Path(__file__).resolve()), "--side", side]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{side}: {done.stderr[-2000:]}"
        found[side] = json.loads(done.stdout.splitlines()[-1])
        print(f"  {side}: {found[side]['peak'] / 1e6:.0f} MB", flush=True)
    apart = max(abs(a / b - 1) for a, b in zip(found["ours"]["losses"], found["compact"]["losses"], strict=True))
    assert apart <= 1e-4, f"losses differ by {apart:.2e}"
    return {"sides": found, "share": found["ours"]["peak"] / found["compact"]["peak"]}


def _side(side: str) -> dict[str, Any]:
    """In a fresh process: this side's steps."""
    import transformers

    import speed_cells
    import speed_memory
    import speed_sides
    import speed_text

    speed_cells._quiet()
    folder = speed_text.llama(**speed_text.M)
    rows = pairs("4:1", STEPS * BATCH, speed_text.M["vocabulary"])
    if side == "ours":
        watch = speed_memory._Watch()
        ours = Ours(folder, rows, "full")
        ours.start = {}
        shutil.rmtree(ours.work, ignore_errors=True)
        (ours.work / "run").mkdir(parents=True)
        loop = ours.loop()
        object.__setattr__(loop, "save", lambda: None)
        loop.after_step = watch.after
        loop.run()
        loop.log.close()
        return {"peak": watch.peak, "rest": watch.rest, "losses": speed_sides.losses_of(loop.log.file)}
    order = Ours(folder, rows, "full").order()
    watch = speed_memory._Watch()
    peer = Peer(folder, rows, "full", side, type("", (), {"order": staticmethod(lambda: order)}))  # type: ignore[arg-type]
    peer.reset()

    class Between(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.after(state.global_step)

    peer.trainer.add_callback(Between())
    losses = peer.fit()
    return {"peak": watch.peak, "rest": watch.rest, "losses": losses}


def load() -> dict[str, Any]:
    """Finished cells."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def table(found: dict[str, Any]) -> str:
    """benchmarks/speed_judged.md."""
    lines = [
        "# Speed: preferences and reward models", "",
        "Made by `python benchmarks/speed_judged.py`; what a cell is stands on its first lines. Ratios are TRL's CPU time over ours,",
        "medians of the rounds' own ratios with the least and the greatest; \"compact\" is TRL as on a GPU, the fair side to beat.", "",
        "| DPO, prompt:completion | reference's pass counted | at least | reference cached | at least | rounds | losses apart |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, (first, later) in MUST.items():
        if name not in found:
            continue
        one = found[name]
        shown = [_shown(one["ratios"][f"{way}, against compact"]) for way in ("reference timed", "reference cached")]
        goals = ["" if goal is None else f"{goal}x" for goal in (first, later)]
        rounds = len(one["seconds"]["compact"])
        lines.append(f"| {name} | {shown[0]} | {goals[0]} | {shown[1]} | {goals[1]} | {rounds} | {one['apart']:.0e} |")
    if "memory" in found:
        sides = {name: one["peak"] / 1e6 for name, one in found["memory"]["sides"].items()}
        lines += ["", f"Peak memory of a step of full fine-tuning, 8 pairs at 4:1, 57.7 million parameters: ours {sides['ours']:,.0f} MB, "
                  f"TRL with its separate reference {sides['compact']:,.0f} MB: {found['memory']['share']:.2f} of it (at most 0.80, "
                  "aim 0.65)."]  # fmt: skip
    return "\n".join([*lines, *_rewards()]) + "\n"


REWARDS = {"K4-192/48": (5, 6.5), "K8-128/32": (17, 22)}  # at 4:1: at least, aim


def _rewards() -> list[str]:
    """What `speed_reward.py` found."""
    file = RESULTS.with_name("speed_reward.json")
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    lines = [
        "", "A reward model from K-way rankings, 4:1, against TRL's RewardTrainer on all their pairs "
        "(`python benchmarks/speed_reward.py`):", "",
        "| K, prompt/output | CPU time of TRL over ours | at least | aim | by tokens alone | rounds | losses apart |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, (least, aim) in REWARDS.items():
        if name in found:
            one = found[name]
            ratios = [theirs / mine for theirs, mine in zip(one["trl"], one["ours"], strict=True)]
            lines.append(
                f"| {name} | {_shown(ratios)} | {least}x | {aim}x | {one['limit']:.1f}x | {len(ratios)} | {one['losses apart']:.0e} |"
            )
    return lines if len(lines) > 5 else []


def _shown(ratios: list[float]) -> str:
    return f"**{statistics.median(ratios):.2f}x** ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Run what is missing or named, then write the table."""
    arguments = sys.argv[1:]
    rounds = int(arguments[arguments.index("--rounds") + 1]) if "--rounds" in arguments else ROUNDS
    wanted = [word for word in arguments if not word.startswith("--") and not word.isdigit()]
    if unknown := set(wanted) - set(CELLS):
        raise SystemExit(f"no cell {sorted(unknown)[0]!r}; there are {', '.join(CELLS)}")
    if "--table" not in arguments:
        import speed_cells

        for name, (adapt, shape) in CELLS.items():
            if name not in wanted and (wanted or name in load()):
                continue
            started = time.process_time()
            result = memory() if name == "memory" else cell(adapt, shape, rounds)
            result |= {"environment": speed_cells.environment(), "cpu_seconds": time.process_time() - started}
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(load() | {name: result}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            short = {key: round(statistics.median(values), 3) for key, values in result.get("ratios", {}).items()}
            print(f"{name:<10}{short or round(result['share'], 3)}  {result['cpu_seconds']:.0f} CPU s", flush=True)
    (Path(__file__).parent / "speed_judged.md").write_text(table(load()), encoding="utf-8")


if __name__ == "__main__":
    if "--side" in sys.argv:
        print(json.dumps(_side(sys.argv[sys.argv.index("--side") + 1])))
    else:
        main()
