"""The tables of benchmarks/quality_ppo.py."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import quality_ppo_picture
from luthier.rollouts.yardstick import reaches

HERE = Path(__file__).parent
HEAD = """# Learning from a reward: what was reached, at what KL

Written by `python benchmarks/quality_ppo.py --table`. stories260k, LoRA, test prompts; mean over seeds, and the seeds
themselves. The rewards are programs (`ppo_rules.py`); "gold" is never learned from. Rates were not tuned to end at one
distance: `reinforce`, `rloo` and `grpo` go on where `ppo` has stopped, so compare at equal KL.
"""


def write(results: dict[str, Any]) -> None:
    """quality_ppo.md and the pictures, from whatever is there."""
    groups: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for name, found in sorted(results.items()):
        part, way, _ = name.split("/")
        groups[part][way].append(found)
    text = [HEAD, *_frontier(groups["frontier"]), *_taught(groups), *_steady(groups["steady"])]
    (HERE / "quality_ppo.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    quality_ppo_picture.draw(groups)


def _several(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def _frontier(ways: dict[str, list[Any]]) -> list[str]:
    if not ways:
        return []
    lines = [
        "## Reward against KL",
        "",
        "![both rewards against KL](../docs/frontier.svg)",
        "",
        "| way | reward | gold | KL, nats | KL at best-of-16's reward | alarms |",
        "|---|---|---|---|---|---|",
    ]
    yardsticks = [found["yardstick"] for found in ways.get("ppo", []) if found.get("yardstick")]  # one a seed
    if yardsticks:
        last = [line[-1] for line in yardsticks]
        told = [_several([one[key] for one in last]) for key in ("reward", "gold")]
        lines.append(
            f"| best of {last[0]['n']:.0f} | {told[0]} | {told[1]} | {last[0]['kl']:.2f} | {last[0]['kl']:.2f} | |"
        )
    goals = [line[-1]["reward"] for line in yardsticks]
    for way, several in ways.items():
        cells = [_several([found["test"][key] for found in several]) for key in ("reward", "gold", "kl")]
        spent = [_spent(found["curve"], goal) for found, goal in zip(several, goals, strict=False) if found["curve"]]
        told = ", ".join("not reached" if one is None else f"{one:.2f}" for one in spent)
        lines.append(f"| {way} | {' | '.join(cells)} | {told} | {sum(bool(found['alarms']) for found in several)} |")
    return [*lines, ""]


def _spent(curve: list[list[float]], goal: float) -> float | None:
    """The KL at which the evaluations first reach a reward, between two of them."""
    points = [{"kl": line[3], "reward": line[1]} for line in curve if len(line) == 4]
    for at, point in enumerate(points):
        if point["reward"] >= goal:
            return point["kl"] if at == 0 else reaches([points[at - 1], point], goal)
    return None


TRUE = {
    "taught": "True judge `gold`: a happy word or two, nothing repeated. 96 steps.",
    "fluent": "True judge `fluent`: a happy word or two, in neighbours that real stories have too. 224 steps.",
}


def _taught(groups: dict[str, dict[str, list[Any]]]) -> list[str]:
    if not any(groups[part] for part in TRUE):
        return []
    keys = ("at the start", "best", "its KL", "lost a tenth of it at", "at the end", "KL at the end", "entropy", "repeated")
    lines = ["## A reward model as the only teacher", "", "![the true reward against KL](../docs/taught.svg)", ""]
    for part, says in TRUE.items():
        lines += [says, "", f"| reward model | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
        for way, several in groups[part].items():
            best = [max(found["curve"], key=lambda line: line[2]) for found in several]
            cells = [
                [found["start"]["gold"] for found in several], [line[2] for line in best], [line[3] for line in best],
                [_lost(found["curve"]) for found in several], [found["curve"][-1][2] for found in several],
                [found["curve"][-1][3] for found in several],
                *[[found["rollouts"][-1][key] for found in several] for key in ("entropy", "repeated")],
            ]  # fmt: skip
            lines.append(f"| {way} | {' | '.join(map(_several, cells))} |")
        lines.append("")
    return [
        *lines,
        "Of the true reward: its mean on the eval prompts at the start, at its best and at the end, and the KL from which on it is never",
        "again within a tenth of its best (the end of the run where it still is). Entropy in nats a token, and the share of four-word runs",
        "that stood there before, are of the last rollout.", "",
    ]  # fmt: skip


def _lost(curve: list[list[float]]) -> float:
    """The KL of the first evaluation after the last one within a tenth of the best true reward."""
    good = 0.9 * max(line[2] for line in curve)
    last = max(at for at, line in enumerate(curve) if line[2] >= good)
    return curve[min(last + 1, len(curve) - 1)][3]


def _steady(ways: dict[str, list[Any]]) -> list[str]:
    if not ways:
        return []
    head = "| ppo with | KL of successive policies, nats a token | weights moved a rollout, % | worst drop of reward |"
    lines = ["## Small and steady steps", "", "![each rollout's reward](../docs/steady.svg)", "", head, "|---|---|---|---|"]
    for way, several in ways.items():
        moved = [100 * float(np.mean(found["moved"])) for found in several]
        cells = [[found["drift"] for found in several], moved, [found["worst_drop"] for found in several]]
        lines.append(f"| {way} | {' | '.join(map(_several, cells))} |")
    return [*lines, ""]
