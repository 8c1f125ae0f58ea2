"""Which kind of record the columns of a file make, and what to write where they make none."""

from __future__ import annotations

from luthier.data.examples import JUDGED, RECORDS
from luthier.errors import UserError


def kind_of(columns: list[str], source: str, expect: tuple[str, ...] = ()) -> str:
    """The kind of record that these columns make.

    Args:
        columns: names, after renaming.
        source: for the message.
        expect: only these kinds may be; any when empty.

    Raises:
        UserError: if they make none, with the columns that are there; or if only the text is known of several columns
            and no kind was asked for: a label with a name of its own would be passed over without a word.
    """
    for kind, record in RECORDS.items():
        if expect and kind not in expect:
            continue
        if kind == "text" and not expect and len(columns) > 1:
            continue
        if all(need in columns for need in record.needs):
            return kind
    kinds = " | ".join(expect or RECORDS)
    raise UserError(
        f"The columns are {', '.join(columns) or 'none'}; expected one of: {kinds}.",
        where=source,
        hint=_rename(columns, expect),
    )


def _rename(columns: list[str], expect: tuple[str, ...]) -> str:
    """What to write so that the columns make a record."""
    if expect == JUDGED:
        return "Rename with  data: {columns: {prompt: <yours>, chosen: <yours>, rejected: <yours>}}  (or completions, ranks)."
    written = not expect or "messages" in expect
    if written and "conversations" in columns:
        return "Conversations are read with  data: {columns: {messages: conversations}}."
    if written and "instruction" in columns and ("output" in columns or "response" in columns):
        theirs = "output" if "output" in columns else "response"
        more = " A prompt in two columns (input) has to be made one first." if "input" in columns else ""
        return f"Rename with  data: {{columns: {{prompt: instruction, completion: {theirs}}}}}.{more}"
    if not expect and "text" in columns:
        return "Name the label with  data: {columns: {label: <yours>}}, or learn the text itself with  method: sft."
    if expect and "text,label" not in expect:
        return "Rename with  data: {columns: {prompt: <yours>, completion: <yours>}}."
    return "Rename with  data: {columns: {text: <yours>, label: <yours>}}."
