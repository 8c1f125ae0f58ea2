"""`luthier show`: each table's rows are there with their docs, each key of the recipe with its meaning."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.show import PAGES, WIDTH, _models, first_line, show


def squeezed(text: str) -> str:
    """Wrapped text as one line."""
    return " ".join(text.split())


def tables() -> Iterator[tuple[str, str, str]]:
    """(page, row, a part of its doc) of every literal table."""
    from luthier.adapters import ADAPTERS
    from luthier.data.examples import RECORDS
    from luthier.data.sources import SOURCES
    from luthier.engine.optimizer import SCHEDULES
    from luthier.evaluate.metrics import METRICS
    from luthier.methods import METHODS
    from luthier.methods.objectives import listwise, preference
    from luthier.methods.supervised import LOSSES

    yield from (("adapters", name, row.doc) for name, row in ADAPTERS.items())
    yield from (("records", name, row.doc) for name, row in RECORDS.items())
    yield from (("metrics", name, row.doc) for name, row in METRICS.items())
    yield from (("sources", name, first_line(row)) for name, row in SOURCES.items())
    yield from (("schedules", name, first_line(row)) for name, row in SCHEDULES.items())
    yield from (("losses", name, row.__name__) for name, row in LOSSES.items())
    yield from (("losses", name, first_line(row)) for name, row in {**preference.LOSSES, **listwise.LOSSES}.items())
    yield from (("methods", name, "") for name in METHODS)


def test_every_row_of_every_table_is_shown_with_its_doc() -> None:
    pages = {name: show(name) for name in PAGES}
    for page, row, doc in tables():
        line = next((line for line in pages[page].splitlines() if line.startswith(f"  {row}  ")), None)
        assert line is not None, (page, row)
        words = doc.split()
        assert all(word in squeezed(pages[page]) for word in words), (page, row)


def test_columns_of_the_adapters_are_shown_and_explained() -> None:
    from luthier.adapters import ADAPTERS, Adapter

    said = show("adapters")
    shown = [name for name in Adapter.__dataclass_fields__ if name not in ("doc", "how", "options")]
    header = next(line for line in said.splitlines() if line.split()[:1] == ["adapt"])
    assert header.split()[1:] == shown
    (lora,) = [line for line in said.splitlines() if line.startswith("  lora ") and "adapter" in line.split()]
    row = ADAPTERS["lora"]
    assert lora.split()[1] == f"{row.lr:g}"
    assert lora.split()[-1] == ("yes" if row.checkpointing else "no")
    explained = said[said.index("columns\n") :]
    for name in shown:
        line = next(line for line in explained.splitlines() if line.startswith(f"  {name} "))
        assert len(line.split()) > 2, name
    assert "rank" in said


def every_key(cls: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for key, field in cls.model_fields.items():
        yield key, field
        for part in _models(field.annotation):
            yield from every_key(part)


def test_every_key_of_the_recipe_is_shown() -> None:
    said = show("recipe")
    starts = [line.split()[0] for line in said.splitlines()[1:] if line.split()]
    for key, field in every_key(Recipe):
        assert key in starts or key == "kind", key
        if field.description and key != "kind":
            assert all(word in squeezed(said) for word in field.description.split()), key
    for kind in ("head", "full", "last-n", "lora"):
        assert f"kind: {kind}" in said
    flattened = squeezed(said)
    for part in (
        "batch_size int >= 1 32",
        "lr number > 0 null",
        "warmup number >= 0, < 1 null",
        "needed the pretrained model",
    ):
        assert part in flattened


def test_lines_fit() -> None:
    for name in PAGES:
        if name != "schema":
            assert max(map(len, show(name).splitlines())) <= WIDTH + 14, name


def test_schema_takes_what_the_reader_takes() -> None:
    from luthier.adapters import ADAPTERS
    from luthier.methods import METHODS

    schema = json.loads(show("schema"))
    assert set(schema["properties"]) == set(Recipe.model_fields)
    bare, long = schema["properties"]["adapt"]["anyOf"]
    assert bare["enum"] == [*ADAPTERS, "none"]  # none: with method: fewshot
    assert long["discriminator"]["propertyName"] == "kind"
    assert schema["properties"]["model"]["anyOf"][0] == {"type": "string"}
    assert set(schema["properties"]["method"]["anyOf"][0]["enum"]) == set(METHODS)
    assert "anyOf" not in schema["properties"]["data"]
    references = [word for word in json.dumps(schema).split('"') if word.startswith("#/$defs/")]
    assert {name.rpartition("/")[2] for name in references} <= set(schema["$defs"])


def test_unknown_names_are_told() -> None:
    with pytest.raises(UserError, match="Did you mean 'adapters'"):
        show("adapter")
    with pytest.raises(UserError, match="There are: adapters, methods"):
        show("zzzzzz")
    assert show(" Recipe ") == show("recipe")


@pytest.mark.parametrize("name", ["recipe", "schema", "records", "sources", "metrics"])
def test_light_pages_import_no_torch(name: str) -> None:
    code = f"import sys; from luthier.show import show; show({name!r}); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
