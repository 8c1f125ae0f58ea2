"""The section of a few-shot run: how far apart the draws are, what the prompts cost, and one of them."""

from __future__ import annotations

from luthier.evaluate.page import pictures
from luthier.evaluate.page.sections import Run, axis_of, section
from luthier.evaluate.page.words import count, figure, is_number, metric_name, part, shown, split_of, table


def draws(run: Run) -> str:
    """Each draw's figure on the headline rows, the chosen one marked; what was read; a prompt. Nothing for other runs."""
    told, prompts = part(run.record, "draws"), part(run.record, "prompts")
    if not told or not prompts:
        return ""
    metric, split = str(told["metric"]), split_of(run.record)
    values = (told["values"] or {}).get(split) or []
    spread = (told["spread"] or {}).get(split) or {}
    lead = ""
    if len(values) > 1:
        lead = (
            f"{len(values)} draws of the demonstrations: {figure(metric, spread['low'])} to {figure(metric, spread['high'])} "
            f"{metric_name(metric)}, mean {figure(metric, spread['mean'])}, standard deviation {figure(metric, spread['deviation'])}. "
            "Nothing but the choice and order of demonstrations differs."
        )
    marks = [
        pictures.Mark(f"draw {at + 1}", value, None, "own" if at == told["chosen"] else "floor", figure(metric, value))
        for at, value in enumerate(values)
        if is_number(value)
    ]
    label = f"{metric_name(metric)} of each draw"
    drawn = pictures.forest(marks, label, axis_of(metric), False) if len(marks) > 1 else ""
    note = '<p class="small">The coloured draw is the one that eval chose.</p>' if drawn else ""
    example = (
        f"<details><summary>One prompt, whole</summary><pre>{shown(prompts.get('example', ''), 20000)}</pre></details>"
    )
    return section("Demonstrations", f"{drawn}{note}{_costs(prompts)}{example}", lead, "draws")


def _costs(prompts: dict[str, object]) -> str:
    """What the prompts cost, against reading each answer in a row of its own."""
    rows = [("prompts weighed or answered", count(prompts.get("queries")))]
    read, naive, seconds = prompts.get("read"), prompts.get("naive"), prompts.get("seconds")
    if is_number(read) and is_number(naive) and read:
        rows.append(("tokens read", f"{count(read)}, {naive / read:.1f} times fewer than one row for each answer"))
    fresh = float(prompts["queries"]) - float(prompts["kept"]) if is_number(prompts.get("kept")) else 0.0  # type: ignore[arg-type]
    if is_number(seconds) and seconds and fresh > 0 and read:
        rows.append(("seconds a thousand prompts", f"{1000 * seconds / fresh:.3g}"))
    if is_number(prompts.get("kept")) and prompts["kept"]:
        rows.append(("prompts read in an earlier run", count(prompts["kept"])))
    return table(("", ""), ((shown(name), shown(value)) for name, value in rows), "facts")
