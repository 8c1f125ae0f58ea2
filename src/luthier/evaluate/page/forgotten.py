"""What was forgotten, on the page: loss on general text before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluate.page.sections import Run, section
from luthier.evaluate.page.words import part, shown, table

LEAD = (
    "Loss on general text, nats a token, of the model that the run started from and of the tuned one (of labels: its backbone under "
    "the output layer that it had); the interval is that of a paired bootstrap over rows."
)


def rows_of(records: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """A table with a row for each run that measured it."""
    rows = []
    for name, record in records:
        told = part(record, "forgotten")
        if not told:
            continue
        value, low, high = told["difference"]
        verdict = "forgotten" if low > 0 else "better than before" if high < 0 else "the same within the interval"
        rows.append(
            [
                f"<strong>{shown(name)}</strong>", f"{told['before']:.3f}", f"{told['after']:.3f}", f"{value:+.3f}",
                f"{low:+.3f} to {high:+.3f}", str(told["rows"]), verdict,
            ]
        )  # fmt: skip
    return table(["", "before", "after", "difference", "interval", "rows", ""], rows, "text") if rows else ""


def forgotten(run: Run) -> str:
    """The section of one run's report."""
    return section("What was forgotten", rows_of([("general text", run.record)]), LEAD, "forgotten")
