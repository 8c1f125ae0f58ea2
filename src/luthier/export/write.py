"""The verb: read the run, choose the form, write the folder, check it, and only then give it its name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from luthier.adapters import bridge
from luthier.adapters.structure import plain
from luthier.errors import UserError, unwritable
from luthier.export import comparing, fresh, own, spoken
from luthier.export.card import card, is_hub
from luthier.export.fresh import Job, NotEqual, Probe
from luthier.export.judging import PAD, as_scores
from luthier.export.lines import Plan
from luthier.export.own import Own
from luthier.export.push import Hub
from luthier.folder import DEFAULT_RUNS, Folder
from luthier.judge_tasks import folder_of, standalone
from luthier.models import load, saved
from luthier.models.heads import Head, TaskModel
from luthier.models.load import Base
from luthier.models.saved import About
from luthier.proofs import BOUND, relative
from luthier.recipe import read

FORMS = ("merged", "adapter")
MERGED_BOUND = 1e-4  # relative, fp32: an update added into the weights rounds once more


@dataclass(frozen=True)
class Tuned:
    """A run's model, read back, with what it says of the probe's rows."""

    run: Folder
    model: TaskModel
    about: About
    base: Base
    probe: Probe


@dataclass(frozen=True)
class Written:
    """A folder that waits for its check."""

    folder: Path
    plan: Plan
    probe: Probe
    bound: float

    @property
    def job(self) -> Job:
        """What the fresh process runs."""
        return Job(self.folder, self.probe.texts, self.plan.sides)


def export(
    run: str | Path, to: Path | None = None, form: str = "merged", runs: Path = DEFAULT_RUNS, quiet: bool = False,
    push: str | None = None, public: bool = False, task: str | None = None,
) -> Path:  # fmt: skip
    """Write a folder that plain transformers (`merged`) or peft (`adapter`) loads with equal outputs.

    Where the architecture's own class can express the head, the folder is that class; elsewhere it is the plain
    backbone with head.safetensors beside it, and README.md holds the lines that join them. The code of README.md is
    run in a fresh process on ragged rows before the folder gets its name.

    Args:
        run: name or folder.
        to: the folder; runs/<name>/export when left out.
        form: "merged" or "adapter".
        runs: where run folders lie.
        quiet: print nothing.
        push: OWNER/NAME on the hub to copy the folder to; an export that is there already is pushed as it is.
        public: everybody may see what is pushed; otherwise only its owner.
        task: of a run of several tasks, the one to export.

    Returns:
        The folder.

    Raises:
        UserError: for an unknown form, a run without a model or without an adapter, or a folder that is in use.
        NotEqual: if the fresh process gives other outputs; nothing is left behind.
    """
    if form not in FORMS:
        raise UserError(f"There is no form {form!r}.", hint=f"Give --form {' or '.join(FORMS)}.")
    hub = None if push is None else Hub.at(push, public)
    found = folder_of(run, Path(runs), task)
    if found.model.is_dir() and saved.about(found.model).stores == "prompt":
        raise UserError(
            f"The run {str(found.path)!r} moved no weight: there is no model of its own to export.",
            hint=f"It is {saved.about(found.model).base!r} with the prompt that run.json shows (prompts: example).",
        )
    target = Path(to) if to is not None else found.path / "export"
    if hub is None or not _is_there(target, found, form):
        _check_free(target)
        _make(found, form, target, quiet)
    if hub is not None:
        address = hub.push(target)
        if not quiet:
            print(f"{address} ({'public' if public else 'private'})")
    return target


def _make(found: Folder, form: str, target: Path, quiet: bool) -> None:
    """Write, check and publish the folder."""
    with _draft(target) as draft, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as store:
        found = standalone(found, Path(store) / "alone")
        if saved.about(found.model).family == "language":
            told = spoken.write(found, form, draft)
            difference = spoken.check(told)
            _publish(draft, target)
            if not quiet:
                spoken.say(target, told, difference)
            return
        written = write(tuned(found, form, Path(store)), form, draft)
        difference = compare(written, fresh.run([written.job])[0])
        _publish(draft, target)
    if not quiet:
        _say(target, written, difference)


def _is_there(target: Path, found: Folder, form: str) -> bool:
    """Whether the folder is an export of this form, made after the run's model."""
    card = target / "README.md"
    if not card.is_file() or card.stat().st_mtime < (found.model / saved.ABOUT).stat().st_mtime:
        return False
    return _is_adapter(target) == (form == "adapter")


