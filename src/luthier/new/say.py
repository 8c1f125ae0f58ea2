"""What `luthier new` prints: the columns with their roles, the labels, what was chosen and why, what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from luthier.new.columns import Column
from luthier.new.draft import Checked, Drafted
from luthier.new.judged import told
from luthier.new.roles import Roles
from luthier.new.sample import Sample, quoted
from luthier.new.written import run_together

SHOWN = 12  # labels that are named
RARE = 3  # rows below which a label can hardly be learnt


def found(path: Path, sample: Sample, columns: Sequence[Column], roles: Roles, checked: Checked) -> list[str]:
    """The columns, the labels, the rows that are left out, and what could be read otherwise."""
    lines = [f"{path.name}: {sample.says}, {len(columns)} column{'s'[: len(columns) != 1]}"]
    names = [column.name or '""' for column in columns]
    kinds = [column.says() for column in columns]
    wide, wider = max(map(len, names)), max(map(len, kinds))
    for name, kind, column in zip(names, kinds, columns, strict=True):
        lines.append(f"  {name:{wide}}  {kind:{wider}}  {roles.why[column.name]}")
    if checked.labels:
        lines.append(_counted(checked.labels, "tags" if roles.task == "tag" else "labels"))
    if checked.bad:
        line, why = checked.bad[0]
        lines.append(
            f"{len(checked.bad):,} of {len(checked.bad) + len(checked.rows):,} rows can't be used and are left out; "
            f"the first: line {line}, {why}"
        )
    together = run_together(checked.rows) if roles.kind == "prompt,completion" else ""
    lines += told(checked.rows, roles.kind) if roles.task == "judge" else []
    return [*lines, *_rare(checked.labels, roles.task), *roles.notes, *([together] if together else [])]


def _counted(labels: Counter[str], what: str) -> str:
    shown = ", ".join(f"{label[:40]} {count:,}" for label, count in labels.most_common(SHOWN))
    least = min(labels.values())
    more = f", and {len(labels) - SHOWN:,} more down to {least:,}" if len(labels) > SHOWN else ""
    return f"{len(labels):,} {what}: {shown}{more}"


def _rare(labels: Counter[str], task: str) -> list[str]:
    rare = [label for label, count in labels.items() if count < RARE]
    if not rare or task == "tag":
        return []
    named = ", ".join(label[:40] for label in rare[:6]) + (", ..." if len(rare) > 6 else "")
    return [f"Hardly to be learnt or judged, with fewer than {RARE} rows each: {named}"]


def chosen(drafted: Drafted, to: Path) -> list[str]:
    """What the recipe says, and how to run it."""
    recipe, data = drafted.recipe, drafted.recipe.data
    lines = [
        *([f"lengths: {drafted.lengths}"] if drafted.lengths else []),
        f"method: {recipe.method.kind}, {drafted.why_task}",
        f"adapt: {recipe.adapt.kind} ({drafted.why_adapt})",
    ]
    if data.eval is None:
        parts = [f"{100 * data.hold_out.eval:.0f} % of the rows choose the checkpoint"]
        if data.test is None and data.hold_out.test:
            parts.append(f"{100 * data.hold_out.test:.0f} % are scored once at the end")
        lines.append(f"held out: {', '.join(parts)}")
    if data.test is None and (data.eval is not None or not data.hold_out.test):
        lines.append("no test rows: the headline is that of eval, which also chooses the checkpoint: optimistic")
    return [*lines, f"recipe: {to}", f"next:   luthier tune {quoted(to)}"]
