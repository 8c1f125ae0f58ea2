"""`luthier show WHAT`: the literal tables of the house with their docs, the recipe's keys, and its JSON schema."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import textwrap
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from luthier.errors import UserError
from luthier.recipe import Recipe

WIDTH = 118
LONGEST = 40  # of a type, in characters: where it has more words than that, the meaning names them
Page = Callable[[], str]


def show(what: str) -> str:
    """One table as text.

    Raises:
        UserError: for a name that is no table; the message names the nearest.
    """
    page = PAGES.get(what.strip().lower())
    if page is None:
        near = difflib.get_close_matches(what.strip().lower(), PAGES, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise UserError(f"There is no table {what!r}.", hint=f"{hint}There are: {', '.join(PAGES)}.")
    return page()


def first_line(thing: Any) -> str:
    """The first line of a docstring, without its full stop."""
    return (inspect.getdoc(thing) or "").split("\n")[0].rstrip(".")


def _listed(title: str, rows: Sequence[tuple[str, ...]]) -> str:
    """Cells in straight columns, the last one wrapped."""
    wide = [max(len(row[place]) for row in rows) for place in range(len(rows[0]) - 1)]
    lines = [title]
    for row in rows:
        start = "  " + "".join(f"{cell:{width}}  " for cell, width in zip(row[:-1], wide, strict=True))
        told = textwrap.wrap(row[-1], max(40, WIDTH - len(start)), break_on_hyphens=False) or [""]
        lines += [(start + told[0]).rstrip(), *(" " * len(start) + part for part in told[1:])]
    return "\n".join(lines)


def adapters() -> str:
    """ADAPTERS: which parameters move, with the columns of the table."""
    from luthier.adapters import ADAPTERS, Adapter

    hidden = ("doc", "how", "options")
    names = [name for name in Adapter.__dataclass_fields__ if name not in hidden]
    rows = [("adapt", *names)]
    rows += [(kind, *(_cell(getattr(row, name)) for name in names)) for kind, row in ADAPTERS.items()]
    wide = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    grid = ["  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]
    meant = [(name, _attribute(Adapter, name)) for name in names]
    what = _listed("adapt: which parameters move", [(kind, row.doc) for kind, row in ADAPTERS.items()])
    options = [_keys(row.options, f"adapt: {{kind: {kind}, ...}}", {"kind"}) for kind, row in ADAPTERS.items()]
    columns = _listed("columns", meant)
    return "\n\n".join([what, "\n".join(["table", *grid]), columns, *filter(None, options)])


def _attribute(cls: type, name: str) -> str:
    """What the class's docstring says of an attribute."""
    lines = (inspect.getdoc(cls) or "").splitlines()
    found: list[str] = []
    for line in lines:
        if line.startswith(f"    {name}: "):
            found = [line.strip().removeprefix(f"{name}: ")]
        elif found and line.startswith("        "):
            found.append(line.strip())
        elif found:
            break
    return " ".join(found).rstrip(".")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def methods() -> str:
    """METHODS: what teaches, each with its keys."""
    from luthier.methods import METHODS

    rows, keys = [], []
    for kind, place in METHODS.items():
        module, _, name = place.partition(":")
        loaded = importlib.import_module(module)
        rows.append((kind, first_line(loaded)))
        keys.append(_keys(getattr(loaded, name), f"method: {{kind: {kind}, ...}}", {"kind"}))
    return "\n\n".join([_listed("method: what teaches", rows), *filter(None, keys)])


def losses() -> str:
    """LOSSES: the objective of each task, as a pure function."""
    from luthier.methods.objectives import listwise, preference
    from luthier.methods.reward import LOSSES as JUDGED
    from luthier.methods.supervised import LOSSES

    rows = [(task, function.__name__, first_line(function)) for task, function in LOSSES.items()]
    scores = [(name, first_line(function)) for name, function in JUDGED.items()]
    parts = [_listed("loss of each task of method: supervised", rows), _listed("loss of method: reward", scores)]
    for title, table in (("preference", preference.LOSSES), ("ranking, learner: policy", listwise.LOSSES)):
        lines = [(name, function.__name__, _wanted(function), first_line(function)) for name, function in table.items()]
        parts.append(_listed(f"loss of method: {title}", lines))
    return "\n\n".join(parts)


def _wanted(function: Callable[..., Any]) -> str:
    """What a loss on the policy needs beside the policy's own log-probabilities."""
    from luthier.methods.objectives import needs

    return "no reference" if needs.reference_free(function) else "reference"


def metrics() -> str:
    """METRICS: the figures, whom they serve, and their definitions."""
    from luthier.evaluate.metrics import METRICS

    rows = [
        (name, "higher" if metric.higher_is_better else "lower", ", ".join(metric.tasks), metric.doc)
        for name, metric in METRICS.items()
    ]
    return _listed("metric: which way is better, whom it serves", rows)


def schedules() -> str:
    """SCHEDULES: how the learning rate falls after the warm-up."""
    from luthier.engine.optimizer import SCHEDULES

    rows = [(name, first_line(function)) for name, function in SCHEDULES.items()]
    return _listed("train.schedule: factor of the peak rate after the warm-up, t the share of steps done", rows)


