"""Words of the report: text made safe to show, numbers made easy to read, and the headline sentence."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeGuard

from luthier.data.cells import is_hidden
from luthier.evaluate.metrics import METRICS

Record = Mapping[str, Any]

# Shown as percentages; every other metric as a plain number.
PERCENT = {
    "accuracy",
    "macro-f1",
    "micro-f1",
    "subset-accuracy",
    "entity-f1",
    "entity-precision",
    "entity-recall",
    "token-accuracy",
    "exact-match",
    "pair-accuracy",
}
NAMES = {
    "macro-f1": "macro F1",
    "micro-f1": "micro F1",
    "mcc": "MCC",
    "auroc": "AUROC",
    "log-loss": "log loss",
    "r2": "R²",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "entity-f1": "entity F1",
    "entity-precision": "entity precision",
    "entity-recall": "entity recall",
    "pearson": "Pearson correlation",
    "token-accuracy": "token accuracy",
    "subset-accuracy": "subset accuracy",
    "spearman": "Spearman correlation",
    "bits-per-character": "bits per character",
    "exact-match": "exact match",
    "rouge-l": "ROUGE-L",
    "pair-accuracy": "accuracy on pairs",
    "kendall-tau": "Kendall's tau",
    "pair-loss": "log loss on pairs",
    "ece": "calibration error",
    "judgement-loss": "loss of a judgement",
}
PLAIN = ("mae", "rmse", "log-loss", "perplexity")  # three digits that count, whatever the size
MISSING = "–"


def shown(text: object, limit: int = 0) -> str:
    """Text of others as HTML: escaped, cut after `limit` characters, and with nothing invisible left in it.

    Control, format (bidirectional, zero-width), surrogate and unassigned characters become a small sign
    with their name: they could hide words, or turn the line around.
    """
    plain = str(text)
    cut = limit and len(plain) > limit
    pieces = [character(one) for one in (plain[:limit] if cut else plain)]
    more = f'<span class="more" title="{len(plain) - limit:,} more characters"> …</span>' if cut else ""
    return "".join(pieces) + more


def plain(text: object, limit: int = 0) -> str:
    """The same without markup, for attributes and for SVG, where a span would break the picture."""
    said = str(text)
    cut = limit and len(said) > limit
    return "".join(
        f"\u27e8U+{ord(one):04X}\u27e9" if is_hidden(one) else html.escape(one)
        for one in (said[:limit] if cut else said)
    ) + ("…" if cut else "")


def character(one: str) -> str:
    """One character as HTML."""
    if not is_hidden(one):
        return html.escape(one)
    name = f"U+{ord(one):04X}"
    title = html.escape(unicodedata.name(one, "").lower())
    return f'<span class="hidden" title="{name} {title}">{name}</span>'


def is_number(value: object) -> TypeGuard[float]:
    """A finite int or float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """A plain number with `digits` significant digits, a whole one as it is; thousands set apart; a dash for none."""
    if not is_number(value):
        return MISSING
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.{max(0, digits - 2)}e}".replace("e-0", "e-")
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def figure(metric: str, value: Any, unit: bool = True) -> str:
    """A metric's value as it is usually quoted: 87.3 % or 0.873."""
    if not is_number(value):
        return MISSING
    if metric in PERCENT:
        return f"{100 * value:.1f}" + ("\u202f%" if unit else "")
    return number(value) if metric in PLAIN else f"{value:.3f}"


def span(metric: str, bounds: Any) -> str:
    """Both ends of an interval, or nothing."""
    if not bounds or not all(is_number(bound) for bound in bounds):
        return ""
    return f"{figure(metric, bounds[0], unit=False)} to {figure(metric, bounds[1], unit=False)}"


def metric_name(metric: str) -> str:
    """The metric's name in running text."""
    return NAMES.get(metric, metric)


def higher_is_better(metric: str) -> bool:
    """From the table; an own metric is taken to be better when higher."""
    return METRICS[metric].higher_is_better if metric in METRICS else True


def percent(part_of: float, whole: float) -> str:
    """A share with two digits that count, never in powers of ten: 0.033 %, 5.7 %, 100 %."""
    share = 100 * part_of / whole
    return f"{share:.0f}\u202f%" if share >= 10 else f"{share:.2g}\u202f%" if share >= 0.001 else "<\u202f0.001\u202f%"