def _is_adapter(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("adapter_config.json", "adapter.json"))


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{str(target)!r} exists already.", hint="Remove it, or name another folder:  --to FOLDER")


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A folder beside the target, gone at the end unless it was renamed."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        yield draft
    except Exception as error:
        better = unwritable(target.parent, error)
        if better is error or not isinstance(better, UserError):
            raise
        raise UserError(better.given, hint="Make room, or choose another place:  --to FOLDER") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, target: Path) -> None:
    """Give the folder its name; weights are as readable as the other files."""
    mode = (draft / "README.md").stat().st_mode
    for file in draft.iterdir():
        file.chmod(mode)
    if target.exists():
        target.rmdir()  # it is empty
    draft.rename(target)


def tuned(run: Folder, form: str, store: Path) -> Tuned:
    """Read the run's model and let it speak on ragged rows.

    Raises:
        UserError: if there is no model, or no adapter where one is asked for.
    """
    told = saved.about(run.model)
    if form == "adapter" and told.stores != "adapter":
        raise UserError(
            f"The run {str(run.path)!r} was made with adapt: {told.adapt}, which keeps no adapter.",
            hint="Export the whole model:  --form merged",
        )
    under = Path(told.base)
    if form == "adapter" and (under / saved.ABOUT).is_file() and saved.about(under).stores == "adapter":
        raise UserError(
            f"The run {str(run.path)!r} started from {told.base!r}, which is an adapter itself: peft loads one on a model.",
            hint="Export the whole model:  --form merged",
        )
    if told.family == "comparator":
        return Tuned(run, *comparing.as_verdicts(run))
    model, about, base = as_scores(run) if told.judging is not None else saved.read(run.model)
    return Tuned(run, model, about, base, fresh.probe(model, about, base, run, store))


def write(tuned: Tuned, form: str, folder: Path) -> Written:
    """Fill the folder: weights, configuration, tokenizer and card. A model with an adapter is merged by this.

    Args:
        folder: empty.
    """
    about, base, probe = tuned.about, tuned.base, tuned.probe
    bound = MERGED_BOUND if about.stores == "adapter" else BOUND
    model = TaskModel(bridge.merged(tuned.model.backbone).eval(), tuned.model.head, tuned.model.pooling).eval()
    compares = about.task == comparing.TASK  # no class of transformers reads two outputs
    found = None if compares else own.fit(model, about, base, probe, bound, grow=form == "merged")
    plan = _plan(tuned, model, found, form)
    with load.quiet():
        if form == "adapter":
            _adapter(tuned, plan, model, found, folder)
        elif found is not None:
            found.model.save_pretrained(str(folder))
        else:
            _backbone(model, about, folder)
        _tokenizer(base, about, base.pad_id if found is None else found.pad_id, load.accepts(model.backbone), folder)
    recipe = read(tuned.run.recipe)
    text = card(plan, about, tuned.run.path.resolve().name, tuned.run.record(), recipe)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return Written(folder, plan, probe, bound if form == "merged" else BOUND)


def _plan(tuned: Tuned, model: TaskModel, found: Own | None, form: str) -> Plan:
    about, base = tuned.about, tuned.base
    joined = found is None
    return Plan(
        form=form, auto=None if found is None else found.auto, task=about.task, pooling=about.pooling, hidden=about.hidden,
        bias=model.head.output.bias is not None, max_length=about.max_length,
        sides=("right", "left") if found is None else found.sides,
        positions="position_ids" in load.accepts(model.backbone) if found is None else found.positions,
        offset=load.position_offset(model.backbone),
        poolers=joined and hasattr(model.backbone, "pooler"),
        base=base.path if is_hub(about.base) else str(Path(base.path).resolve()), revision=base.revision,
        pairs=about.task != "tag" and isinstance(tuned.probe.texts[0], list),
        layout=comparing.layout(about, base) if about.task == comparing.TASK else None,
    )  # fmt: skip


