"""The rows of a run: read, split where no file is given, checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data import sources
from luthier.data.examples import JUDGED, RECORDS, Rows
from luthier.data.judgements.faults import CONTRADICTS, OUTLIER, refuse
from luthier.data.judgements.judged import judge
from luthier.data.judgements.records import ALIKE, CUT
from luthier.data.split import hash_split, row_key
from luthier.data.tasks import TaskRows
from luthier.errors import UserError
from luthier.methods.multitask import settings_of
from luthier.recipe import Data, Judgements, MultitaskSettings, Recipe

MOST_GENERAL = 500  # rows of replayed text that are set aside to measure on
BY_HASH = "by hash of the text, stratified by label where there are labels"
BY_PROMPT = "by hash of the prompt"


@dataclass(frozen=True)
class Gathered:
    """The splits of a run.

    Attributes:
        splits: "train", and "eval" and "test" where there are any.
        how: "given", BY_HASH or BY_PROMPT.
        warnings: sentences for the report.
        general: text on which is measured what was forgotten, or None.
    """

    splits: dict[str, Rows]
    how: str
    warnings: tuple[str, ...]
    general: Rows | None = None

    @property
    def headline(self) -> str:
        """The split whose figure is the headline: test where there is one."""
        return "test" if "test" in self.splits else "eval"


def gather(recipe: Recipe, store: Path) -> Gathered:
    """Read train, eval and test; make eval (and test, if eval is not given either) from train where no file is named.

    Raises:
        UserError: for anything that is wrong with a file, a row or the number of rows.
    """
    if isinstance(recipe.method, MultitaskSettings):
        return gather_tasks(recipe, store)
    data = recipe.data
    splits, how = {"train": sources.load(data.train, data, store, expect=expected(recipe))}, "given"
    for name in ("eval", "test"):
        given = getattr(data, name)
        if given is not None:
            splits[name] = sources.load(given, data, store, expect=splits["train"].kind)
    warnings = [
        f"{len(rows.skipped)} broken rows of {rows.source} were left out, the first: line {rows.skipped[0][0]}, {rows.skipped[0][1]}."
        for rows in splits.values()
        if rows.skipped
    ]
    if "eval" not in splits:
        how = BY_PROMPT if splits["train"].kind in JUDGED else BY_HASH
        shares = {"eval": data.hold_out.eval} | ({} if "test" in splits else {"test": data.hold_out.test})
        splits |= _hold_out(splits["train"], {name: share for name, share in shares.items() if share > 0}, recipe.seed)
    if "eval" not in splits and "test" not in splits:
        warnings.append("Nothing was held out: no figure here says how the model does on new rows.")
    warnings += _contradictions(splits) + _leaks(splits)
    if splits["train"].kind in JUDGED:
        warnings += _judgements(splits, (data.judgements or Judgements()).most_faulty)
    again, general = _general(recipe, splits["train"].kind, store)
    return Gathered(splits | again, how, tuple(warnings), general)


def _general(recipe: Recipe, kind: str, store: Path) -> tuple[dict[str, Rows], Rows | None]:
    """Rows that are replayed, and text to measure on; of replayed text a tenth is set aside for that where no file is named.

    Raises:
        UserError: for a method that replays nothing, or rows that do not fit.
    """
    data, text = recipe.data, ("text", "prompt,completion", "messages")
    general = None if data.general is None else sources.load(data.general, Data(train=data.general), store, expect=text)
    if data.replay is None:
        return {}, general
    if recipe.method.kind not in ("supervised", "sft"):
        raise UserError(
            f"data.replay mixes rows into the steps of supervised and sft; the method is {recipe.method.kind}.",
            where=recipe.where("data", "replay"), hint="Leave it out; data.general still shows what was forgotten.",
        )  # fmt: skip
    own = Data(
        train=data.replay.data, columns=data.replay.columns, label_separator=data.label_separator, on_bad_row=data.on_bad_row
    )
    rows = sources.load(data.replay.data, own, store, expect=text if kind in text else kind)
    if general is not None or kind not in text:
        return {"replay": rows}, general
    parts = hash_split(rows, {"general": 0.1}, recipe.seed)
    if not len(parts["general"]):
        return {"replay": rows}, None
    return {"replay": rows.take(parts["train"])}, rows.take(parts["general"][:MOST_GENERAL])


def gather_tasks(recipe: Recipe, store: Path) -> Gathered:
    """The splits of every task, each read and set aside by its own `data`.

    Raises:
        UserError: as for one task, with its name.
    """
    assert isinstance(recipe.method, MultitaskSettings)
    parts: dict[str, Gathered] = {}
    for name, task in recipe.method.tasks.items():
        if task.data.replay is not None or task.data.general is not None:
            raise UserError(
                f"Task {name!r}: replay and general are for one task; of several, the general set is a task of its own.",
                where=recipe.where("method", "tasks", name, "data"), hint="For example  general: {task: generate, data: {train: ...}}",
            )  # fmt: skip
        try:
            parts[name] = gather(alone(recipe, name), store)
        except UserError as error:
            raise UserError(f"Task {name!r}: {error.given}", where=error.where, hint=error.hint) from None
    splits: dict[str, Any] = {}
    for split in ("train", "eval", "test"):
        there = {name: part.splits[split] for name, part in parts.items() if split in part.splits}
        if there:
            splits[split] = TaskRows(there)
    warnings = [f"{name}: {one}" for name, part in parts.items() for one in part.warnings]
    hows = dict.fromkeys(part.how for part in parts.values())
    return Gathered(splits, next(iter(hows)) if len(hows) == 1 else "by hash where no file is given", tuple(warnings))


def alone(recipe: Recipe, name: str, kind: str = "") -> Recipe:
    """The recipe of one task of several, by itself: the same model, adapt and training.

    Args:
        kind: of its rows, where they were read.
    """
    assert isinstance(recipe.method, MultitaskSettings)
    task = recipe.method.tasks[name]
    method = settings_of(task, kind, recipe.method.features)
    train = recipe.train.model_copy(update={"metric": task.metric})
    made = recipe.model_copy(update={"name": None, "method": method, "data": task.data, "train": train})
    places = {keys: place for keys, place in recipe._places.items() if keys[:1] not in (("method",), ("data",))}
    own = ("method", "tasks", name)
    for keys, place in recipe._places.items():
        if keys[:3] == own and len(keys) > 3:
            places[keys[3:] if keys[3] == "data" else ("train", "metric") if keys[3] == "metric" else ("method", *keys[3:])] = place
    made._places = places
    return made


def expected(recipe: Recipe) -> tuple[str, ...] | None:
    """The kinds of rows that the method can mean; None where the columns decide.

    A method that writes learns a text beside other columns itself, and what stands beside judgements; one that learns
    from judgements takes nothing else.
    """
    if recipe.method.kind in ("ppo", "grpo", "rloo", "reinforce"):
        return ("prompt", "messages")  # whatever stands beside a prompt is not read
    if recipe.method.kind == "sft":
        return tuple(kind for kind in RECORDS if kind not in JUDGED)
    own = (*JUDGED, "prompt") if getattr(recipe.method, "rounds", None) else JUDGED  # a policy that judges its own answers
    return own if recipe.method.kind in ("reward", "preference", "ranking") else None


def _hold_out(rows: Rows, shares: Mapping[str, float], seed: int) -> dict[str, Rows]:
    parts = hash_split(rows, dict(shares), seed)
    empty = [name for name in shares if len(parts[name]) == 0]
    if empty:
        kinds = len(np.unique(text_keys(rows)))  # rows of one text, prompt or first question stay on one side
        told = f"{len(rows)} rows" if kinds == len(rows) else f"{len(rows)} rows with {kinds} different texts or prompts"
        raise UserError(
            f"{told} are too few to set {' and '.join(empty)} aside.", where=rows.source,
            hint="Add rows, name files for eval and test, or write  data: {hold_out: {eval: 0.3, test: 0}}  for a larger share.",
        )  # fmt: skip
    return {name: rows.take(ids) for name, ids in parts.items()}


def text_keys(rows: Rows) -> np.ndarray:
    """(rows,) hash of each text, prompt or first question."""
    keys = [
        row_key(dict(zip(batch, values, strict=True)))
        for batch in rows.batches()
        for values in zip(*batch.values(), strict=True)
    ]
    return np.array(keys, dtype=np.uint64)


def _contradictions(splits: Mapping[str, Rows]) -> list[str]:
    """The same text with two labels: no model can be right on both."""
    said = []
    for name, rows in splits.items():
        if rows.kind != "text,label":
            continue
        first: dict[int, list[str]] = {}
        other = [
            row
            for row, (text, label) in enumerate(zip(text_keys(rows).tolist(), rows.column("label"), strict=True))
            if first.setdefault(text, label) != label
        ]
        if other:
            said.append(
                f"{len(other)} {name} rows repeat a text with another label (the first: {rows.place(other[0])}): "
                "no model can be right on both."
            )
    return said


def _judgements(splits: Mapping[str, Rows], most: float) -> list[str]:
    """What says nothing, or unsays itself, in judgements; too much of it is refused."""
    judged = {name: judge(rows) for name, rows in splits.items()}
    said = []
    for name, found in zip(judged, refuse(list(judged.values()), most), strict=True):
        for kind, rows in found.rows.items():
            told = "stand, but look at them" if kind in (CONTRADICTS, OUTLIER) else "are left out"
            said.append(f"{len(rows)} {name} rows {told}: {kind} (the first: {splits[name].place(rows[0])}).")
        if not len(judged[name]):
            raise UserError(f"No row of {name} holds a judgement.", where=splits[name].source)
    return said


def unread(gathered: Gathered, views: Mapping[str, Any], recipe: Recipe) -> Gathered:
    """With what only the tokens show of judgements: no room for an answer, two answers the same once they are cut.

    Raises:
        UserError: if too many rows say nothing, what was found before included.
    """
    judged = {name: view.judged for name, view in views.items() if hasattr(view, "judged")}
    if not judged:
        return gathered
    said = []
    for name, found in zip(judged, refuse(list(judged.values()), (recipe.data.judgements or Judgements()).most_faulty), strict=True):
        for kind in (ALIKE, CUT):
            if rows := found.rows.get(kind, ()):
                place = judged[name].rows.place(rows[0])
                said.append(f"{len(rows)} {name} rows are left out: {kind} (the first: {place}). Raise train.max_length.")
    return replace(gathered, warnings=(*gathered.warnings, *said))


def _leaks(splits: Mapping[str, Rows]) -> list[str]:
    seen = text_keys(splits["train"])
    said = []
    for name in ("eval", "test"):
        if name in splits:
            shared = np.isin(text_keys(splits[name]), seen)
            if shared.any():
                place = splits[name].place(int(np.argmax(shared)))
                said.append(
                    f"{int(shared.sum())} of {len(shared)} {name} texts stand in train too (the first: {place}): its figure is too good."
                )
    return said


def texts_for_baselines(rows: Rows, most: int = 50_000) -> list[Any]:
    """Texts as the baselines want them: strings, pairs as tuples, lists of words."""
    texts: list[Any] = []
    for batch in rows.batches():
        if "tokens" in batch:
            texts += batch["tokens"]
        else:
            texts += [
                one if two is None else (one, two) for one, two in zip(batch["text"], batch["text_pair"], strict=True)
            ]
        if len(texts) >= most:
            break
    return texts[:most]
