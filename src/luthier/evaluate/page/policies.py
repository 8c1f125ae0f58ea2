"""The sections of a policy that was taught by judgements: how far it went, round by round, and the pairs it has wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluate.page.sections import Run, section
from luthier.evaluate.page.words import MISSING, count, is_number, number, part, shown, table

SHORT = 260  # characters of a prompt or an answer
NAMES = {
    "reward": "the judge's score of its own answers", "chosen": "log-probability of the better answers, nats an answer",
    "rejected": "log-probability of the worse answers, nats an answer",
}  # fmt: skip


def is_taught(record: Mapping[str, Any]) -> bool:
    """Whether judgements taught a model that writes."""
    return bool(part(record, "method", "task") == "prefer")


def went(run: Run) -> str:
    """Absolute log-probabilities, KL to the reference and lengths, before and after."""
    found = part(run.record, "preference")
    rows = []
    for name, says in NAMES.items():
        moved = found.get(name) if found else None
        if not isinstance(moved, Mapping):
            continue
        value, low, high = moved["change"]
        rows.append([says, number(moved["before"]), number(moved["after"]), _change(value, low, high)])
    drift = found.get("drift") if found else None
    if isinstance(drift, Mapping):
        low, high = drift["kl_interval"]
        bounds = f' <span class="small">{number(low)} to {number(high)}</span>' if is_number(low) else ""
        rows.append(["KL to the reference, nats an answer", "0", f"{number(drift['kl'])}{bounds}", ""])
        rows.append(["KL to the reference, nats a token", "0", number(drift["kl_per_token"]), ""])
        before = drift.get("length_before")
        gap = drift["length"] - before if is_number(before) else None
        rows.append(["length of its own answers, tokens", number(before), number(drift["length"]), _signed(gap)])
    if not rows:
        return ""
    body = table(["", "before", "after", "change"], rows)
    if isinstance(drift, Mapping):
        cut = f" {100 * drift['cut']:.0f} % of them were cut at the longest length." if drift["cut"] else ""
        body += f'<p class="small">KL and lengths from {count(drift["answers"])} answers drawn at temperature 1.{cut}</p>'
    lead = "A margin can grow while both answers become less likely: what counts is where the better ones went, and what it cost."
    return section("How far it went", body, lead, "went")


def _change(value: float, low: float, high: float) -> str:
    return f'{_signed(value)} <span class="small">{_signed(low)} to {_signed(high)}</span>'


def _signed(value: Any) -> str:
    if not is_number(value):
        return MISSING
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{number(abs(value))}"


def rounds(run: Run) -> str:
    """Of the iterative mode: the judge's mean score of each round's answers, and what was learned from."""
    found = run.record.get("rounds") or []
    lines = [
        [str(one["round"]), number(one["reward"]), number(one["best"]), number(one["length"]), count(one["judgements"])]
        for one in found
        if isinstance(one, Mapping)
    ]
    if not lines:
        return ""
    judge = shown(part(run.record, "method").get("judge") or "")
    body = table(["round", "mean score", "mean of the best", "tokens", "judgements"], lines)
    return section("Round by round", body, f"What the judge <strong>{judge}</strong> gave the policy's own answers.", "rounds")


def mistaken(run: Run) -> str:
    """Held-out judgements whose better answer the policy still finds the less likely to be better."""
    cards = [_card(line) for line in run.wrong if isinstance(line.get("completions"), Sequence)]
    if not cards:
        return ""
    lead = "Held-out judgements that the policy has the wrong way round, the widest gap first."
    return section("Still the wrong way round", f'<ol class="examples">{"".join(cards)}</ol>', lead, "mistaken")


def _place(rank: Any) -> str:
    return f"rank {rank:g}" if is_number(rank) else "not ranked"


def _card(line: Mapping[str, Any]) -> str:
    ranks, said = line.get("ranks") or [], line["completions"]
    answers = "".join(
        f'<p dir="auto"><bdi>{shown(str(text).strip(), SHORT)}</bdi> <span class="small">{_place(rank)}</span></p>'
        for text, rank in zip(said, ranks, strict=False)
    )
    who = f" · {shown(line['rater'], 40)}" if line.get("rater") else ""
    return (
        f'<li><p dir="auto" class="small"><bdi>{shown(str(line.get("text") or "").strip(), SHORT)}</bdi></p>{answers}'
        f'<p class="small">row {shown(line.get("row", "?"))}{who} · margin {number(line.get("margin"))}</p></li>'
    )