def _backbone(model: TaskModel, about: About, folder: Path) -> None:
    backbone: Any = plain(model.backbone)
    backbone.config = own.configured(backbone.config, about)
    backbone.save_pretrained(str(folder))
    save_file(_head(model.head), folder / "head.safetensors")


def _head(head: Head) -> dict[str, torch.Tensor]:
    """weight and bias of the last map; hidden.weight and hidden.bias of a layer before it."""
    tensors = {name: p.detach().cpu().contiguous().clone() for name, p in head.named_parameters()}
    return {name.removeprefix("output."): value for name, value in tensors.items()}


def _adapter(tuned: Tuned, plan: Plan, model: TaskModel, found: Own | None, folder: Path) -> None:
    """peft's two files, on the own class with the head among `modules_to_save`, or on the backbone; config.json
    brings the label names, and the number of blocks where the upper ones were dropped."""
    source = tuned.run.model
    told = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    told |= {"base_model_name_or_path": plan.base, "revision": plan.revision}
    tensors = load_file(source / "adapter_model.safetensors")
    if found is None:
        config = own.configured(plain(model.backbone).config, tuned.about)
        save_file(_head(model.head), folder / "head.safetensors")
    else:
        config = found.model.config
        config.architectures = [type(found.model).__name__]
        inside = "base_model.model."
        tensors = {f"{inside}{found.prefix}.{name.removeprefix(inside)}": value for name, value in tensors.items()}
        state = found.model.state_dict()
        tensors |= {
            f"{inside}{name}": value.contiguous().clone()
            for name, value in state.items()
            if any(name.startswith(f"{module}.") for module in found.head)
        }
        told |= {
            "task_type": "TOKEN_CLS" if tuned.about.task == "tag" else "SEQ_CLS", "auto_mapping": None,
            "modules_to_save": [module.split(".")[-1] for module in found.head],
        }  # fmt: skip
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(told, indent=2), encoding="utf-8")


def _tokenizer(base: Base, about: About, pad: int, takes: frozenset[str], folder: Path) -> None:
    """The base's tokenizer: it pads on the right with an id that no row ends with, and cuts where the run did."""
    tokenizer = base.tokenizer
    if tokenizer.pad_token_id != pad and pad >= len(tokenizer):  # no token of its own could pad
        tokenizer.add_special_tokens({"pad_token": PAD})
    elif tokenizer.pad_token_id != pad:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = about.max_length
    tokenizer.model_input_names = [
        name for name in tokenizer.model_input_names if name in takes or name in ("input_ids", "attention_mask")
    ]
    tokenizer.save_pretrained(str(folder))


def compare(written: Written, logits: dict[str, torch.Tensor]) -> float:
    """The largest difference between the run and the fresh process, relative to the largest logit.

    Raises:
        NotEqual: if it is beyond the bound.
    """
    truth = written.probe.truth
    worst = 0.0
    for side, found in logits.items():
        value = relative(found, truth) if found.shape == truth.shape else float("inf")
        if not value <= written.bound:
            raise NotEqual(
                f"Padded {side}, the written folder gives other outputs than the run: a relative difference of {value:.1e} "
                f"where {written.bound:.0e} is the bound. Nothing was exported."
            )
        worst = max(worst, value)
    return worst


def _say(target: Path, written: Written, difference: float) -> None:
    plan = written.plan
    size = sum(file.stat().st_size for file in target.iterdir()) / 1e6
    if plan.auto is not None:
        what = f"the architecture's own class, loaded by {plan.auto}"
    else:
        what = "the plain backbone and head.safetensors, joined by the lines in README.md"
    if plan.form == "adapter":
        what = f"an adapter for peft on {plan.base}: {what}"
    print(f"{target} ({size:.1f} MB): {what}")
    sides = " and ".join(plan.sides)
    rows = len(written.probe.texts)
    shown = f"{difference:.0e}".replace("e-0", "e-") if difference else "0"
    print(f"checked in a fresh process: largest difference {shown} over {rows} rows, padded {sides}")
    if plan.sides == ("right",):
        print("with padding on the left this class gives other outputs; the card says so")
