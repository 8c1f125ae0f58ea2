"""Using a model that writes: `generate` (prompts in, answers out) and what `chat` needs of it.

A prompt becomes tokens as the rows did that the run learned from: plain text behind the tokenizer's own beginning, or
a user's turn in the run's chat template. An answer ends where the rows ended.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from luthier import folder as run_folder
from luthier.data import memory, sources
from luthier.data.render import Speech, end_ids, prompt_ids
from luthier.engine import machine
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import Interrupted, UserError
from luthier.folder import replace_text
from luthier.models import load, saved, spoken
from luthier.models.generate import Answer, OnToken, Sampling, continued
from luthier.models.generate import generate as write_answers
from luthier.models.language import LanguageModel
from luthier.models.load import Base
from luthier.recipe import Data, read
from luthier.score import best_by

ANY_LENGTH = 2**30  # a prompt is never cut: one that is too long is told
KINDS = {"messages": "messages", "prompt": "prompt,completion", "text": "text"}  # column -> kind of a file of prompts

Prompt = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]


@dataclass(frozen=True)
class Voice:
    """A model that is ready to write.

    Attributes:
        name: as the user gave it.
        base: with the run's own tokenizer.
        chats: a prompt is a turn of a conversation, in the template of `speech`.
        ends: ids that end an answer; none where the tokenizer knows no end.
        columns: what the run's files call their columns.
    """

    name: str
    model: LanguageModel
    base: Base
    chats: bool
    speech: Speech
    ends: tuple[int, ...]
    device: torch.device
    precision: str
    columns: Data

    @property
    def tokenizer(self) -> Any:
        """Of the base."""
        return self.base.tokenizer

    def ids(self, prompt: Prompt, system: str | None = None, thinking: bool = False) -> list[int]:
        """What the model reads before it writes.

        Args:
            prompt: a text, the messages of a conversation, or a row of a file ({"prompt"}, {"messages"}, {"text"}).
            system: instructions in front of the conversation.
            thinking: a model that reasons is to write its reasoning first.

        Raises:
            UserError: for a row without a prompt, or a conversation that the template refuses.
        """
        tools: Any = None
        if isinstance(prompt, Mapping):
            row, column = prompt, next((name for name in KINDS if prompt.get(name)), None)
            if column is None:
                raise UserError(f"A prompt has the columns {', '.join(row)}.", hint=f"Give one of {', '.join(KINDS)}.")
            prompt, tools = _opened(row[column]), _opened(row.get("tools"))
        if isinstance(prompt, str) and not self.chats:
            if system is not None:
                raise UserError(
                    f"{self.name!r} goes on from plain text and knows no system message.",
                    hint="Put the instructions into the prompt, or answer by the chat template:  --chat",
                )
            return prompt_ids(self.tokenizer, prompt, "text", self.speech)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or ())
        front = [] if system is None else [{"role": "system", "content": system}]
        return prompt_ids(self.tokenizer, [*front, *messages], "messages", self.speech, tools=tools, thinking=thinking)

    def write(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, stop: Stop, on_token: OnToken | None = None,
        fit: bool = False,
    ) -> list[list[Answer]]:  # fmt: skip
        """Answers in the run's precision, until `stop` is asked for."""
        with machine.autocast(self.device, self.precision):
            return write_answers(
                self.model, self.tokenizer, prompts, sampling, ends=self.ends, on_token=on_token,
                stop_when=lambda: bool(stop), fit=fit,
            )  # fmt: skip


