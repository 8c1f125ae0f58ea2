"""Several tasks on one trunk. Each task is a case of its own, worked by its own family; what is shared stands here."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import frozen, proofs, record, training
from luthier.adapters import ADAPTERS, bridge
from luthier.adapters.structure import structure
from luthier.build import Built, default_pooling, new_head, pooling_of
from luthier.data.tasks import TaskLoader, TaskRows, TaskViews
from luthier.data.view import TextView
from luthier.errors import UserError
from luthier.evaluate.metrics import METRICS, Metric
from luthier.families import family_of, language
from luthier.folder import Folder, replace_text
from luthier.gather import Gathered, alone
from luthier.methods.directions import RULES, TaskRule
from luthier.methods.multitask import Lessons, Multitask, passes
from luthier.models import joint, saved
from luthier.models.heads import Head, TaskModel
from luthier.models.load import Base
from luthier.models.multitask import MultiTask
from luthier.models.saved import ABOUT, About
from luthier.recipe import Recipe, SupervisedSettings, write
from luthier.start import model_folder
from luthier.together import Matrix, directions, figures, interval_of, mean_of, naive, of_tasks, sentence
from luthier.training import Case, Job

SCORE = "score"
ABOUT_SCORE = Metric(
    ("multitask",), lambda outputs: lambda weights: np.full(len(weights), np.nan), True,
    "mean over the tasks of their own figures, of those that are better when lower 1 - figure / that of a constant guess",
)  # fmt: skip


def build(recipe: Recipe, base: Base, teach: Multitask, schema: Lessons, max_length: int, precision: str) -> Built:
    """The trunk with its adapter, as one of the tasks would build it (one that writes, if any does), and a head a task."""
    first = schema.writes[0] if schema.writes else next(iter(schema.teachers))
    made = family_of(schema.teachers[first]).build(
        _alone(recipe, schema, first), base, schema.teachers[first], schema.schemas[first], max_length, precision
    )
    backbone, heads, poolings, told = made.model.backbone, {}, {}, {}
    for number, name in enumerate(schema.teachers):
        if name in schema.writes:
            told[name] = replace(made.about, speech=language.speech_told(recipe, schema.teachers[name], schema.schemas[name], max_length))
            continue
        own = schema.schemas[name]
        assert isinstance(schema.teachers[name], SupervisedSettings)
        poolings[name] = _pooling(recipe, base, name, schema.teachers[name])
        heads[name] = new_head(recipe, base, own.task, own.labels, poolings[name], number=number)
        told[name] = replace(
            made.about, task=own.task, labels=own.labels, pooling=poolings[name], hidden=None, family="labels", speech=None
        )
    carried = _carry(recipe, told, heads)
    model = MultiTask(backbone, heads, poolings, schema.writes, balanced=teach.balance.kind == "uncertainty")
    model.join(schema.groups)
    model.carried = carried
    if teach.balance.kind in RULES and len(told) > 1 and not _shares(model, schema):
        raise UserError(
            f"balance: {teach.balance.kind} weighs gradients of what the tasks share, and with adapt: {recipe.adapt.kind} "
            "nothing that they share learns.",
            where=recipe.where("method", "balance"), hint="Take balance: equal or uncertainty, or adapt: lora.",
        )  # fmt: skip
    said = (f"the heads of {', '.join(sorted(model.carried))} go on learning",) if model.carried else ()
    about = replace(
        made.about, task="multitask", labels=(), pooling="none", hidden=None, family="multitask", speech=None,
        tasks={name: asdict(one) for name, one in told.items()},
    )  # fmt: skip
    return Built(model, made.base, about, made.parameters, (*_trunks(made.said), *said), bool(heads) and model.carried == set(heads))


def _trunks(said: tuple[str, ...]) -> tuple[str, ...]:
    """What is told of the trunk; what one task's own last layer did is not."""
    return tuple(one for one in said if "last layer" not in one)


def _carry(recipe: Recipe, told: dict[str, About], heads: dict[str, Head]) -> frozenset[str]:
    """Tasks of the same name, kind, labels and pooling in the run that this one starts from: their heads' weights."""
    folder = model_folder(recipe.model.name)
    if folder is None or saved.about(folder).family != "multitask":
        return frozenset()
    found = set()
    for name, (before, head) in joint.heads_of(folder).items():
        now = told.get(name)
        if name in heads and now is not None and (now.task, now.labels, now.pooling) == (before.task, before.labels, before.pooling):
            heads[name].load_state_dict(head.state_dict())
            found.add(name)
    return frozenset(found)


