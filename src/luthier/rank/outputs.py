"""What is judged: prompts with several outputs each, from a file, or sampled from the model of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data import messages as chat
from luthier.data import sources
from luthier.data.cells import BadRow, is_empty
from luthier.data.examples import RECORDS
from luthier.data.judgements import records
from luthier.data.judgements.prompts import Asked, asked, texts
from luthier.errors import Interrupted, UserError

ANSWERS = ("answer", "completion", "response", "output")  # columns of one output a line
KINDS = ("prompt,completions,ranks", "prompt,completions,choice", "prompt,completions,scores", "prompt,chosen,rejected")


@dataclass(frozen=True)
class Outputs:
    """A prompt and its distinct outputs, as the record of a judgement spells them: texts, or lists of messages."""

    prompt: Any
    completions: tuple[Any, ...]
    tools: Any = None

    @property
    def key(self) -> str:
        """Names the prompt."""
        return key_of(self.prompt, self.tools)

    @property
    def asked(self) -> str:
        """The prompt for showing."""
        return shown(self.prompt)


def key_of(prompt: Any, tools: Any = None) -> str:
    """The same for the same prompt and tools."""
    return json.dumps([prompt, tools], sort_keys=True, ensure_ascii=False)


def shown(said: Any) -> str:
    """A prompt or an output for showing: the only turn of a conversation without its role."""
    if isinstance(said, str):
        return said
    return str(said[0]["content"]) if len(said) == 1 and not said[0].get("tool_calls") else chat.shown(said)


def of_file(source: str) -> list[Outputs]:
    """The prompts of a file; outputs of one prompt in several rows are put together, and each is there once.

    Raises:
        UserError: for a broken row, or where no prompt has two outputs.
    """
    lines, _ = sources.open_source(source)
    gathered: dict[str, tuple[Asked, dict[str, str]]] = {}
    for line, row in lines:
        try:
            if "__broken__" in row:
                raise BadRow(str(row["__broken__"]))
            found = _row(row)
        except BadRow as error:
            raise UserError(f"{error}.", where=f"{source}:{line}") from None
        if found is None:
            raise UserError(
                f"The columns are {', '.join(row)}: there are no outputs to judge.", where=f"{source}:{line}",
                hint="Give prompt and completions (or chosen and rejected), or what  luthier generate RUN --samples 4 --to FILE  writes.",
            )  # fmt: skip
        given, said = found
        key = json.dumps([given.prompt, given.chat, given.tools])
        known = gathered.setdefault(key, (given, {}))[1]
        for one in said:
            known.setdefault(one.strip(), one)
    items = [_outputs(given, list(said.values())) for given, said in gathered.values() if len(said) > 1]
    if not items:
        raise UserError("No prompt has two different outputs.", where=source, hint="Sample some:  luthier generate RUN --samples 4")
    return items


def _row(row: Mapping[str, Any]) -> tuple[Asked, Sequence[str]] | None:
    """Prompt and outputs of a row; None where it has none. What the row says of them is not looked at."""
    for kind in KINDS:
        if all(not is_empty(row.get(need)) for need in RECORDS[kind].needs):
            parsed = RECORDS[kind].parse(row, None)
            if parsed["fault"] == records.DIFFER:
                raise BadRow("chosen and rejected answer different prompts")
            return Asked(parsed["prompt"], parsed["chat"], parsed["tools"]), parsed["completions"]
    if not is_empty(row.get("completions")):
        return records.offered(row)
    column = next((name for name in ANSWERS if not is_empty(row.get(name))), None)
    if column is None:
        return None
    given = asked(row)
    assert given is not None
    return texts(given, [row[column]], (column,))


def _outputs(given: Asked, said: Sequence[str]) -> Outputs:
    tools = json.loads(given.tools) if given.tools else None
    if not given.chat:
        return Outputs(given.prompt, tuple(said), tools)
    return Outputs(json.loads(given.prompt), tuple(json.loads(one) for one in said), tools)


def of_run(name: str, samples: int, prompts: int, runs: Path) -> tuple[list[Outputs], Path]:
    """Held-out prompts of a run, each answered several times by its model; sampled once and kept in the run's folder.

    Returns:
        The prompts, and the folder of the run.

    Raises:
        UserError: for a run that does not write, or whose rows have no prompts.
    """
    from luthier.folder import find

    folder = find(name, runs).path
    kept = folder / f"to-rank-{prompts}x{samples}.jsonl"
    if not kept.exists():
        _sample(folder, kept, samples, prompts, runs)
    return of_file(str(kept)), folder


def _sample(folder: Path, to: Path, samples: int, prompts: int, runs: Path) -> None:
    """Answers of the run's model, a line each."""
    from luthier.engine.log import Console
    from luthier.engine.stop import Stop
    from luthier.folder import replace_text
    from luthier.models.sampling import Sampling
    from luthier.talk import open_voice

    voice, given = open_voice(str(folder), runs), list(_held_out(folder, prompts))
    sampling = Sampling(max_new_tokens=128, temperature=1.0, samples=samples)
    with Stop() as stop, Console(False).bar("outputs to judge", len(given) * samples) as bar:
        begun: set[tuple[int, int]] = set()

        def count(prompt: int, sample: int, token: int) -> None:
            begun.add((prompt, sample))
            bar.update(len(begun))

        found = voice.write([voice.ids(one) for one in given], sampling, stop, count, fit=True)
    if stop:
        raise Interrupted(f"Stopped by {stop.reason}: the outputs were not finished, and nothing was kept.")
    lines = [
        {"prompt": _prompt(one), "answer": answer.text}
        for one, several in zip(given, found, strict=True)
        for answer in several
        if answer.text.strip()
    ]
    replace_text(to, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _prompt(asked: Any) -> Any:
    return asked["prompt"] if isinstance(asked, Mapping) else asked


def _held_out(folder: Path, most: int) -> Iterator[Any]:
    """Prompts of the rows that the run did not learn from, evenly spread."""
    from luthier.engine.cache import Cache
    from luthier.folder import Folder, recipe_of
    from luthier.gather import gather

    gathered = gather(recipe_of(Folder(folder)), Cache().rows)
    rows = gathered.splits.get(gathered.headline, gathered.splits["train"])
    if rows.kind not in ("messages", "prompt,completion") and "prompt" not in rows.table.column_names:
        raise UserError(
            f"The rows of the run {str(folder)!r} ({rows.kind}) have no prompts.",
            hint="Sample from prompts of your own:  luthier generate RUN --file FILE --samples 4 --to answers.jsonl, and rank that.",
        )
    for at in np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)).tolist():
        row = rows.row(at)
        if "messages" in row:
            said = json.loads(row["messages"])
            last = max(place for place, one in enumerate(said) if one["role"] == "assistant")
            yield {"prompt": said[:last]}
        else:
            yield {"prompt": json.loads(row["prompt"])} if row["chat"] else row["prompt"]