def size(value: Any) -> str:
    """Bytes in the unit that reads best."""
    if not is_number(value):
        return MISSING
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{amount:.0f}\u202f{unit}" if unit == "B" or amount >= 100 else f"{amount:.1f}\u202f{unit}"
        amount /= 1024
    return MISSING


def duration(value: Any) -> str:
    """Seconds as a person says them."""
    if not is_number(value):
        return MISSING
    if value < 1:
        return f"{1000 * value:.0f}\u202fms"
    if value < 60:
        return f"{value:.1f}\u202fs"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u202fh {minutes:02d}\u202fmin" if hours else f"{minutes}\u202fmin {seconds:02d}\u202fs"


def count(value: Any) -> str:
    """A whole number, thousands set apart."""
    return f"{value:,.0f}" if is_number(value) else MISSING


def millions(value: Any) -> str:
    """Parameters: 1.2 million rather than 1,203,456."""
    if not is_number(value):
        return MISSING
    for amount, word in ((1e9, "billion"), (1e6, "million")):
        if value >= amount:
            return f"{number(value / amount)} {word}"
    return count(value)


def part(record: Record, *keys: str) -> Any:
    """record[a][b]..., or an empty mapping where a step is missing or null."""
    here: Any = record
    for key in keys:
        here = here.get(key) if isinstance(here, Mapping) else None
    return {} if here is None else here


def headline_metric(record: Record) -> str:
    """The metric that the headline quotes: the one that chose, else the first there is."""
    named = record.get("metric")
    found = part(record, "metrics", split_of(record))
    return named if isinstance(named, str) and (named in found or not found) else next(iter(found), str(named or ""))


def is_written(record: Record) -> bool:
    """Whether the model writes text: it stands against itself before it was tuned."""
    return bool(part(record, "method", "task") == "generate")


def is_judged(record: Record) -> bool:
    """Whether the model sets outputs of one prompt against each other."""
    return bool(part(record, "method", "task") == "judge")


def quoted_metric(record: Record) -> str:
    """The same as people say it: of a loss in nats, the perplexity."""
    metric = headline_metric(record)
    told = part(record, "metrics", split_of(record))
    return "perplexity" if metric == "loss" and is_written(record) and told and "perplexity" in told else metric


def split_of(record: Record) -> str:
    """The split of the headline: test, or eval where there is no test set."""
    return str(record.get("headline_split") or "test")


def who(record: Record) -> str:
    """Such as "lora on stories260k"."""
    adapt = part(record, "adapt", "kind") or part(record, "recipe", "adapt", "kind") or "fine-tuning"
    model = part(record, "model", "name") or part(record, "recipe", "model", "name") or "the model"
    return f"{adapt} on {PurePath(str(model)).name or model}"


def headline(record: Record, last_step: int | None) -> str:
    """The result in one sentence, as HTML."""
    status, metric, split = record.get("status"), quoted_metric(record), split_of(record)
    value = part(record, "metrics", split).get(metric) if part(record, "metrics", split) else None
    subject = f"<strong>{shown(who(record))}</strong>"
    if status == "failed" and value is None:
        return f"{subject} failed{at_step(last_step)}."
    if value is None:
        doing = {"interrupted": "was interrupted", "running": "was still running"}.get(str(status), "left no figure")
        return f"{subject} {doing}{at_step(last_step)}."
    bounds = span(metric, part(record, "intervals", split).get(metric) if part(record, "intervals", split) else None)
    rows = part(record, "data", split).get("rows") if part(record, "data", split) else None
    where = f" on {count(rows)} {split} rows" if is_number(rows) else f" on the {split} rows"
    base = part(record, "baselines", "base")
    if is_written(record) and base and is_number(base.get(metric)):
        verb = "brings" if (value > base[metric]) == higher_is_better(metric) else "takes"
        return (
            f"{subject} {verb} the {shown(metric_name(metric))}{where} from {figure(metric, base[metric])} to "
            f'<strong class="value">{figure(metric, value)}</strong>{f" ({bounds})" if bounds else ""}.'
        )
    verb = "reaches" if higher_is_better(metric) else "comes to"
    said = f"{figure(metric, value)} {shown(metric_name(metric))}"
    if metric not in PERCENT:
        said = f"{shown(metric_name(metric))} {figure(metric, value)}"
    sentence = f'{subject} {verb} <strong class="value">{said}</strong>{f" ({bounds})" if bounds else ""}{where}'
    others = [
        f"{shown(baseline_name(record, name))} gets {figure(metric, scores[metric])}"
        for name, scores in ordered(part(record, "baselines"))
        if is_number(scores.get(metric))
    ]
    return sentence + (f": {', '.join(others)}" if others else "") + "."