def _pooling(recipe: Recipe, base: Base, name: str, teacher: Any) -> str:
    if teacher.task == "tag":
        return "none"
    where = recipe.where("method", "tasks", name, "pooling")
    return pooling_of(base, teacher.pooling, where, default_pooling(base, recipe.adapt.kind))


def _alone(recipe: Recipe, schema: Lessons, name: str) -> Recipe:
    return alone(recipe, name, "text" if name in schema.writes else "text,label")


def _shares(model: MultiTask, schema: Lessons) -> bool:
    """Whether anything learns that more than one task reads."""
    learns = [p for p in model.backbone.parameters() if p.requires_grad]
    return bool(learns) and (not frozen.body_frozen(model.backbone) or len(schema.writes) > 1)


def view(rows: TaskRows, built: Built, teach: Multitask, schema: Lessons, store: Path, split: str) -> TaskViews:
    """Each task's rows as its own family reads them."""
    made = {}
    for name, own in rows.parts.items():
        family = family_of(schema.teachers[name])
        made[name] = family.view(own, _built(built, name), schema.teachers[name], schema.schemas[name], store, f"{name}, {split}")
    return TaskViews.of(rows, made, built.base.pad_id)


def _built(built: Built, name: str) -> Built:
    carried = name in built.model.carried
    return Built(built.model.tasks[name], built.base, joint.parts_of(built.about)[name], built.parameters, carried=carried)


def rows(view: TaskViews, teach: Multitask, recipe: Recipe) -> int:
    """Examples of a pass of the mixture."""
    return len(teach.mixture(view, recipe.seed))


def metric(recipe: Recipe, schema: Lessons) -> tuple[str, Metric]:
    """What chooses the checkpoint: the mean over the tasks, or one task's figure as  <task>/<metric>.

    Raises:
        UserError: for a name that is neither.
    """
    own = {name: training.metric_of(_alone(recipe, schema, name), one) for name, one in schema.schemas.items()}
    known = {f"{name}/{one[0]}": one[1] for name, one in own.items()}
    known |= {f"{name}/loss": METRICS["loss"] for name in own}
    wanted = recipe.train.metric or SCORE
    if wanted != SCORE and wanted not in known:
        raise UserError(
            f"train.metric: {wanted!r} is no figure of these tasks.", where=recipe.where("train", "metric"),
            hint=f"There are: {', '.join([SCORE, *known])}. A task's own figure is named at the task:  metric: macro-f1",
        )  # fmt: skip
    return wanted, known.get(wanted, ABOUT_SCORE)


def parts(case: Case) -> dict[str, Case]:
    """Each task as a case of its own, in a folder of its own below the run's."""
    if not case.parts:
        case.parts |= {name: _part(case, name) for name in case.schema.teachers}
    return case.parts


def _part(case: Case, name: str) -> Case:
    job, schema = case.job, case.schema
    recipe = _alone(case.recipe, schema, name)
    folder = Folder(job.folder.path / "tasks" / name)
    if not job.light:
        folder.path.mkdir(parents=True, exist_ok=True)
        replace_text(folder.recipe, write(recipe))
    earlier = folder.record() if job.record.get("earlier") else {}
    own = Job(recipe, folder, job.cache, job.console, job.stop, job.device, job.memory)
    own.record = record.begin(recipe, f"{job.record.get('name', 'a trial')}, {name}") | {"earlier": earlier, "part_of": "../../report.html"}
    splits: Any = case.gathered.splits
    gathered = Gathered(
        {split: one.parts[name] for split, one in splits.items() if name in one.parts}, case.gathered.how, ()
    )
    views = {split: view.tasks[name] for split, view in _views(case).items() if name in view.tasks}
    chosen = training.metric_of(recipe, schema.schemas[name])
    return Case(
        own, schema.teachers[name], schema.schemas[name], gathered, _built(case.built, name), dict(views), chosen,
        case.precision, case.plan,
    )  # fmt: skip


def _views(case: Case) -> dict[str, TaskViews]:
    found = {}
    for name, one in case.views.items():
        assert isinstance(one, TaskViews)
        found[name] = one
    return found


def says(case: Case) -> str:
    """The tasks, and how they are mixed."""
    train = _views(case)["train"]
    mixture = case.teach.mixture(train, case.recipe.seed)
    share = {name: count / len(mixture) for name, count in zip(train.tasks, mixture.counts, strict=True)}
    told = ", ".join(f"{name} ({case.schema.schemas[name].task}, {100 * share[name]:.0f} %)" for name in train.tasks)
    return f"{len(train.tasks)} tasks: {told};"


