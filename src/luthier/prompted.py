"""What a few-shot run keeps in `model/`, and opening it again.

The base stays where it is; the folder holds its name and hash (luthier.json), the rows that demonstrate
(demonstrations.jsonl: those that were chosen, or all of them where each item chooses), and the tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from luthier import folder as run_folder
from luthier import frozen
from luthier.data.render.shots import Prompt
from luthier.engine import machine
from luthier.engine.cache import Cache
from luthier.engine.log import Console
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.models import load, saved, spoken
from luthier.models.language import LanguageModel
from luthier.models.saved import ABOUT, About, weights_hash
from luthier.prompting import Prompter
from luthier.recipe import FewshotSettings, Recipe, read

POOL = "demonstrations.jsonl"
LIMIT = 8192  # tokens in one forward pass


@dataclass(frozen=True)
class Prompted:
    """A few-shot run that has ended, ready to answer.

    Attributes:
        draw: the one that eval chose.
    """

    folder: run_folder.Folder
    recipe: Recipe
    about: About
    prompter: Prompter
    draw: int


def save(prompter: Prompter, about: About, draw: int, folder: Path, whole: bool = False) -> int:
    """Write the folder; returns the bytes of demonstrations in it.

    `whole`: keep the pool even where all items have the same demonstrations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = prompter.settings
    kept = range(len(prompter.pool))
    if not prompter.per_item and not whole:
        kept = prompter.chosen([{}], draw)[0]  # type: ignore[assignment]
    lines = [json.dumps({"line": prompter.lines[at], **prompter.pool[at]}, ensure_ascii=False) + "\n" for at in kept]
    run_folder.replace_text(folder / POOL, "".join(lines))
    speech = {
        "settings": settings.model_dump(), "prompt": asdict(prompter.prompt), "draw": draw, "per_item": prompter.per_item or whole,
        "blank": prompter.blank, "seed": prompter.seed, "kind": "text,label" if prompter.labels else "prompt,completion",
        "chat": prompter.prompt.chat, "labels": list(prompter.labels),
    }  # fmt: skip
    with load.quiet():
        prompter.base.tokenizer.save_pretrained(str(folder))
    (folder / ABOUT).write_text(
        json.dumps(asdict(replace(about, speech=speech)), indent=1, ensure_ascii=False), encoding="utf-8"
    )
    return (folder / POOL).stat().st_size


def open_prompted(
    folder: run_folder.Folder, stop: Stop | None = None, quiet: bool = True, device: str | None = None
) -> Prompted:
    """The model of a few-shot run.

    Raises:
        UserError: if its base is gone or another.
    """
    about = saved.about(folder.model)
    told: dict[str, Any] = about.speech or {}
    base, backbone = spoken.started_from(about)
    if weights_hash(backbone) != about.base_hash:
        raise UserError(
            f"The base {about.base!r} is not the one this run was made with: its weights differ.",
            hint="Put the old weights back, or run again on the new ones.",
        )
    recipe = read(folder.recipe)
    where = machine.pick_device(device or recipe.train.device)
    pool = [json.loads(line) for line in (folder.model / POOL).read_text(encoding="utf-8").splitlines()]
    lines = [row.pop("line") for row in pool]
    work = frozen.Work(Cache(), Console(quiet), stop or Stop(), where, about.precision, LIMIT)
    prompter = Prompter(
        LanguageModel(backbone.eval()).eval().to(where), replace(base, tokenizer=load.tokenizer_of(str(folder.model))),
        FewshotSettings(**told["settings"]), Prompt(**told["prompt"]), tuple(told["labels"]), pool,
        lines, about.max_length, about.base_hash,
        told["seed"], work, about.attention, None if told["per_item"] else list(range(len(pool))), told["blank"],
    )  # fmt: skip
    return Prompted(folder, recipe, about, prompter, int(told["draw"]))


def write_prompts(run: str | Path, file: str, to: Path, runs: Path = run_folder.DEFAULT_RUNS) -> int:
    """Put a run's demonstrations before the prompts of a file: a .jsonl of whole prompts, for rollouts of `method: ppo`.

    Returns:
        How many prompts were written.

    Raises:
        UserError: for a run that writes nothing, or whose prompts are conversations.
    """
    from luthier.data import memory

    opened = open_prompted(run_folder.find(run, runs))
    prompter = opened.prompter
    if opened.about.task != "generate" or prompter.prompt.chat:
        raise UserError(f"The run {str(run)!r} has no plain text before a prompt: it is for prompts with completions.")
    rows = memory.load_unlabelled(file, opened.recipe.data, prompter.work.cache.rows, "prompt,completion")
    items = [{"prompt": str(rows.row(at)["prompt"])} for at in range(len(rows))]
    asks = list(zip(prompter.chosen(items, opened.draw), items, strict=True))
    _, dropped = prompter.contexts(asks, prompter.settings.new_tokens)
    lines = []
    for (which, item), lost in zip(asks, dropped, strict=True):
        text = prompter.prompt.text([prompter.pool[at] for at in which[lost:]], item)
        lines.append(json.dumps({"prompt": text}, ensure_ascii=False) + "\n")
    run_folder.replace_text(to, "".join(lines))
    return len(lines)
