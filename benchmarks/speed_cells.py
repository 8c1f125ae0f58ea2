"""The cells of the speed benchmark; each returns what stands in results/speed.json."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROUNDS = 5
ROWS = 64  # of 16 to 512 tokens, mean 131


def environment() -> dict[str, Any]:
    """Versions and CPU."""
    import torch

    from luthier.engine import machine

    model = "unknown"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told = dict(line.split(":", 1) for line in lines if ":" in line)
        told = {key.strip(): value.strip() for key, value in told.items()}
        model = f"{told.get('model name')} family {told.get('cpu family')} model {told.get('model')}"
    return {**machine.environment(torch.device("cpu"), "fp32"), "cpu_model": model, "cores": os.cpu_count()}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and what came out."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def _against(ours: Any, peer: Any, second: bool = False) -> dict[str, Any]:
    """Rounds of peer and ours in turn; with `second` a further fit on what the first one cached."""
    import speed_sides

    result: dict[str, Any] = {"peer": [], "ours": [], "apart": 0.0, "ratios": {"first": []}}
    if second:
        result["second"], result["ratios"]["second"] = [], []
    for number in range(1 + ROUNDS):
        peer.reset()
        with contextlib.redirect_stdout(io.StringIO()):  # Trainer prints its summary
            theirs, losses = timed(peer.fit)
        ours.reset(clear=True)
        mine, found = timed(ours.fit)
        apart = [speed_sides.same(found, losses)]
        if second:
            ours.reset(clear=False)
            again, found = timed(ours.fit)
            assert ours.attached["hit"]
            apart.append(speed_sides.same(found, losses))
        if number == 0:
            result["losses"] = {"peer": [round(x, 7) for x in losses], "ours": [round(x, 7) for x in found]}
            continue
        result["apart"] = max(result["apart"], *apart)
        result["peer"].append(theirs)
        result["ours"].append(mine)
        result["ratios"]["first"].append(theirs / mine)
        if second:
            result["second"].append(again)
            result["ratios"]["second"].append(theirs / again)
    lengths = ours.encoded.lengths
    told = {"rows": len(lengths), "tokens": int(lengths.sum()), "longest": int(lengths.max()), "epochs": ours.epochs}
    return result | {"data": told | {"steps": ours.plan.steps, "overhead": ours.plan.overhead}}


def _quiet() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def head() -> dict[str, Any]:
    """Linear probe on the mean of the token states, everything below it frozen."""
    _quiet()
    import speed_models
    import speed_sides

    folder = speed_models.bert()
    ours = speed_sides.Ours(folder, "head", "mean", ROWS, 1e-2)
    return _against(ours, speed_sides.Peer(folder, ours, depth_frozen=6), second=True)


def last_n() -> dict[str, Any]:
    """The last of six blocks and BERT's own pooler and classifier learn."""
    _quiet()
    import speed_models
    import speed_sides

    folder = speed_models.bert()
    ours = speed_sides.Ours(folder, {"kind": "last-n", "n": 1}, "cls", ROWS, 5e-5)
    return _against(ours, speed_sides.Peer(folder, ours, depth_frozen=5))


def full() -> dict[str, Any]:
    """Every parameter learns, with BERT's own pooler and classifier; one epoch."""
    _quiet()
    import speed_models
    import speed_sides

    folder = speed_models.bert()
    ours = speed_sides.Ours(folder, "full", "cls", ROWS, 5e-5, epochs=1)
    return _against(ours, speed_sides.Peer(folder, ours))


class _InTurn:
    """Steps for the loop; between any two of them the bare loop takes the same step, on a clock of its own."""

    def __init__(self, loader: Any, bare: Callable[[Any], float]) -> None:
        self.loader, self.bare = loader, bare
        self.ready = list(loader.steps())
        self.theirs = self.collating = self.outside = 0.0
        self.losses: list[float] = []

    def steps(self, start: int = 0) -> Iterator[Any]:
        """Each step, cut and padded anew as in a run; the bare loop gets it ready-made."""
        fresh = self.loader.steps(start)
        for ready in self.ready[start:]:
            entered = time.process_time()
            took, loss = timed(lambda: self.bare(ready))  # noqa: B023  called at once
            self.theirs += took
            self.losses.append(loss)
            took, step = timed(lambda: next(fresh))
            self.collating += took
            self.outside += time.process_time() - entered
            yield step