def before(case: Case) -> None:
    """The proofs of every task, and that they share one trunk without disturbing each other."""
    for name, part in parts(case).items():
        family_of(part.teach).before(part)
        part.job.proofs, mine = [], part.job.proofs
        case.job.proofs += [line | {"says": f"{name}: {line['says']}"} for line in mine]
    case.job.proofs.append(mixed_is_separate(case))


def mixed_is_separate(case: Case) -> dict[str, Any]:
    """The gradient of a step that mixes the tasks is the sum of those of each task alone."""
    train, job, model = _views(case)["train"], case.job, case.built.model
    objective = case.teach.objective(case.schema, job.device)
    loader = TaskLoader(
        train, case.teach.mixture(train, 0), case.plan, case.teach.alike(train), lambda part: case.teach.collate(train, part, case.schema)
    )  # fmt: skip
    few = [(number, row) for number, one in enumerate(train.tasks.values()) for row in range(min(2, len(one)))]
    tasks, ids = (np.array(column) for column in zip(*few, strict=True))
    model.eval()
    together, separate = (
        proofs.gradient(model, objective, loader.micros(tasks, ids, apart), job.device) for apart in (False, True)
    )
    value = proofs.relative(together, separate)
    says = "a step that mixes the tasks has the gradient of the tasks one by one"
    return proofs.proof("mixed = separate", says, value, 10 * proofs.BOUND, value <= 10 * proofs.BOUND)


def freeze(case: Case, work: frozen.Work, decided: bool | None) -> dict[str, Any]:
    """A column for every task's every split, or for none: the task with the most tokens decides."""
    found: dict[str, dict[str, Any]] = {}
    cases = parts(case)
    for name in sorted(cases, key=lambda name: -int(cases[name].views["train"].encoded.offsets[-1])):
        one = cases[name]
        found[name] = frozen.attach(one.built.model, one.views, work, _passes(case)[name], case.recipe.model.attention, decided)
        decided = found[name]["kind"] is not None
    kinds = {name: one["kind"] for name, one in found.items() if one["kind"] is not None}
    for name, line in found.items():
        cases[name].job.record["frozen"] = line
    says = "; ".join(f"{name}: {one['says']}" for name, one in found.items())
    whole: dict[str, Any] = {"kind": json.dumps(kinds, sort_keys=True) if kinds else None, "says": says}
    if kinds:
        whole |= {key: sum(one.get(key, 0) for one in found.values()) for key in ("bytes", "seconds")}
        whole["hit"] = all(one.get("hit", True) for one in found.values())
    return whole


def _passes(case: Case) -> dict[str, float]:
    train = _views(case)["train"]
    return passes(case.teach.mixture(train, case.recipe.seed), list(train.tasks), case.plan.epochs)


def prepare(case: Case, work: frozen.Work) -> None:
    """Each task's own; the scales of a head are those of its own rows."""
    for part in parts(case).values():
        family_of(part.teach).prepare(part, work)


def rule(case: Case) -> TaskRule:
    """What the tasks make of their gradients."""
    model, teach = case.built.model, case.teach
    measured = teach.cosines if _shares(model, case.schema) else 0
    last: set[int] = set()
    for block in reversed(structure(model.backbone).blocks):
        last = {id(p) for p in block.parameters() if p.requires_grad}
        if last:
            break
    names = frozenset(name for name, p in model.named_parameters() if id(p) in last)
    return TaskRule(list(case.schema.teachers), teach.balance, case.plan.steps, measured, case.recipe.seed, names)


def loader(case: Case) -> TaskLoader:
    """Steps that mix the tasks."""
    train, teach = _views(case)["train"], case.teach
    return TaskLoader(
        train, teach.mixture(train, case.recipe.seed), case.plan, teach.alike(train),
        lambda part: teach.collate(train, part, case.schema), rule(case).apart, teach.column(train, case.schema),
    )  # fmt: skip


def evaluation(case: Case) -> Callable[[], Mapping[str, float]] | None:
    """Each task's figures, as <task>/<metric>, their mean loss, and the score that chooses."""
    each = {name: family_of(part.teach).evaluation(part) for name, part in parts(case).items()}
    found = {name: one for name, one in each.items() if one is not None}
    if not found:
        return None
    guesses = {name: naive(case.parts[name], "eval") for name in found}

    def judge() -> dict[str, float]:
        values = {name: one() for name, one in found.items()}
        told = {f"{name}/{key}": value for name, one in values.items() for key, value in one.items()}
        score = mean_of({name: of_tasks(case.parts[name], one[case.parts[name].metric[0]], guesses[name]) for name, one in values.items()})
        return told | {SCORE: score, "loss": float(np.mean([one["loss"] for one in values.values()]))}

    return judge