def _opened(value: Any) -> Any:
    """A list that a table holds as JSON text is the list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            read = json.loads(value)
        except ValueError:
            return value
        return read if isinstance(read, list) and all(isinstance(one, dict) for one in read) else value
    return value


@dataclass(frozen=True)
class _Found:
    """What a name stands for; `told` of a run."""

    model: LanguageModel
    base: Base
    told: saved.About | None
    columns: Data
    device: torch.device
    precision: str


def open_voice(
    name: str | Path, runs: Path = run_folder.DEFAULT_RUNS, *, base: bool = False, template: str | None = None,
    chats: bool | None = None, converses: bool = False,
) -> Voice:  # fmt: skip
    """A run that has ended, a model folder, a hub id, or "pocket".

    Args:
        base: of a run, the model that it started from.
        template: another chat template: chatml, plain, a .jinja file, or the text itself.
        chats: answer prompts as turns of a conversation (or not). Where left out: of a run, as it was trained; of a
            model, where it has a template and `converses` is set.

    Raises:
        UserError: if there is no such run or model, or it does not write.
    """
    folder = _model_folder(str(name), runs)
    found = _pretrained(str(name), runs) if folder is None else _of_run(folder, base)
    spoke: Mapping[str, Any] = (found.told.speech if found.told is not None else None) or {}
    if chats is None and found.told is None:
        chats = converses and bool(template or getattr(found.base.tokenizer, "chat_template", None))
    elif chats is None:
        chats = found.told is not None and found.told.converses
    template = spoke.get("template") if template is None else template
    speech = Speech(ANY_LENGTH, "last", template=template, encoder_decoder=found.base.encoder_decoder)
    ends = _ends(found.model, found.base.tokenizer, template, chats)
    model = found.model.to(found.device)
    return Voice(str(name), model, found.base, chats, speech, ends, found.device, found.precision, found.columns)


def _model_folder(name: str, runs: Path) -> Path | None:
    """The `model/` of a run, by the run's name or folder or its own; None where the name is that of a model."""
    for path in (Path(name), runs / name):
        if (path / saved.ABOUT).is_file():
            return path
        if (path / "run.json").is_file() or (path / "recipe.yaml").is_file():
            return path / "model"
    return None


def _pretrained(name: str, runs: Path) -> _Found:
    """A model by its name; a name that is nearly a run's is not asked for on the hub."""
    near: list[str] = []
    if not Path(name).is_dir() and "/" not in name and name != "pocket":
        known = sorted(path.parent.name for path in runs.glob("*/recipe.yaml"))
        near = difflib.get_close_matches(name, [*known, "pocket"], n=1)
    if near:
        raise UserError(f"There is no run {name!r}.", hint=f"Did you mean {near[0]!r}?")
    base = load.find(name)
    device = machine.pick_device("auto")
    precision = machine.pick_precision("auto", device, base.width, Cache().root)
    return _Found(LanguageModel(load.causal(base)), base, None, Data(train="prompts"), device, precision)


def _of_run(folder: Path, base: bool) -> _Found:
    told = saved.about(folder)
    if told.family == "multitask":
        writing = [name for name, part in (told.tasks or {}).items() if part["family"] == "language"]
        raise UserError(
            f"The run {str(folder.parent)!r} has several tasks.",
            hint=f"Name one that writes: {folder.parent / 'tasks' / writing[0]}" if writing else "None of them writes.",
        )
    if told.family == "fewshot" and told.task == "generate" and not base:
        raise UserError(
            f"The run {str(folder.parent)!r} answers behind demonstrations, a prompt at a time.",
            hint="luthier generate RUN PROMPT; with --base the model alone.",
        )
    if told.family != "language" and not (told.family == "fewshot" and base):
        raise UserError(
            f"The run {str(folder.parent)!r} learned to {told.task}: it gives labels and writes nothing.",
            hint="luthier predict RUN FILE  gives its predictions.",
        )
    if base:
        found, started = spoken.started_from(told)
        model = LanguageModel(started.eval()).eval()
    else:
        model, _, found = spoken.read(folder)
    recipe = folder.parent / "recipe.yaml"
    settings = read(recipe) if recipe.is_file() else None
    device = machine.pick_device(settings.train.device if settings else "auto")
    columns = settings.data if settings else Data(train="prompts")
    return _Found(model, found, told, columns, device, told.precision)


def _ends(model: LanguageModel, tokenizer: Any, template: str | None, chats: bool) -> tuple[int, ...]:
    """The ends of the rows, and those that the model itself names; none where nobody names any."""
    found: tuple[int, ...] = ()
    if chats or tokenizer.eos_token_id is not None:
        found = end_ids(tokenizer, template, chat=chats)
    own = getattr(getattr(model.lm, "generation_config", None), "eos_token_id", None)
    return tuple(dict.fromkeys([*found, *([own] if isinstance(own, int) else own or [])]))


