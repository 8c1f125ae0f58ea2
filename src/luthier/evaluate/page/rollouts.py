"""The sections of a policy: reward against KL with best-of-n as the yardstick, health, answers, samples over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluate.page import pictures
from luthier.evaluate.page.sections import Run, section
from luthier.evaluate.page.words import count, figure, is_number, number, part, percent, shown, size, table

KINDS = ("ppo", "grpo", "rloo", "reinforce")
MOMENTS = 5  # of a run that are shown over time
PROMPTS = 4  # that are shown over time
CARDS = 8  # held-out prompts side by side
LONG = 420  # characters of a completion
FIGURES = (
    ("score", "score of the rollouts"),
    ("kl", "KL to the start, nats a completion"),
    ("entropy", "entropy, nats a token"),
    ("length", "tokens of a completion"),
    ("repeated", "share of repeated 4-grams"),
    ("distinct", "share of distinct completions"),
    ("ended", "share that ended by themselves"),
    ("explained", "variance explained by the value model"),
    ("clipped", "share clipped"),
    ("drift", "KL from the sampling policy, nats a token"),
    ("price", "price of a nat"),
    ("doubt", "disagreement of the ensemble"),
)
HELD = {
    "base": "the base, once, for policy, reference and value",
    "policy": "what the policy learns",
    "value": "the value model's head (and adapter)",
    "reference": "a copy of what learns, for the reference; none where the adapter is switched off instead",
    "judges": "judges that are loaded beside it",
}


def is_policy(record: Mapping[str, Any]) -> bool:
    """Whether the run learned from its own samples."""
    return part(record, "recipe", "method", "kind") in KINDS


def _points(lines: Sequence[Mapping[str, Any]], across: str, up: str) -> list[tuple[float, float]]:
    both = ((line.get(across), line.get(up)) for line in lines)
    return [(float(x), float(y)) for x, y in both if is_number(x) and is_number(y)]


def frontier(run: Run) -> str:
    """Reward against KL over the evaluations, beside best-of-n of the starting model."""
    record = run.record
    evaluations = [line for line in run.steps if is_number(line.get("eval/reward"))]
    yardstick = [line for line in record.get("yardstick") or [] if isinstance(line, Mapping)]
    drawn = ""
    for key, judge in (("reward", "reward"), ("gold", "gold judge")):
        own = sorted(_points(evaluations, "eval/kl", f"eval/{key}"))
        best = _points(yardstick, "kl", key)
        if not own:
            continue
        keys = ' <span class="key own">policy, eval prompts</span>'
        keys += (
            f' <span class="key rival">best of 1 to {number(yardstick[-1]["n"])}, held-out prompts</span>'
            if best
            else ""
        )
        lines = [("policy", "own", own), ("best of n", "rival", best)]
        drawn += pictures.curve(f"{judge}{keys}", lines, across="KL")
    said = ""
    tried = part(record, "metrics", str(record.get("headline_split"))) or {}
    if yardstick and is_number(tried.get("reward")):
        top = yardstick[-1]
        said = (
            f"<p>Best of {count(top['n'])} of the starting model scores {figure('reward', top['reward'])} at a KL of "
            f"{number(top['kl'])} nats; the policy scores {figure('reward', tried['reward'])} at {number(tried.get('kl'))}.</p>"
        )
    told = [
        f"{percent(one['rate'], 1)} ({percent(one['interval'][0], 1)} to {percent(one['interval'][1], 1)}) by {shown(one['judge'], 90)}"
        for one in record.get("wins") or []
    ]
    if told:
        said += (
            f"<p>A completion is preferred to one of the starting model to the same prompt in {', and '.join(told)} of the pairs.</p>"
        )
    lead = "What the reward costs: the distance from the model that the stage started from. Best-of-n spends log n - (n - 1)/n."
    return section(
        "Reward against KL", f'{said}<div class="curves">{drawn}</div>' if drawn or said else "", lead, "frontier"
    )


def health(run: Run) -> str:
    """Figures of the rollouts over the steps, each judge, and alarms."""
    alarms = run.record.get("alarms") or []
    items = "".join(f"<li>{shown(one, 600)}</li>" for one in alarms)
    said = f'<div class="note bad"><ul>{items}</ul></div>' if items else ""
    drawn = ""
    for key, title in FIGURES:
        points = _points(run.rollouts, "step", key)
        if len(points) > 1 and (key not in ("price", "repeated") or len({y for _, y in points}) > 1):
            drawn += pictures.curve(title, [(title, "own", points)])
    names = sorted({name for line in run.rollouts for name in (line.get("parts") or {})})
    if len(names) > 1:
        for name in names:
            points = [
                (float(line["step"]), float(line["parts"][name]))
                for line in run.rollouts
                if name in line.get("parts", {})
            ]
            drawn += pictures.curve(f"judge {shown(name, 60)}", [(name, "rival", points)])
    shown_, plain = (_points(run.steps, "step", key) for key in ("eval/shown", "eval/reward"))
    if shown_:
        keys = '<span class="key own">without</span> <span class="key rival">with</span>'
        drawn += pictures.curve(
            f"eval reward, demonstrations {keys}", [("without", "own", plain), ("with", "rival", shown_)]
        )
    if not drawn and not said:
        return ""
    fine = (
        ""
        if alarms
        else '<p class="small">No alarm: KL, entropy, diversity, length, values and clipping are within bounds.</p>'
    )
    return section("Health", f'{said}{fine}<div class="curves">{drawn}</div>', "A point is a rollout.")


def side_by_side(run: Run) -> str:
    """Held-out prompts: the starting model's completion and the policy's, drawn with the same noise."""
    cards = []
    for line in run.tried[:CARDS]:
        answers = "".join(
            f'<div class="{kind}"><h3>{name} <span class="small">{_score(line, prefix)}</span></h3><p dir="auto"><bdi>'
            f"{_said(line.get(key))}</bdi></p></div>"
            for name, key, prefix, kind in (
                ("At the start", "start", "start_", "before"),
                ("Now", "policy", "", "after"),
            )
        )
        cards.append(
            f'<li><div class="asked"><h3>Prompt</h3><p dir="auto"><bdi>{_said(line.get("prompt"))}</bdi></p></div>'
            f'<div class="answers">{answers}</div></li>'
        )
    lead = "The same held-out prompts and the same noise, before and after."
    return section("Side by side", f'<ol class="samples">{"".join(cards)}</ol>' if cards else "", lead, "samples")


def _score(line: Mapping[str, Any], prefix: str) -> str:
    told = [
        f"{name} {number(line[key])}" for name in ("reward", "gold") if is_number(line.get(key := f"{prefix}{name}"))
    ]
    return ", ".join(told)


def _said(text: Any) -> str:
    plain_text = str(text or "").strip()
    return shown(plain_text, LONG) if plain_text else '<span class="small">nothing</span>'


def over_time(run: Run) -> str:
    """The same prompts at some moments of the run."""
    lines = [line for line in run.samples if line.get("shown")]
    if not lines:
        return ""
    count_ = min(MOMENTS, len(lines))
    chosen = [lines[round(at * (len(lines) - 1) / max(1, count_ - 1))] for at in range(count_)]
    body = ""
    for at, first in enumerate(chosen[0]["shown"][:PROMPTS]):
        rows = [
            [count(line["step"]), _said(line["shown"][at].get("text")), number(line["shown"][at].get("score"))]
            for line in chosen
            if at < len(line["shown"])
        ]
        body += f"<h3><bdi>{_said(first.get('prompt'))}</bdi></h3>{table(['step', 'what it wrote', 'score'], rows, 'pairs')}"
    return section("Over time", body, "The same prompts and the same noise as the policy learned.", "time")


def held(run: Run) -> str:
    """What one model holds for all the roles."""
    told = run.record.get("held") or {}
    rows = [[shown(HELD.get(name, name)), size(value)] for name, value in told.items() if is_number(value)]
    return section("What is held in memory", table(["role", "weights"], rows) if rows else "", key="held")