def judge(case: Case, into: dict[str, Any]) -> None:
    """Every task's own figures with intervals, in its own folder and here; how the gradients pointed."""
    cases = parts(case)
    for part in cases.values():
        record.judge(part, family_of(part.teach))
        into["warnings"] += part.job.record["warnings"]
    for split in case.views:
        if split != "train" and (found := figures(cases, split)):
            into["metrics"][split] = found
            own = {name: part.job.record["intervals"].get(split, {}) for name, part in cases.items()}
            score = interval_of(cases, split)
            into["intervals"][split] = {SCORE: score} if score else {}
            into["intervals"][split] |= {f"{name}/{key}": bounds for name, one in own.items() for key, bounds in one.items()}
    into["tasks"] = {name: _told(case, name, part) for name, part in cases.items()}
    into["cosines"] = directions(case.job.folder.metrics)
    variance = case.built.model.log_variance
    into["method"] = {
        "kind": "multitask", "task": "multitask", "labels": [], "tasks": list(cases), "balance": case.teach.balance.kind,
        "variances": None if variance is None else dict(zip(case.built.model.names, variance.exp().tolist(), strict=True)),
    }  # fmt: skip


KEPT = ("metrics", "intervals", "baselines", "baseline_intervals", "headline_split", "metric", "data", "difference")


def _told(case: Case, name: str, part: Case) -> dict[str, Any]:
    own = part.job.record
    train = _views(case)["train"]
    mixture = case.teach.mixture(train, case.recipe.seed)
    count = mixture.counts[list(train.tasks).index(name)]
    return {key: own[key] for key in KEPT if key in own} | {
        "task": part.schema.task, "labels": len(part.schema.labels), "share": count / len(mixture), "passes": _passes(case)[name],
        "higher": part.metric[1].higher_is_better,
    }  # fmt: skip


def after(case: Case) -> None:
    """Fold the scales into the heads, save, read back, and the last proofs; the matrix where it is asked for."""
    job, built, cases = case.job, case.built, parts(case)
    for name, part in cases.items():
        probe = part.job.record.pop("probe")
        if bridge.is_wrapped(built.model.backbone) and ADAPTERS[built.about.adapt].off_is_base:
            of: Any = proofs.logprobs_of if name in case.schema.writes else proofs.outputs_of
            again = functools.partial(of, part.built.model, part.views["train"], job.device)
            job.proofs.append(_named(name, proofs.off_is_base(built.model.backbone, again, probe)))
        if name not in case.schema.writes:
            part.built.model.head.fold(part.schema.mean, part.schema.deviation)
    stored = joint.save(built.model, built.about, built.base.tokenizer, job.folder.model)
    read, _, kept = joint.read(job.folder.model)
    read.to(job.device)
    for name, part in cases.items():
        job.proofs += [_named(name, line) for line in _read_back(part, read.tasks[name], kept.tokenizer)]
        _finish(case, name, part)
    job.record["stored_bytes"] = stored
    if case.teach.matrix != "none" and len(cases) > 1:
        job.record["transfer"] = Matrix(case, cases).measure()
        job.console.say(sentence(job.record["transfer"]))


def _named(name: str, line: dict[str, Any]) -> dict[str, Any]:
    return line | {"says": f"{name}: {line['says']}"}


@torch.no_grad()
def _read_back(part: Case, again: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """The saved tokenizer and weights give what those in memory give."""
    train, device, model = part.views["train"], part.job.device, part.built.model
    if isinstance(train, TextView):
        here, there = proofs.logprobs_of(model, train, device), proofs.logprobs_of(again, train, device)
        return [language.encode_again(part, tokenizer), proofs.reloaded(here, there)]
    plain = replace(train, features=None, feature_kind=None)
    batch = {name: value.to(device) for name, value in plain.inputs(np.arange(min(4, len(train)))).items()}
    return [proofs.same_tokens(tokenizer, train), proofs.reloaded(model.eval()(batch), again(batch))]


def _finish(case: Case, name: str, part: Case) -> None:
    """The task's own folder: its page, and a note that its weights lie with the run's."""
    job, own = case.job, part.job
    about: About = replace(joint.parts_of(case.built.about)[name], part=f"../../../model:{name}")
    own.folder.model.mkdir(exist_ok=True)
    replace_text(own.folder.model / ABOUT, json.dumps(asdict(about), indent=1))
    head = part.built.model.head.weights().values() if isinstance(part.built.model, TaskModel) else ()
    own.record |= {
        "stored_bytes": sum(p.numel() * p.element_size() for p in head), "peak_bytes": job.record["peak_bytes"], "proofs": [],
        "lr": job.record["lr"],
    }  # fmt: skip
    record.finish(part)
