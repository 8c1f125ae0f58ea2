"""Documentation is tested: the README's commands run, its tree and the reference are what the code says."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("tool", ["tree.py", "reference.py"])
def test_generated_pages_are_up_to_date(tool: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / tool), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run python tools/{tool}\n{done.stderr}"


def commands(name: str = "quickstart") -> list[list[str]]:
    block = README.split(f"<!-- run: {name} -->")[1].split("```")[1].removeprefix("sh\n")
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


def call(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As the shell would, in this process: thirteen imports of torch cost more than what the commands do.

    `python -m luthier` in a process of its own is test_laws' and test_resume's.
    """
    assert command[0] == "luthier"
    with pytest.raises(SystemExit) as ended:
        main(command[1:])
    told = capsys.readouterr()
    assert ended.value.code == 0, f"{' '.join(command)}\n{told.err}"
    assert "Traceback" not in told.err


def test_the_readmes_commands_run_on_a_strangers_chats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        json.loads(line) for line in (ROOT / "src/luthier/demo/replies.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completions"][-1]},
            ]
        }
        for row in rows
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for command in commands("text"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Where is the library?\n/quit\n"))
        call(command, capsys)
    assert (tmp_path / "runs/chat/report.html").exists()


def test_the_readmes_commands_run_on_a_strangers_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (ROOT / "src/luthier/demo/library.csv").read_text(encoding="utf-8")
    (tmp_path / "messages.csv").write_text(rows, encoding="utf-8")
    assert commands()[0][:2] == ["luthier", "new"]
    monkeypatch.chdir(tmp_path)
    for command in commands():
        call(command, capsys)
    assert (tmp_path / "runs/first/report.html").exists()
    assert len((tmp_path / "answers.csv").read_text(encoding="utf-8").splitlines()) >= 481


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "messages.csv").write_text(
        (ROOT / "src/luthier/demo/library.csv").read_text(encoding="utf-8"), encoding="utf-8"
    )
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "runs/second/report.html").exists()


def test_the_python_of_the_adapters_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    for name, answer in (("friendly", "Gladly, come by"), ("brief", "Yes")):
        rows = [{"prompt": f"May I come at {hour}?", "completion": f"{answer}, at {hour}."} for hour in range(24)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    names: dict[str, object] = {}
    exec(compile(code, "adapters.md", "exec"), names)
    from luthier.adapters import several

    told = several.listed(names["model"])
    assert [(one.name, one.active) for one in told] == [("friendly", False), ("brief", False), ("average", True)]
    assert told[2].parameters == told[0].parameters + told[1].parameters


def test_the_readmes_recipe_is_valid(tmp_path: Path) -> None:
    from luthier.recipe import read

    code = next(block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
    (tmp_path / "recipe.yaml").write_text(code, encoding="utf-8")
    assert read(tmp_path / "recipe.yaml").adapt.kind == "lora"


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_word_is_in_the_reference() -> None:
    from luthier.adapters import ADAPTERS
    from luthier.engine.optimizer import SCHEDULES
    from luthier.evaluate.metrics import METRICS
    from luthier.methods import METHODS
    from luthier.methods.reward import LOSSES as REWARD_LOSSES
    from luthier.methods.supervised import LOSSES
    from luthier.recipe import (
        Data,
        FewshotSettings,
        HoldOut,
        Model,
        Recipe,
        RewardSettings,
        Search,
        SftSettings,
        SupervisedSettings,
        Train,
    )

    page = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    keys = [
        key
        for model in (Recipe, Model, Data, HoldOut, SupervisedSettings, SftSettings, FewshotSettings, Train, Search, RewardSettings)
        for key in model.model_fields
    ]
    for word in [*ADAPTERS, *METHODS, *LOSSES, *REWARD_LOSSES, *METRICS, *SCHEDULES, *keys]:
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", page), word


def test_every_word_of_policies_is_in_the_reference() -> None:
    from luthier.methods.objectives import listwise, preference
    from luthier.recipe import PreferenceSettings, RankingSettings, RoundSettings

    page = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    keys = [key for model in (PreferenceSettings, RankingSettings, RoundSettings) for key in model.model_fields]
    for word in [*preference.LOSSES, *listwise.LOSSES, *keys]:
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", page), word


def test_every_word_of_onpolicy_methods_is_in_the_reference() -> None:
    from luthier.recipe import ppo

    page = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    names = ("PpoSettings", "GrpoSettings", "RlooSettings", "ReinforceSettings", "Kl", "Rollout", "Shown", "Ptx", "Value")
    for word in [key for name in names for key in getattr(ppo, name).model_fields]:
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", page), word
