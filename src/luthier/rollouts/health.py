"""Is the learning sound? Figures of each rollout, and alarms with what to do about them.

A line of `rollouts.jsonl` is one rollout: `step` (optimizer steps before it), `score` (what judges gave, mean), `parts`
(each judge), `learned` (after penalties and scale), `kl` (nats a completion), `price`, `entropy` (nats a token, estimated
by -log p of what was drawn), `length`, `ended` (share), `empty` (share), `repeated` (share of 4-grams of words that were
there before), `distinct` (share of completions that are no copy of another one), `explained` (variance of returns by
the value model), `doubt` (of an ensemble), `seconds` by part, `shown` (completions to look at).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GRAM = 4  # words
FEW = 3  # rollouts that are averaged at each end of a run


def repeated(texts: Sequence[str]) -> float:
    """Mean over texts of the share of 4-grams of words that occurred in the text before.

    >>> repeated(["a b c d a b c d"])
    0.2
    """
    shares = []
    for text in texts:
        words = text.split()
        grams = [tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1)]
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    return float(np.mean(shares)) if shares else 0.0


def distinct(texts: Sequence[str]) -> float:
    """Share of texts that are different from each other.

    >>> distinct(["a", "a", "b", "c"])
    0.75
    """
    return len(set(texts)) / max(1, len(texts))


def figures_of_texts(texts: Sequence[str], ended: np.ndarray) -> dict[str, float]:
    """What can be told from the texts alone."""
    return {
        "ended": float(ended.mean()), "empty": float(np.mean([not text.strip() for text in texts])),
        "repeated": repeated(texts), "distinct": distinct(texts),
    }  # fmt: skip


def alarms(
    lines: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], target: float | None
) -> list[str]:
    """Sentences: what goes wrong, by which figures, and what to do.

    Args:
        lines: of rollouts.jsonl, in order.
        evaluations: lines of metrics.jsonl that hold `eval/reward`, in order.
        target: of the KL a completion, or None.
    """
    if len(lines) < 2 * FEW:
        return []
    return [said for said in (
        _kl(lines, target), _collapse(lines), _hacking(lines, evaluations), _longer(lines), _empty(lines), _value(lines), _clipped(lines),
        _same(lines),
    ) if said]  # fmt: skip


def ends(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float] | None:
    """Means of a figure over the first and the last few lines that have it."""
    values = [float(line[key]) for line in lines if isinstance(line.get(key), (int, float))]
    if len(values) < 2 * FEW:
        return None
    return float(np.mean(values[:FEW])), float(np.mean(values[-FEW:]))


def _kl(lines: Sequence[Mapping[str, Any]], target: float | None) -> str | None:
    now = float(np.mean([line["kl"] for line in lines[-FEW:]]))
    limit = 3 * target if target else 100.0
    if now <= limit:
        return None
    return (
        f"The KL to the start is {now:.3g} nats a completion, above {limit:.3g}: the policy runs away. Raise method.kl.coef, set "
        "method.kl.target, or lower train.lr."
    )


def _collapse(lines: Sequence[Mapping[str, Any]]) -> str | None:
    entropy, kinds, again = (ends(lines, key) for key in ("entropy", "distinct", "repeated"))
    remedy = "Raise method.kl.coef or method.entropy, lower train.lr, or stop earlier (train.patience)."
    if entropy and entropy[1] < 0.2 * entropy[0]:
        return (
            f"The entropy fell from {entropy[0]:.3g} to {entropy[1]:.3g} nats a token: the policy collapses. {remedy}"
        )
    if kinds and kinds[1] < 0.5 * kinds[0]:
        return f"Only {100 * kinds[1]:.0f} % of the completions differ from each other, {100 * kinds[0]:.0f} % at first. {remedy}"
    if again and again[1] > again[0] + 0.2:
        return f"{100 * again[1]:.0f} % of what is written repeats itself, {100 * again[0]:.0f} % at first. {remedy}"
    return None


def _hacking(lines: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> str | None:
    """The judge that is learned from is happier, and the one that is not is less happy than it was at its best."""
    seen = [line for line in evaluations if "eval/gold" in line]
    gold, proxy = ([float(line[f"eval/{name}"]) for line in seen] for name in ("gold", "reward"))
    remedy = (
        "Raise method.kl.coef, keep the checkpoint of the best gold figure (train.metric: gold), or take an ensemble's worst member "
        "(method.combine: worst)."
    )
    noise = max((float(line.get("eval/gold_error", 0.0)) for line in seen), default=0.0)
    if (
        len(gold) >= 3
        and proxy[-1] > proxy[0]
        and max(gold[:-1]) - gold[-1] > max(0.25 * (max(gold) - min(gold)), 3 * noise)
    ):
        return (
            f"Reward hacking: the reward rose from {proxy[0]:.3g} to {proxy[-1]:.3g} while the gold judge fell from {max(gold):.3g} "
            f"to {gold[-1]:.3g}. {remedy}"
        )
    doubt, score = ends(lines, "doubt"), ends(lines, "score")
    if doubt and score and score[1] > score[0] and doubt[1] > 2 * doubt[0] > 0:
        return (
            f"The members of the reward ensemble differ by {doubt[1]:.3g}, {doubt[0]:.3g} at first, while their score rises: the "
            f"policy has left what they know. {remedy}"
        )
    return None


def _longer(lines: Sequence[Mapping[str, Any]]) -> str | None:
    length, score = ends(lines, "length"), ends(lines, "score")
    if (
        not length
        or not score
        or score[1] <= score[0]
        or not (length[1] > 1.5 * length[0] or length[1] < length[0] / 2)
    ):
        return None
    way = "longer" if length[1] > length[0] else "shorter"
    return (
        f"Completions became {way} ({length[0]:.0f} to {length[1]:.0f} tokens) as the reward rose: see whether the judge pays for "
        "length (the report of a reward run says so), and lower method.rollout.max_new_tokens or mend the judge."
    )


def _empty(lines: Sequence[Mapping[str, Any]]) -> str | None:
    share = float(np.mean([line["empty"] for line in lines[-FEW:]]))
    if share <= 0.5:
        return None
    return (
        f"{100 * share:.0f} % of the completions are empty: the policy writes nothing. Let the judge score an empty text low, or "
        "start from a model that was tuned to answer (method: sft)."
    )


def _same(lines: Sequence[Mapping[str, Any]]) -> str | None:
    last = lines[-FEW:]
    if any(line.get("spread", 1.0) > 1e-9 * max(1.0, abs(line["score"])) for line in last):
        return None
    return (
        f"Every completion of the last {len(last)} rollouts has the score {last[-1]['score']:.3g}: there is nothing to learn from. See "
        "whether the judge reads the completion, or give it a scale with steps between."
    )


def _value(lines: Sequence[Mapping[str, Any]]) -> str | None:
    explained = [
        float(line["explained"]) for line in lines[len(lines) // 2 :] if isinstance(line.get("explained"), float)
    ]
    explained = [value for value in explained if value == value]
    if len(explained) < FEW or float(np.mean(explained)) > -0.1:
        return None
    return (
        f"The value model explains {np.mean(explained):.2f} of the returns' variance, worse than a constant: raise train.head_lr or "
        "method.value.coef, or take method: grpo or rloo, which need none."
    )


def _clipped(lines: Sequence[Mapping[str, Any]]) -> str | None:
    shares = [float(line["clipped"]) for line in lines[-FEW:] if isinstance(line.get("clipped"), float)]
    if not shares or float(np.mean(shares)) <= 0.3:
        return None
    return (
        f"{100 * np.mean(shares):.0f} % of the tokens are clipped: the steps are too large. Lower train.lr or method.epochs, or set "
        "method.target_kl."
    )


def told(file: Path) -> list[dict[str, Any]]:
    """The lines of rollouts.jsonl; a line that a kill cut is left out."""
    found = []
    if file.is_file():
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:
                break
    return found


def begin(file: Path, step: int) -> list[dict[str, Any]]:
    """Keep the lines of rollouts that began before `step`, and give them back: a run that goes on writes the rest again."""
    kept = [line for line in told(file) if line["step"] < step]
    temporary = file.with_name(f".{file.name}")
    temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, file)
    return kept


def add(file: Path, line: Mapping[str, Any]) -> None:
    """One rollout more."""
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(line, ensure_ascii=False) + "\n")
