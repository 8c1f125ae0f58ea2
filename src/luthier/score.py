"""`luthier score`: what a judge makes of outputs that stand in a file; and best of n for `generate`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.cells import BadRow, tree
from luthier.data.judgements.prompts import asked
from luthier.data.judgements.prompts import texts as texts_of
from luthier.data.sources import open_source, renamed
from luthier.errors import UserError
from luthier.folder import DEFAULT_RUNS, replace_text
from luthier.judges import Judge, Text, judge_of

AT_ONCE = 256  # prompts whose outputs are scored together
OUTPUTS = ("completions", "chosen", "completion", "response", "answer", "text")  # the first column that is there


def score(
    judge: str | Mapping[str, float] | Judge, data: str | Sequence[Mapping[str, Any]], to: Path | None = None,
    runs: Path = DEFAULT_RUNS, quiet: bool = False, columns: Mapping[str, str] | None = None, device: str = "auto",
) -> list[dict[str, Any]]:  # fmt: skip
    """Score the outputs of each row.

    Args:
        judge: a reward run, a comparator, file.py:function, or a sum with weights; see `judges`.
        data: a file (or rows): prompt with completions, completion, or chosen and rejected. Judgements beside them are
            not read.
        to: .jsonl or .csv; on the screen where it is left out.
        columns: renames, {ours: theirs}.
        device: where a run's model lives.

    Returns:
        A mapping a row: row, prompt, then completion and score, or completions, scores and best (the number of the best, 0
        first); and disagreement where the judge is an ensemble.

    Raises:
        UserError: for a file or row that can't be read, with its line, or an ending that can't be written.
    """
    if to is not None and to.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"{str(to)!r}: scores are written as .csv or .jsonl.")
    who = judge_of(judge, runs=runs, device=device)
    rows = list(_rows(data, dict(columns or {})))
    if not rows:
        raise UserError("No rows were found.", where=data if isinstance(data, str) else None)
    lines: list[dict[str, Any]] = []
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        prompts, outputs = [prompt for _, prompt, _ in part], [several for _, _, several in part]
        found, apart = who.scores(prompts, outputs), who.disagreement(prompts, outputs)
        for at, (row, prompt, several) in enumerate(part):
            lines.append(_line(row, prompt, several, found[at], None if apart is None else apart[at]))
    if to is not None:
        text = _table(lines) if to.suffix.lower() == ".csv" else "".join(_json(line) for line in lines)
        replace_text(to, text)
        print(f"{len(lines)} rows: {to}", file=sys.stderr)
    elif not quiet:
        print("".join(_json(line) for line in lines), end="")
    return lines


def _rows(data: str | Sequence[Mapping[str, Any]], columns: dict[str, str]) -> Any:
    """(line, prompt, outputs) of each row."""
    source = data if isinstance(data, str) else "rows"
    lines = open_source(data)[0] if isinstance(data, str) else enumerate(data, 1)
    theirs = {name: ours for ours, name in columns.items()}
    for line, raw in lines:
        try:
            if "__broken__" in raw:
                raise BadRow(str(raw["__broken__"]))
            yield line, *_read(renamed(raw, theirs))
        except BadRow as error:
            raise UserError(f"{error}.", where=f"{source}:{line}") from None


def _read(row: Mapping[str, Any]) -> tuple[Text, list[Text]]:
    column = next((name for name in OUTPUTS if row.get(name) is not None), None)
    if column is None:
        raise BadRow(f"there is no output to score among {', '.join(row)}: expected one of {', '.join(OUTPUTS)}")
    cells = [row["chosen"], row.get("rejected")] if column == "chosen" else row[column]
    if column == "completions" and isinstance(cells, str):
        cells = tree(cells, column)
    several = list(cells) if column in ("completions", "chosen") else [cells]
    several = [one["text"] if isinstance(one, Mapping) and "text" in one else one for one in several]
    names = [f"{column}[{at}]" if len(several) > 1 else column for at in range(len(several))]
    given = asked(row, required=column != "text")
    if given is None:
        return "", [str(one) for one in several]
    given, said = texts_of(given, several, names)
    if not given.chat:
        return given.prompt, list(said)
    return json.loads(given.prompt), [json.loads(one) for one in said]


def _line(row: int, prompt: Text, several: Sequence[Text], found: Any, apart: Any) -> dict[str, Any]:
    scores = [round(float(value), 6) for value in found]
    spread = None if apart is None else [round(float(value), 6) for value in apart]
    line: dict[str, Any] = {"row": row, "prompt": prompt}
    if len(several) == 1:
        line |= {"completion": several[0], "score": scores[0]}
        return line if spread is None else line | {"disagreement": spread[0]}
    line |= {"completions": list(several), "scores": scores, "best": int(np.argmax(found))}
    return line if spread is None else line | {"disagreement": spread}


def _json(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    """One row an output."""
    out = io.StringIO()
    names = ["row", "prompt", "completion", "score", *(["disagreement"] if "disagreement" in lines[0] else [])]
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        single = "score" in line
        outputs = [line["completion"]] if single else line["completions"]
        scores = [line["score"]] if single else line["scores"]
        spread = line.get("disagreement")
        apart = [None] * len(outputs) if spread is None else [spread] if single else spread
        for text, value, far in zip(outputs, scores, apart, strict=True):
            cells = {"prompt": line["prompt"], "completion": text}
            plain = {name: cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for name, cell in cells.items()}
            writer.writerow({"row": line["row"], **plain, "score": value, "disagreement": far})
    return out.getvalue()


def best_by(judge: str, samples: int, runs: Path) -> Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]:
    """What takes the best of several answers to each prompt.

    Raises:
        UserError: for a judge that is not there, or where there is but one answer.
    """
    if samples < 2:
        raise UserError("The best of one answer is that answer.", hint="Give several:  --samples 8")
    who = judge_of(judge, runs=runs)
    return lambda lines: best_of(lines, who)


def best_of(lines: Sequence[Mapping[str, Any]], judge: Judge) -> list[dict[str, Any]]:
    """Of several answers to each prompt the best, with its score and those of all (in the order of the samples).

    Args:
        lines: of `talk.generate`: row, prompt, answer, and sample where there are several.
    """
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault(int(line["row"]), []).append(line)
    prompts = [several[0]["prompt"] for several in groups.values()]
    outputs = [[line["answer"] for line in several] for several in groups.values()]
    found = judge.scores(prompts, outputs)
    chosen = []
    for several, scores in zip(groups.values(), found, strict=True):
        at = int(np.argmax(scores))
        told = {"score": round(float(scores[at]), 6), "scores": [round(float(value), 6) for value in scores]}
        chosen.append({**several[at], **told, "judge": judge.name})
    return chosen
