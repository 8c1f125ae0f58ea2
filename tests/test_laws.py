"""The laws of the house, read off the source: floors, sizes, one place that steps, nothing heavy at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import luthier

SOURCE = Path(luthier.__file__).parent
FILES = sorted(path for path in SOURCE.rglob("*.py"))
ALWAYS = {"errors"}  # three exceptions and four exit codes; everyone may raise them

RUN_FLOOR = {"run", "gather", "build", "frozen", "predict", "proofs", "record", "folder", "judge", "training",
             "families", "speak", "talk", "chat", "judge_text", "together", "judges", "rollouts", "stages", "start",
             "prompting", "prompted", "asked", "judge_prompted", "scored", "rated", "policy", "score",
             "judge_tasks", "comparing", "replay", "forgetting", "comparer"}  # fmt: skip
BELOW_RUN = {"recipe", "statistics", "data", "adapters", "models", "methods", "engine", "evaluate"}
ABOVE_RUN = {"prompt_or_tune", "look", "new", "rank", "export", "runs", "search", "show", "draft", "guess"}
# floor -> what it may import of ours (and itself, and errors)
MAY: dict[str, set[str]] = {
    "recipe": set(),
    "statistics": set(),
    "data": {"recipe", "statistics"},
    "adapters": {"recipe", "statistics"},
    "models": {"adapters", "data"},
    "methods": {"data", "models", "statistics", "recipe"},  # a method's fields are the recipe's
    "engine": set(),
    "evaluate": {"data", "models", "statistics"},
    **dict.fromkeys(RUN_FLOOR, BELOW_RUN | RUN_FLOOR),
    **dict.fromkeys(ABOVE_RUN, BELOW_RUN | RUN_FLOOR | ABOVE_RUN),
    "demo": BELOW_RUN | RUN_FLOOR | ABOVE_RUN,
    "api": BELOW_RUN | RUN_FLOOR | ABOVE_RUN,  # the verbs as functions, for a notebook
    "columns": set(),  # reads values, nothing of ours
    "errors": set(),
    "__init__": set(),
    "__main__": {"cli"},
}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def floor_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names that are imported anywhere inside."""
    for item in ast.walk(node):
        if isinstance(item, ast.Import):
            yield from (name.name for name in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, "relative import"
            base = item.module or ""
            yield base
            if base == "luthier":
                yield from (f"luthier.{name.name}" for name in item.names)


def test_every_file_stands_on_a_floor() -> None:
    unknown = {floor_of(path) for path in FILES} - set(MAY) - {"cli"}
    assert not unknown, f"{unknown}: give the new room a line in MAY"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_look_down_only(path: Path) -> None:
    floor = floor_of(path)
    if floor == "cli":
        return
    ours = {name.split(".")[1] for name in imports(tree_of(path)) if name.startswith("luthier.")} - {"__version__"}
    above = ours - MAY[floor] - ALWAYS - {floor}
    assert not above, f"{path.name} on floor {floor} imports {above}"


def test_recipe_and_statistics_import_no_torch() -> None:
    for path in FILES:
        if floor_of(path) in ("recipe", "statistics", "errors", "__init__"):
            heavy = {name.split(".")[0] for name in imports(tree_of(path))} & {"torch", "transformers", "peft", "datasets"}
            assert not heavy, f"{path} imports {heavy}"


def test_command_line_imports_inside_its_commands() -> None:
    tree = tree_of(SOURCE / "cli.py")
    top = {name for item in tree.body if isinstance(item, (ast.Import, ast.ImportFrom)) for name in imports(item)}
    assert {name for name in top if name.startswith("luthier")} <= {"luthier", "luthier.errors"}
    assert not {name.split(".")[0] for name in top} & {"torch", "transformers", "pydantic", "rich", "numpy", "ruamel"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{path} has {lines} lines"
    for item in ast.walk(tree_of(path)):
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = (item.end_lineno or 0) - item.lineno + 1
            assert size <= 60, f"{path}:{item.lineno} {item.name} has {size} lines"


def calls(path: Path) -> set[str]:
    """Texts of what is called, such as "self.optimizer.step"."""
    return {ast.unparse(item.func) for item in ast.walk(tree_of(path)) if isinstance(item, ast.Call)}


def test_one_file_steps() -> None:
    stepping = {
        str(path.relative_to(SOURCE))
        for path in FILES
        for call in calls(path)
        if call.endswith((".backward", "optimizer.step"))
    }
    assert stepping == {"engine/loop.py"}


def test_one_file_imports_transformers_models() -> None:
    found = set()
    for path in FILES:
        for item in ast.walk(tree_of(path)):
            names: list[str] = []
            if isinstance(item, ast.ImportFrom) and (item.module or "").split(".")[0] == "transformers":
                names = [name.name for name in item.names] + [item.module or ""]
            elif isinstance(item, ast.Attribute) and ast.unparse(item).startswith("transformers."):
                names = [item.attr]
            if any(name.startswith("AutoModel") or ".models" in name or name.endswith("PreTrainedModel") for name in names):
                found.add(str(path.relative_to(SOURCE)))
    assert found == {"models/load.py"}


def test_names_say_what_a_file_is() -> None:
    for path in FILES:
        assert path.stem not in ("utils", "helpers", "util", "misc", "common"), path
        for item in ast.walk(tree_of(path)):
            if isinstance(item, ast.ClassDef):
                assert not item.name.endswith(("Manager", "Helper", "Utils", "Trainer")), f"{path}: {item.name}"
                assert not item.name.startswith("Base") or item.name == "Base", f"{path}: {item.name}"


def test_nothing_is_pickled_or_run_from_a_model_folder() -> None:
    for path in FILES:
        assert not {name.split(".")[0] for name in imports(tree_of(path))} & {"pickle", "dill", "cloudpickle"}, path
        assert not calls(path) & {"torch.load", "torch.save", "np.savez", "joblib.dump", "eval", "exec"}, path
        for item in ast.walk(tree_of(path)):
            if isinstance(item, ast.keyword) and item.arg in ("trust_remote_code", "allow_pickle"):
                assert ast.unparse(item.value) == "False", f"{path}:{item.value.lineno}"


def test_no_unfinished_work() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "raise NotImplemented" + "Error")
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not [mark for mark in marks if mark in text], path


@pytest.mark.parametrize(
    "code",
    [
        "import luthier",
        "import luthier.recipe; luthier.recipe.read({'model': 'pocket', 'adapt': 'head', 'data': {'train': 'x.csv'}})",
        "import luthier.cli",
        "import luthier.statistics.bootstrap",
    ],
)
def test_no_torch_at_import(code: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print([n for n in ('torch', 'transformers', 'peft') if n in sys.modules])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == "[]"


def test_help_imports_nothing_heavy() -> None:
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "luthier", "--help"], capture_output=True, text=True, check=True
    )
    assert "tune" in told.stdout
    assert "evaluate" in told.stdout
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in told.stderr.splitlines() if "|" in line}
    assert not loaded & {"torch", "transformers", "pydantic", "numpy", "ruamel", "sklearn", "matplotlib", "pyarrow", "rich"}


def test_public_names_are_there() -> None:
    for name in luthier.__all__:
        assert getattr(luthier, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        luthier.nothing_such  # noqa: B018
