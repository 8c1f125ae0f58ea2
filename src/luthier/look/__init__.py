"""`luthier look`: what the model will really see, before anything is trained.

from luthier.look import inspect, page, text
found = inspect("recipe.yaml")       # a Look: plain values, and its findings
print(text(found))                   # as the terminal shows it
Path("look.html").write_text(page(found), encoding="utf-8")
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from luthier.engine.cache import Cache
from luthier.errors import UserError
from luthier.gather import alone
from luthier.look.found import Finding, Look
from luthier.look.inspection import inspect
from luthier.look.terminal import show, text
from luthier.look.web import page
from luthier.new import drafted
from luthier.recipe import MultitaskSettings, Recipe, read, read_any

__all__ = ["Finding", "Look", "inspect", "look", "page", "text"]


def look(recipe: str, sets: Sequence[str] = (), html: Path | None = None, rows: int = 5) -> None:
    """Print what was found in a recipe's data, or in a data file; write the page where `html` is given.

    Raises:
        UserError: for a recipe, a model or a file that can't be read at all; broken rows are findings.
    """
    if html is not None and not Path(html).absolute().parent.is_dir():
        raise UserError(f"There is no folder {str(Path(html).parent)!r} for the page.", hint="Make it first.")
    for name, one in _tasks(recipe, sets).items():
        found = inspect(one, sets if one is recipe else (), rows=rows)
        if name:
            print(f"\ntask {name}\n")
        show(found)
        if html is not None:
            target = Path(html).with_stem(f"{Path(html).stem}-{name}") if name else Path(html)
            _keep(page(found), target)
            print(f"page: {target}")


def _tasks(recipe: str, sets: Sequence[str]) -> dict[str, str | Recipe]:
    """The recipe of each task of several, by its name; of one task the recipe itself, without a name. A data file is read
    as `tune` would read it, which is said."""
    if Path(recipe).suffix.lower() in (".yaml", ".yml"):
        told = read_any(recipe, sets)
    else:
        try:
            told, said = drafted(recipe, Cache().rows)
        except UserError:
            return {"": recipe}  # which `inspect` reads as far as it goes
        print(said)
        told = read(told, sets)
    if isinstance(told, Recipe) and isinstance(told.method, MultitaskSettings):
        return {name: alone(told, name) for name in told.method.tasks}
    return {"": recipe if Path(recipe).suffix.lower() in (".yaml", ".yml") else told}  # type: ignore[dict-item]


def _keep(content: str, path: Path) -> None:
    """Write the page whole or not at all."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=".look-", suffix=".html")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
                file.write(content)
            os.chmod(temporary, 0o644)  # mkstemp gives the owner alone
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"The page {str(path)!r} can't be written: {error}.") from None