def _bare(model: Any, steps: int, lr: float) -> Callable[[Any], float]:
    """A torch loop with nothing in it: the same model, optimizer, schedule, clipping and micro-batches."""
    import torch

    from luthier.engine import optimizer

    parameters = [p for p in model.parameters() if p.requires_grad]
    adamw = optimizer.adamw(optimizer.groups(model, lr, 0.0, {}))
    model.train()

    def step(given: Any) -> float:
        for group in adamw.param_groups:
            group["lr"] = lr * (1 - given.number / steps)
        rows, total = len(given.ids), 0.0
        for batch in given.micros:
            loss = torch.nn.functional.cross_entropy(model(batch), batch["targets"], reduction="sum") / rows
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        adamw.zero_grad()
        return total

    return step


def loop() -> dict[str, Any]:
    """Our loop and a bare torch loop, step by step in turn, full fine-tuning; no checkpoint on either side."""
    _quiet()
    import speed_models
    import speed_sides
    from luthier.engine.log import Console
    from luthier.engine.stop import Stop

    ours = speed_sides.Ours(speed_models.bert(), "full", "cls", ROWS, 5e-5, epochs=1)
    result: dict[str, Any] = {"peer": [], "ours": [], "collating": [], "apart": 0.0, "ratios": {"loop": [], "with the cut": []}}
    for number in range(1 + 2 * ROUNDS):
        ours.reset(clear=True)
        one = ours.loop(Console(quiet=True), Stop())
        turns = _InTurn(ours.loader(), _bare(copy.deepcopy(ours.built.model), ours.plan.steps, ours.lr))
        one.batches = turns
        object.__setattr__(one, "save", lambda: None)
        spent, _ = timed(one.run)
        one.log.close()
        mine = spent - turns.outside
        apart = speed_sides.same(speed_sides.losses_of(one.log.file), turns.losses)
        if number == 0:
            continue
        result["apart"] = max(result["apart"], apart)
        result["peer"].append(turns.theirs)
        result["ours"].append(mine)
        result["collating"].append(turns.collating)
        result["ratios"]["loop"].append(mine / turns.theirs)
        result["ratios"]["with the cut"].append((mine + turns.collating) / turns.theirs)
    return result | {"data": {"rows": ROWS, "steps": ours.plan.steps, "micros": sum(len(step.micros) for step in turns.ready)}}


def sft() -> dict[str, Any]:
    """Supervised fine-tuning on texts of many lengths, fp32, against TRL."""
    _quiet()
    import speed_text

    return speed_text.sft()


def sft_bf16() -> dict[str, Any]:
    """The same in bf16, against TRL with its defaults."""
    _quiet()
    import speed_text

    return speed_text.sft_bf16()


def sft_memory() -> dict[str, Any]:
    """Peak memory of a step."""
    import speed_memory

    return speed_memory.measure()


def search() -> dict[str, Any]:
    """Twenty head settings by `luthier search`, against twenty runs of Trainer."""
    _quiet()
    import speed_search

    return speed_search.measure()


def launch() -> dict[str, Any]:
    """What one more micro-batch costs, in tokens."""
    _quiet()
    import speed_launch

    return {"sizes": speed_launch.measure()}


def _child(command: list[str]) -> float:
    """CPU seconds (user and system) of a child process that must end well."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command}: {out.decode()}"
    return usage.ru_utime + usage.ru_stime


def start() -> dict[str, Any]:
    """Whole processes: bare Python, --help, and checking a recipe up to where torch would be imported."""
    import speed_models

    speed_models.WORK.mkdir(parents=True, exist_ok=True)
    recipe = speed_models.WORK / "recipe.yaml"
    recipe.write_text("model: pocket\nadapt: lora\ndata: {train: rows.csv}\ntrain: {epochs: 3, lr: 5e-4}\n", encoding="utf-8")
    check = f"import sys; from luthier.recipe import read; read({str(recipe)!r}); assert 'torch' not in sys.modules"
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "luthier --help": [str(Path(sys.executable).parent / "luthier"), "--help"],
        "checking a recipe": [sys.executable, "-c", check],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(1 + 7):
        for name, command in commands.items():
            took = _child(command)
            if number:
                seconds[name].append(took)
    return {"seconds": seconds}
