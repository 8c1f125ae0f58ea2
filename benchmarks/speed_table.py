"""benchmarks/speed.md from results/speed.json."""

from __future__ import annotations

import statistics
from typing import Any

TOP = """# Speed

Made by `python benchmarks/speed.py`; raw figures and the losses of every step are in results/speed.json. Process CPU time,
one thread, the sides in turn, one warm round, then five measured (ten for the loop); the figure is the median of the rounds'
own ratios, [lowest to highest]. fp32 on both sides.
"""
HEAD = "| work | peer, CPU s | luthier, CPU s | ratio | at least | aim | largest difference of a loss |\n|---|---|---|---|---|---|---|"
INSIDE = """
**What is inside.** BERT h256 L6 with random weights, word-level tokenizer of 8,192 words, {rows} texts of Zipf words with lognormal
lengths (16 to {longest}, mean {mean:.0f} tokens), batch 8, no dropout. Both sides start after tokenising and loading, from equal weights
(head included), take the rows in the same order, and use Trainer's own defaults: fused AdamW, rate falling linearly, norm clipped
to 1, no decay. The loss of every step is equal to four digits, which is asserted in every round.

- Peer: `Trainer.train()` of transformers with its defaults (padding to the longest of the batch, no grouping by length), no saving,
  no evaluation, no reports; making the Trainer is not counted. `head`: a module of backbone, mean over real tokens and a linear layer;
  `last-n` and `full`: `BertForSequenceClassification`.
- luthier: hashing the frozen weights, estimating whether caching pays, the frozen part computed into an empty cache on disk,
  the optimizer, the loop with its log, and the last checkpoint with its hashes (which the peer does not write). A second head
  starts from the filled cache: the same without computing, everything read back.
- `full` is one epoch; the others are five.
- Loop: full fine-tuning; each step is done by a bare torch loop (same model, micro-batches, optimizer, schedule, clipping) and then by
  ours; no checkpoints. "With the cut" also counts cutting and padding the batch on our side, while the bare loop gets it ready.
- Search: one whole call of `luthier search` (recipe, rows, tokens and model read, features of train and 16 eval rows, twenty trials by
  TPE with an evaluation each epoch, SQLite, report) against `Trainer.train()` for each of the twenty rates, without evaluation. A run
  of Trainer costs the same whatever its rate: one of the twenty is run in a round, another each round, and counted twenty times;
  its losses are those of the trial.
- Start: user and system time of whole processes, median of seven.
"""
TEXT = """
**Text.** Llama h256 L6, output layer untied, {vocabulary:,} words, 8.9 million parameters, random weights; {rows} texts of Zipf words with
lognormal lengths (16 to {longest}, {tokens:,} tokens in all), batch 8, {steps} steps, rate 5e-4 falling linearly, otherwise as above. All
but the first token of a text is learned. The peer is `SFTTrainer.train()` of TRL {trl}, rows padded to the longest of the batch (its
default), no saving, no reports; ours is the loop of a run without evaluation and without its last checkpoint. What luthier computes:
{padded:,} tokens, padding included. Every step's loss is compared with every peer's in every round.

- TRL on a CPU scores all positions of the rectangle. "Compact": only those with a label, as it does on a GPU
  (`trl.trainer.utils._use_triton`); that is the row to beat. "Tiles by rows": also its passes over a tile of logits made 64 rows at a
  time, as its Triton kernel does, where on a CPU whole tiles are copied; nothing in TRL does that on a CPU.
- A good part of the gain is padding: TRL's `packing` removes it too, where FlashAttention is there.
- Memory: Llama h512 L8, 57.7 million parameters, each side in a fresh process, the second step; resident set at its highest above what
  it was after the imports, with malloc told to give back what is freed; in brackets the share of Trainer with its full logits. Weights
  and AdamW's two moments, the same for all, are {state:.0f} MB of it. Losses equal to 1e-5 (fp32), 1e-3 (bf16).
"""


def table(results: dict[str, Any]) -> str:
    """The page; a row appears with its cell."""
    lines = [TOP, HEAD]
    if "head" in results:
        lines += [_row("`head`, 5 epochs", results["head"], "first", "ours", "8x", "9.7x")]
        lines += [_row("`head`, a second head on the same features", results["head"], "second", "second", "100x", "300x")]
    if "last-n" in results:
        lines += [_row("`last-n`, 5 of 6 blocks frozen, 5 epochs", results["last-n"], "first", "ours", "2.0x", "2.4x")]
    if "full" in results:
        lines += [_row("`full`, classification", results["full"], "first", "ours", "1.5x", "1.9x")]
    if "loop" in results:
        lines += [_slower("our loop, a bare torch loop on identical batches", results["loop"], "loop", "+3 %", "+1 %")]
        lines += [_slower("the same with the cut", results["loop"], "with the cut", "", "")]
    if "search" in results:
        lines += [_row("search of 20 head settings, 20 runs of Trainer", results["search"], "search", "ours", "40x", "90x")]
    lines += _text(results) + _memory(results)
    if "start" in results:
        lines += ["", "| start | CPU s | at most |", "|---|---|---|"]
        limits = {"luthier --help": "0.15", "checking a recipe": "0.25 (torch is not imported: asserted)"}
        for name, values in results["start"]["seconds"].items():
            lines.append(f"| {name} | {statistics.median(values):.3f} [{min(values):.3f} to {max(values):.3f}] | {limits.get(name, '')} |")
    if "launch" in results:
        lines += ["", _launch(results["launch"]["sizes"])]
    if "head" in results:
        data = results["head"]["data"]
        lines.append(INSIDE.format(rows=data["rows"], longest=data["longest"], mean=data["tokens"] / data["rows"]))
    if "sft" in results and "sft-memory" in results:
        rest = results["sft-memory"]["modes"]["fp32"]["full logits"]["rest"]
        told = results["sft"]["data"] | {"vocabulary": 8192, "trl": results["sft"]["trl"], "state": rest / 1e6}
        lines.append(TEXT.format(**told))
    if "head" in results:
        lines.append(_environment(results["head"]["environment"]))
    return "\n".join(lines) + "\n"