@dataclass
class Stream:
    """Writes an answer as its tokens come: never half a character, never the beginning of a stop text."""

    tokenizer: Any
    before: Sequence[int]
    stop: Sequence[str] = ()
    out: TextIO = field(default_factory=lambda: sys.stdout)
    ids: list[int] = field(default_factory=list)
    written: str = ""

    def token(self, prompt: int, sample: int, token: int) -> None:
        """One more."""
        self.ids.append(token)
        text = continued(self.tokenizer, self.before, self.ids)
        self._until(text, len(text.rstrip("\ufffd")) - self._held(text))

    def _held(self, text: str) -> int:
        """Characters at the end that may become a stop text."""
        sizes = (size for one in self.stop for size in range(len(one), 0, -1) if text.endswith(one[:size]))
        return max(sizes, default=0)

    def close(self, text: str) -> None:
        """The rest of the whole answer."""
        self._until(text, len(text))

    def _until(self, text: str, end: int) -> None:
        if end > len(self.written) and text.startswith(self.written):
            print(text[len(self.written) : end], end="", file=self.out, flush=True)
            self.written = text[:end]


def generate(
    run: str | Path, prompts: Prompt | Sequence[Prompt] | None = None, *, file: str | None = None, to: Path | None = None,
    sampling: Sampling | None = None, base: bool = False, template: str | None = None, chats: bool | None = None,
    system: str | None = None, thinking: bool = False, runs: Path = run_folder.DEFAULT_RUNS, quiet: bool = False,
    best: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Answers of a run, or of any model, to prompts.

    Args:
        run: a run, a model folder, a hub id, or "pocket".
        prompts: one or several: a text each, or the messages of a conversation, or a row ({"prompt"} or {"messages"}).
        file: prompts to read: a column prompt, messages or text; or .txt with one prompt a line.
        to: a .jsonl file to write; where it is left out, a single answer is written as it comes.
        base, template, chats: see `open_voice`. system, thinking: see `Voice.ids`.
        best: a judge (see `judges`): of several answers to a prompt only the best is given, with its score.

    Returns:
        A mapping an answer: row, prompt, answer, finish, tokens, logprob; and sample, where there are several.

    Raises:
        UserError: for a run or file that can't be used, or a prompt that leaves no room for an answer.
        Interrupted: on Ctrl-C; nothing is then written to `to`.
    """
    sampling = sampling or Sampling()
    if sampling.samples > 1 and sampling.temperature == 0:
        raise UserError("Several samples at temperature 0 are all the same.", hint="Give a temperature, such as 1.")
    if to is not None and to.suffix.lower() != ".jsonl":
        raise UserError(f"{str(to)!r}: answers are written as .jsonl.")
    folder = _model_folder(str(run), runs)
    if folder is not None and not base and saved.about(folder).family == "fewshot":
        return _behind_demonstrations(folder.parent, prompts, file, to, sampling, quiet)
    choose = None if best is None else best_by(best, sampling.samples, runs)
    voice = open_voice(run, runs, base=base, template=template, chats=chats)
    rows = _from_file(file, voice.columns) if file is not None else _given(prompts)
    ids = [_read(voice, prompt, system, thinking, place) for _, prompt, place in rows]
    streams = to is None and not quiet and len(rows) == sampling.samples == 1
    stream = Stream(voice.tokenizer, ids[0], sampling.stop) if streams and not voice.base.encoder_decoder else None
    with Stop() as stop, Console(quiet or streams).bar("answers", len(rows) * sampling.samples) as bar:
        begun: set[tuple[int, int]] = set()

        def count(prompt: int, sample: int, token: int) -> None:
            begun.add((prompt, sample))
            bar.update(len(begun))

        found = voice.write(ids, sampling, stop, stream.token if stream else count)
    lines = _lines(rows, found)
    if stop and stream is None:
        raise Interrupted(f"Stopped by {stop.reason}: the answers were not finished, and nothing was written.")
    lines = lines if choose is None else choose(lines)
    _tell(lines, to, quiet, stream)
    return lines


def _behind_demonstrations(
    folder: Path, prompts: Any, file: str | None, to: Path | None, sampling: Sampling, quiet: bool
) -> list[dict[str, Any]]:
    """The same for a few-shot run: each prompt stands behind the run's demonstrations."""
    from luthier import judge_prompted

    found = run_folder.Folder(folder)
    rows = _given(prompts) if file is None else _from_file(file, read(found.recipe).data)
    texts = []
    for _, prompt, place in rows:
        text = prompt.get("prompt", prompt.get("text")) if isinstance(prompt, Mapping) else prompt
        if not isinstance(text, str):
            raise UserError("A few-shot run takes prompts that are texts, not conversations.", where=place)
        texts.append(text)
    with Stop() as stop:
        lines = _lines(rows, judge_prompted.generate(found, texts, sampling, stop, quiet))
    _tell(lines, to, quiet, None)
    return lines


def _given(prompts: Prompt | Sequence[Prompt] | None) -> list[tuple[int, Prompt, str | None]]:
    """(number, prompt, place) of prompts that are Python values; a list of messages is one prompt."""
    if prompts is None:
        raise UserError("There is no prompt.", hint='luthier generate RUN "What it should go on from"  or  --file FILE')
    one = isinstance(prompts, (str, Mapping))
    if not one and prompts and all(isinstance(item, Mapping) and "role" in item for item in prompts):
        one = True
    several: Sequence[Any] = [prompts] if one else list(prompts)
    if not several:
        raise UserError("There is no prompt: the list is empty.")
    return [(number, prompt, None if one else f"prompt {number}") for number, prompt in enumerate(several, 1)]


def _from_file(file: str, columns: Data) -> list[tuple[int, Prompt, str | None]]:
    """The prompts of a file, with their lines; answers that stand in it are not read."""
    if Path(file).suffix.lower() == ".txt":
        try:
            lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise UserError(f"{file!r} can't be read: {error.strerror}.") from None
        return [(number, line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    first = next(iter(sources.open_source(file)[0]), (0, {}))[1]
    called = {columns.columns.get(column, column): kind for column, kind in KINDS.items()}
    kind = next((kind for name, kind in called.items() if name in first), "prompt,completion")
    rows = memory.load_unlabelled(file, columns, Cache().rows, kind)
    found: list[tuple[int, Prompt, str | None]] = []
    for at in range(len(rows)):
        row = rows.row(at)
        prompt: Prompt = row
        if kind == "messages":
            said = json.loads(row["messages"])
            prompt = {"messages": said[:-1] if said[-1]["role"] == "assistant" else said, "tools": row.get("tools")}
        elif kind == "text" or not row["chat"]:
            prompt = str(row["text" if kind == "text" else "prompt"])
        found.append((int(row["line"]), prompt, rows.place(at)))
    return found


def _read(voice: Voice, prompt: Prompt, system: str | None, thinking: bool, place: str | None) -> list[int]:
    try:
        return voice.ids(prompt, system, thinking)
    except UserError as error:
        if place is None or error.where is not None:
            raise
        raise UserError(error.given, where=place, hint=error.hint) from None


def _lines(rows: Sequence[tuple[int, Prompt, str | None]], found: Sequence[Sequence[Answer]]) -> list[dict[str, Any]]:
    lines = []
    for (number, prompt, _), several in zip(rows, found, strict=True):
        shown = prompt if not isinstance(prompt, Mapping) else next(prompt[name] for name in KINDS if prompt.get(name))
        for sample, answer in enumerate(several, 1):
            line: dict[str, Any] = {"row": number} | ({"sample": sample} if len(several) > 1 else {})
            line |= {"prompt": _opened(shown), "answer": answer.text, "finish": answer.finish}
            lines.append(line | {"tokens": len(answer.tokens), "logprob": sum(answer.logprobs)})
    return lines


def _tell(lines: Sequence[Mapping[str, Any]], to: Path | None, quiet: bool, stream: Stream | None) -> None:
    if to is not None:
        replace_text(to, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        print(f"{len(lines)} answers: {to}", file=sys.stderr)
    elif stream is not None:
        stream.close(lines[0]["answer"])
        print()
    elif not quiet and len(lines) == 1:
        print(lines[0]["answer"])
    elif not quiet:
        print("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), end="")