def at_step(step: int | None) -> str:
    """Where it stopped, if that is known."""
    return f" after step {step:,}" if step else ""


def ordered(baselines: Any) -> list[tuple[str, Any]]:
    """Baselines with the strongest kind first."""
    places = {"bag-of-words": 0, "majority": 2}
    found = [(name, scores) for name, scores in baselines.items() if isinstance(scores, Mapping)]
    return sorted(found, key=lambda item: places.get(item[0], 1))


def baseline_name(record: Record, name: str) -> str:
    """The baseline's name: of numbers the constant guess is the mean, not a majority."""
    if name == "base" and is_written(record):
        return "base, untuned"
    if part(record, "method", "task") == "prefer":
        return {"base": "the base's own likelihood", "longer": "the longer answer"}.get(name, name)
    if name == "length" and is_judged(record):
        return "length alone"
    return "the mean" if name == "majority" and part(record, "method", "task") == "regress" else name


def verdict(record: Record) -> tuple[str, str]:
    """(good | even | bad | "", one sentence): how the result stands against its strongest baseline."""
    if is_written(record):
        return _paired(record)
    metric, split = headline_metric(record), split_of(record)
    own, bounds = part(record, "metrics", split), part(record, "intervals", split)
    rivals = [(n, s[metric]) for n, s in ordered(part(record, "baselines")) if is_number(s.get(metric))]
    if not rivals or not own or not is_number(own.get(metric)):
        return "", ""
    sign = 1 if higher_is_better(metric) else -1
    name, best = max(rivals, key=lambda rival: sign * rival[1])
    mine, theirs = (bounds or {}).get(metric), part(record, "baseline_intervals", name)
    other = theirs.get(metric) if theirs else None
    gain = sign * (own[metric] - best)
    rival = shown(baseline_name(record, name))
    if gain <= 0:
        return "bad", f"It does not beat {rival}: on this task the simpler model is at least as good."
    if not (usable(mine) and usable(other)):
        return "even", f"It is ahead of {rival}; without intervals nobody can say by how much for certain."
    apart = mine[0] > other[1] if sign > 0 else mine[1] < other[0]
    if apart:
        return "good", f"Its interval lies clear of that of {rival}: the gain is more than chance."
    return "even", f"Its interval overlaps that of {rival}: more test rows are needed to tell the two apart."


def _paired(record: Record) -> tuple[str, str]:
    """The same from the paired difference, row by row, to the untuned base."""
    metric = headline_metric(record)
    found = part(record, "difference").get(metric) if part(record, "difference") else None
    if not (isinstance(found, Sequence) and len(found) == 3 and all(is_number(one) for one in found)):
        return "", ""
    value, low, high = found
    sign = 1 if higher_is_better(metric) else -1
    unit = " nats a token" if metric == "loss" else ""
    moved = "rises" if value > 0 else "falls"
    sizes = sorted((abs(low), abs(high))) if low * high > 0 else (low, high)
    said = f"Row by row the {shown(metric_name(metric))} {moved} by {figure(metric, abs(value))}{unit} ({span(metric, sizes)})"
    if low * high <= 0:
        return "even", f"{said}: the interval holds zero, so that the tuning may have done nothing."
    if sign * value > 0:
        return "good", f"{said}: the gain is more than chance."
    return "bad", f"{said}: on these rows the untuned base is better."


def usable(bounds: Any) -> TypeGuard[Sequence[float]]:
    """Two finite bounds."""
    return isinstance(bounds, Sequence) and len(bounds) == 2 and all(is_number(bound) for bound in bounds)


def table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """A table of ready HTML cells; columns after the first are numbers unless `kind` says "text"."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    start = f"<thead><tr>{top}</tr></thead>" if top else ""
    return f'<div class="wide"><table class="{kind}">{start}<tbody>{body}</tbody></table></div>'