def _row(name: str, cell: dict[str, Any], key: str, side: str, least: str, aim: str) -> str:
    peer, ours, ratios = cell["peer"], cell[side], cell["ratios"][key]
    digits = 0 if statistics.median(ratios) > 20 else 2
    spread = f"**{statistics.median(ratios):.{digits}f}x** [{min(ratios):.{digits}f} to {max(ratios):.{digits}f}]"
    seconds = f"{statistics.median(peer):.2f} | {statistics.median(ours):.3f}"
    return f"| {name} | {seconds} | {spread} | {least} | {aim} | {cell['apart']:.0e} |"


AIMS = {"sft": {"stock": ("2.0x", "2.4x"), "compact": ("1.6x", "1.9x")}, "sft-bf16": {"stock": ("2.2x", "2.9x")}}
SIDES = {
    "sft": ("fp32", "TRL, fp32, no checkpointing"),
    "sft-bf16": ("bf16", "TRL's defaults: bf16, checkpointing"),
}
WAYS = {"stock": "", "compact": ", compact", "rows": ", compact, tiles by rows"}


def _text(results: dict[str, Any]) -> list[str]:
    """Tokens a second of supervised fine-tuning."""
    cells = {name: results[name] for name in SIDES if name in results}
    if not cells:
        return []
    lines = [
        "", "| text: full fine-tuning | peer, tokens/s | luthier, tokens/s | ratio | at least | aim | largest difference of a loss |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, cell in cells.items():
        precision, peer = SIDES[name]
        ours = cell["data"]["tokens"] / statistics.median(cell["ours"])
        for way, ratios in cell["ratios"].items():
            theirs = cell["data"]["tokens"] / statistics.median(cell["peers"][way])
            spread = f"**{statistics.median(ratios):.2f}x** [{min(ratios):.2f} to {max(ratios):.2f}]"
            least, aim = AIMS[name].get(way, ("", ""))
            lines.append(
                f"| {precision}, against {peer}{WAYS[way]} | {theirs:.0f} | {ours:.0f} | {spread} | {least} | {aim} | {cell['apart']:.0e} |"
            )
    return lines


def _memory(results: dict[str, Any]) -> list[str]:
    """Peak of one step, each side in a process of its own."""
    if "sft-memory" not in results:
        return []
    modes = results["sft-memory"]["modes"]
    lines = ["", f"| peak memory of a step, 8 x 512 tokens, 32,000 words | {' | '.join(modes)} |", f"|---|{'---|' * len(modes)}"]
    for side, says in MEMORY.items():
        figures = []
        for found in modes.values():
            whole = found["full logits"]["peak"]
            share = f" ({found[side]['peak'] / whole:.2f})" if side in found else ""
            figures.append(f"{found[side]['peak'] / 1e6:,.0f} MB{share}" if side in found else "")
        lines.append(f"| {says} | {' | '.join(figures)} |")
    return lines


MEMORY = {
    "full logits": "Trainer, its full logits",
    "full logits, 4 + 4": "Trainer, told to accumulate two halves",
    "TRL": "SFTTrainer",
    "TRL, by rows": "SFTTrainer, compact, tiles by rows",
    "ours": "**luthier**",
    "ours, 4 + 4": "luthier, `train.micro_tokens: 2048`",
    "ours, in one": "luthier, in one piece",
}


def _slower(name: str, cell: dict[str, Any], key: str, least: str, aim: str) -> str:
    peer, ratios = cell["peer"], [100 * (ratio - 1) for ratio in cell["ratios"][key]]
    ours = [ratio * seconds for ratio, seconds in zip(cell["ratios"][key], peer, strict=True)]
    spread = f"**{statistics.median(ratios):+.2f} %** [{min(ratios):+.1f} to {max(ratios):+.1f}]"
    return f"| {name} | {statistics.median(peer):.2f} | {statistics.median(ours):.3f} | {spread} | {least} | {aim} | {cell['apart']:.0e} |"


def _launch(sizes: dict[str, Any]) -> str:
    lines = [
        "What one more micro-batch costs (forward and backward; the constants of `luthier.run.overhead`):", "",
        "| backbone | ms a micro-batch | ms a token | measured, in tokens | what luthier counts with |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, found in sizes.items():
        lines.append(
            f"| BERT {name} | {found['ms_per_launch']:.1f} | {found['ms_per_token']:.3f} | {found['tokens']:.0f} "
            f"| {found['overhead_of_the_product']:.0f} |"
        )
    return "\n".join(lines)


def _environment(told: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {told[name]}" for name in ("python", "torch", "transformers", "numpy") if name in told)
    return f"{packages}; {told['cpu_model']}, {told['cpu']}, {told['cores']} cores, of which one is used."
