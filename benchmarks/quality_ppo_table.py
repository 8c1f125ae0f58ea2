"""The tables and the pictures of benchmarks/quality_ppo.py."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from luthier.evaluate.page import pictures
from luthier.evaluate.page.style import STYLE
from luthier.rollouts.yardstick import reaches

HERE = Path(__file__).parent
HEAD = """# Learning from a reward: what was reached, at what KL

Written by `python benchmarks/quality_ppo.py --table`; the pictures are in `quality_ppo.html`. stories260k, LoRA, test
prompts; mean over seeds, and the seeds themselves. The judge "gold" is simulated and is never learned from.
"""


def write(results: dict[str, Any]) -> None:
    """quality_ppo.md and quality_ppo.html, from whatever is there."""
    groups: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for name, found in sorted(results.items()):
        part, way, _ = name.split("/")
        groups[part][way].append(found)
    text = [HEAD, *_frontier(groups["frontier"]), *_taught(groups["taught"]), *_steady(groups["steady"])]
    (HERE / "quality_ppo.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    body = "".join(_pictures(groups))
    page = (
        f"<!doctype html><meta charset=utf-8><title>Reward against KL</title><style>{STYLE}</style><main>{body}</main>"
    )
    (HERE / "quality_ppo.html").write_text(page, encoding="utf-8")


def _several(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def _frontier(ways: dict[str, list[Any]]) -> list[str]:
    if not ways:
        return []
    lines = [
        "## Reward against KL",
        "",
        "| way | reward | gold | KL, nats | KL at best-of-16's reward | alarms |",
        "|---|---|---|---|---|---|",
    ]
    yardsticks = [found["yardstick"] for several in ways.values() for found in several if found.get("yardstick")]
    if yardsticks:
        last = [line[-1] for line in yardsticks]
        told = [_several([one[key] for one in last[:3]]) for key in ("reward", "gold")]
        lines.append(
            f"| best of {last[0]['n']:.0f} | {told[0]} | {told[1]} | {last[0]['kl']:.2f} | {last[0]['kl']:.2f} | |"
        )
    goal = float(np.mean([line[-1]["reward"] for line in yardsticks])) if yardsticks else float("nan")
    for way, several in ways.items():
        cells = [_several([found["test"][key] for found in several]) for key in ("reward", "gold", "kl")]
        spent = [_spent(found["curve"], goal) for found in several]
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


def _taught(ways: dict[str, list[Any]]) -> list[str]:
    if not ways:
        return []
    head = "| reward model | gold at the start | best gold | its KL | gold at the end | KL at the end |"
    lines = ["## A reward model as the only teacher", "", head, "|---|---|---|---|---|---|"]
    for way, several in ways.items():
        best = [max(found["curve"], key=lambda line: line[2]) for found in several]
        cells = [
            [found["start"]["gold"] for found in several], [line[2] for line in best], [line[3] for line in best],
            [found["curve"][-1][2] for found in several], [found["curve"][-1][3] for found in several],
        ]  # fmt: skip
        lines.append(f"| {way} | {' | '.join(map(_several, cells))} |")
    return [*lines, ""]


def _steady(ways: dict[str, list[Any]]) -> list[str]:
    if not ways:
        return []
    head = "| ppo with | KL of successive policies, nats a token | weights moved a rollout, % | worst drop of reward |"
    lines = ["## Small and steady steps", "", head, "|---|---|---|---|"]
    for way, several in ways.items():
        moved = [100 * float(np.mean(found["moved"])) for found in several]
        cells = [[found["drift"] for found in several], moved, [found["worst_drop"] for found in several]]
        lines.append(f"| {way} | {' | '.join(map(_several, cells))} |")
    return [*lines, ""]


def _pictures(groups: dict[str, dict[str, list[Any]]]) -> list[str]:
    drawn = []
    for part, ways in groups.items():
        for way, several in ways.items():
            for at, judge in ((1, "reward"), (2, "gold")):
                lines = [
                    (f"seed {seed}", "own", sorted((line[3], line[at]) for line in found["curve"] if len(line) == 4))
                    for seed, found in enumerate(several)
                ]
                best = next((found["yardstick"] for found in several if found.get("yardstick")), None)
                if best and "gold" in best[0]:
                    lines.append(("best of n", "rival", [(one["kl"], one[judge]) for one in best]))
                drawn.append(pictures.curve(f"{part}, {way}: {judge} against KL", lines, across="KL"))
    return drawn