def sources() -> str:
    """SOURCES: the files that are read."""
    from luthier.data.sources import SOURCES, read_folder, read_hub

    rows = [(ending, first_line(function)) for ending, function in SOURCES.items()]
    rows += [("a folder", first_line(read_folder)), ("a name", first_line(read_hub))]
    return _listed("data.train, data.eval, data.test: what is read", rows)


def records() -> str:
    """RECORDS: the columns that make an example."""
    from luthier.data.examples import RECORDS

    rows = []
    for name, record in RECORDS.items():
        beside = f"; beside them: {', '.join(record.also)}" if record.also else ""
        rows.append((name, record.doc + beside))
    return _listed("columns of a row; data.columns renames others to these: {ours: theirs}", rows)


# the recipe


def recipe() -> str:
    """The recipe's keys with type, default and meaning, nested as they are written."""
    from luthier.recipe import stages

    one = _keys(Recipe, "recipe: key, type, default (null: chosen when the run starts, or none), meaning")
    return f"{one}\n\n{(inspect.getdoc(stages) or '').strip()}"


def _keys(cls: type[BaseModel], title: str, hidden: set[str] | None = None) -> str:
    rows = _rows(cls, 0, hidden or set())
    return _listed(title, rows) if rows else ""


def _rows(cls: type[BaseModel], depth: int, hidden: set[str]) -> list[tuple[str, str, str, str]]:
    found: list[tuple[str, str, str, str]] = []
    for key, field in cls.model_fields.items():
        if key in hidden:
            continue
        parts = _models(field.annotation)
        if not parts:
            found.append(("  " * depth + key, type_of(field), default_of(field), field.description or ""))
            continue
        several = len(parts) > 1
        kinds = " | ".join(_kind(part) for part in parts) if several else _mapping(field.annotation)
        if len(kinds) > LONGEST:
            kinds = f"one of {len(parts)} kinds, below"
        found.append(("  " * depth + key, kinds, default_of(field), field.description or first_line(parts[0])))
        for part in parts:
            if several:
                found.append(("  " * (depth + 1) + f"kind: {_kind(part)}", "", "", first_line(part)))
            found += _rows(part, depth + 1 + several, {"kind"} if several else set())
    return found


def _mapping(annotation: Any) -> str:
    return "mapping of names to" if get_origin(annotation) is dict else "mapping"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    if get_origin(annotation) in (Union, UnionType, Annotated, dict):
        return [cls for part in get_args(annotation) for cls in _models(part)]
    return []


def _kind(cls: type[BaseModel]) -> str:
    return str(get_args(cls.model_fields["kind"].annotation)[0])


def type_of(field: FieldInfo) -> str:
    """A field's type in short words, with its bounds."""
    return _type(field.annotation) + _bounds(field.metadata)


def _type(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inside[0]) + _bounds(inside[1:])
    if origin is Literal:
        words = " | ".join(map(str, inside))
        return words if len(words) <= LONGEST else f"one of {len(inside)} words"
    if origin in (Union, UnionType):
        return " | ".join(_type(part) for part in inside if part is not NoneType)
    if origin in (list, dict):
        return f"{origin.__name__} of {' to '.join(map(_type, inside))}"
    names = {bool: "true | false", str: "text", int: "int", float: "number"}
    return names.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _bounds(metadata: Sequence[Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = []
    for one in metadata:
        if isinstance(one, FieldInfo):
            found += [part for part in [_bounds(one.metadata).strip()] if part]
        elif isinstance(one, (annotated_types.Gt, annotated_types.Ge, annotated_types.Lt, annotated_types.Le)):
            found += [f"{sign} {getattr(one, name):g}" for name, sign in signs.items() if hasattr(one, name)]
    return f" {', '.join(found)}" if found else ""


def default_of(field: FieldInfo) -> str:
    """A field's default as YAML writes it; "needed" where there is none."""
    if field.is_required():
        return "needed"
    value: Any = (
        field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    )
    if isinstance(value, BaseModel):
        return ""
    return value if isinstance(value, str) and value.strip() else json.dumps(value)


def schema() -> str:
    """The recipe's JSON schema, for completion in an editor. A bare name stands for a mapping that holds only it."""
    tree = Recipe.model_json_schema()
    tree["required"] = [key for key in tree["required"] if key != "adapt"]  # method: fewshot does without
    for key, field in Recipe.model_fields.items():
        parts = _models(field.annotation)
        named = [part for part in parts if {"kind", "name"} & set(part.model_fields)]
        if not named or key == "data":
            continue
        kinds = [str(kind) for part in named if "kind" in part.model_fields for kind in [_kind(part)]]
        bare: dict[str, Any] = {"type": "string", "enum": kinds} if kinds else {"type": "string"}
        long = tree["properties"][key]
        described = {name: long.pop(name) for name in ("description", "default", "title") if name in long}
        tree["properties"][key] = {"anyOf": [bare, long], **described}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **tree}, indent=2)


PAGES: dict[str, Page] = {
    "adapters": adapters,
    "methods": methods,
    "losses": losses,
    "metrics": metrics,
    "schedules": schedules,
    "sources": sources,
    "records": records,
    "recipe": recipe,
    "schema": schema,
}
