"""Exported folders give the run's outputs in plain transformers and peft, in a fresh process, on ragged rows."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from luthier.adapters import bridge
from luthier.errors import UserError
from luthier.export import fresh, own, write
from luthier.export.card import BLOCK
from luthier.export.fresh import NotEqual
from luthier.export.write import Written, compare, export, tuned
from luthier.folder import Folder, start
from luthier.models import saved
from luthier.recipe import read
from luthier.run import run

SEQUENCE, TOKEN = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
BOTH, RIGHT = ("right", "left"), ("right",)
SHARED = Path(os.environ.get("LUTHIER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
STORIES = SHARED / "models" / "stories260k"


@dataclass(frozen=True)
class Case:
    """A run to export, and what the architecture's own class can do with it."""

    model: str
    adapt: str
    task: str
    pooling: str | None
    auto: str | None
    sides: tuple[str, ...] = BOTH
    positions: bool = False
    form: str = "merged"
    pairs: bool = False
    no_class: bool = False  # as if the architecture's own class did not serve
    method: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """For the test's id."""
        extra = (
            [f"{key}{value}" for key, value in self.method.items()]
            + ["pairs"] * self.pairs
            + ["no-class"] * self.no_class
        )
        return "-".join([self.model, self.adapt, self.task, self.pooling or "none", self.form, *extra])


# `positions` of a joined case says whether its lines pass position_ids: where the backbone takes them.
CASES = [
    Case("llama", "full", "classify", "last", SEQUENCE),
    Case("llama", "lora", "multilabel", "last", SEQUENCE),
    Case("llama", "lora", "classify", "last", SEQUENCE, form="adapter"),
    Case("llama", "head", "regress", "last", None, positions=True),  # the class has no bias
    Case("llama", "lora", "classify", "mean", None, positions=True, form="adapter"),
    Case("llama", "lora", "classify", "last", SEQUENCE, form="adapter", method={"layer": 2}),
    Case("llama", "head", "classify", "last", SEQUENCE, method={"layer": 1}),
    Case("llama", "head", "classify", "mean", None, positions=True),
    Case("qwen3", "head", "multilabel", "last", SEQUENCE),
    Case("qwen3", "lora", "tag", None, TOKEN, form="adapter"),
    Case("qwen3", "lora", "classify", "mean", None, positions=True, form="adapter", method={"layer": 2}),
    Case("gpt2", "full", "classify", "last", SEQUENCE, positions=True),
    Case("gpt2", "lora", "tag", None, TOKEN, positions=True),
    Case("gpt2", "lora", "classify", "last", SEQUENCE, positions=True, form="adapter"),
    Case("gpt2", "head", "regress", "mean", None, positions=True),
    Case("bert", "full", "classify", "cls", SEQUENCE, RIGHT),
    Case("bert", "lora", "regress", "cls", SEQUENCE, RIGHT, form="adapter"),
    Case("bert", "head", "classify", "cls", None, positions=True),  # no hidden layer, as the class has
    Case("bert", "head", "tag", None, TOKEN, positions=True),
    Case("bert", "head", "classify", "mean", None, positions=True, pairs=True),
    Case("bert", "full", "classify", "cls", SEQUENCE, RIGHT, pairs=True),
    Case("roberta", "full", "regress", "cls", SEQUENCE, RIGHT),
    Case("roberta", "lora", "classify", "cls", SEQUENCE, RIGHT, form="adapter"),
    Case("roberta", "lora", "tag", None, TOKEN),
    Case("roberta", "head", "multilabel", "mean", None, positions=True),
    Case("distilbert", "lora", "multilabel", "cls", SEQUENCE, RIGHT),
    Case("distilbert", "lora", "classify", "cls", SEQUENCE, RIGHT, form="adapter"),
    Case("distilbert", "head", "tag", None, TOKEN, positions=True),
    Case("distilbert", "lora", "classify", "last", None, positions=True, form="adapter"),
    Case("roberta", "lora", "classify", "cls", None, positions=True, no_class=True),
    Case("distilbert", "full", "classify", "cls", None, positions=True, no_class=True),
    Case("stories", "lora", "classify", "last", SEQUENCE, form="adapter"),
    Case("stories", "lora", "tag", None, TOKEN),
    Case("pocket", "lora", "classify", "mean", None, positions=True, form="adapter"),
]
TINY = [case for case in CASES if case.model in tiny.ARCHITECTURES]


def made_run(case: Case, base: str, runs: Path, store: Path) -> Folder:
    """A run's folder as `run` leaves it, its adapter and head random instead of learned."""
    made = tiny.make(base, case.adapt, case.task, store, case.pooling, **case.method)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for name, parameter in made.built.model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.5 if name.startswith("head.") else 0.05))
    folder = Folder(runs / case.name)
    method = {"kind": "supervised", "task": case.task, "pooling": case.pooling, **case.method}
    start(folder, read({"model": base, "adapt": case.adapt, "method": method, "data": {"train": "rows.csv"}}))
    saved.save(made.built.model, made.built.about, made.built.base.tokenizer, folder.model)
    folder.keep({"status": "done"})
    told = [{"text": row["text"]} for row in tiny.easy_rows(12)]
    if case.task == "tag":
        told = [line | {"tokens": line["text"].split()} for line in told]
    elif case.pairs:
        told = [{"text": [line["text"], "what of it"]} for line in told]
    folder.predictions.write_text("".join(json.dumps(line) + "\n" for line in told), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exported(
    tinies: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Written, dict[str, torch.Tensor]]]:
    """All cases whose model is here, written, and what one fresh process finds in them."""
    place = tmp_path_factory.mktemp("exported")
    written: dict[str, Written] = {}
    for case in CASES:
        base = (tinies | {"pocket": "pocket", "stories": str(STORIES)})[case.model]
        if case.model == "stories" and not STORIES.is_dir():
            continue
        folder = made_run(case, base, place / "runs", place / "store")
        target = place / case.name
        target.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            if case.no_class:
                patch.setattr(own, "_tried", lambda *given: None)
            written[case.name] = write.write(tuned(folder, case.form, place / "store"), case.form, target)
    found = fresh.run([one.job for one in written.values()])
    return {name: (one, logits) for (name, one), logits in zip(written.items(), found, strict=True)}


@pytest.fixture
def result(case: Case, exported: dict[str, tuple[Written, dict[str, torch.Tensor]]]) -> Any:
    """Of one case."""
    if case.name not in exported:
        pytest.skip(f"no {STORIES}: set LUTHIER_SHARED")
    return exported[case.name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fresh_process_gives_equal_outputs(case: Case, result: Any) -> None:
    written, logits = result
    assert (written.plan.auto, written.plan.sides) == (case.auto, case.sides)
    assert written.plan.positions == case.positions
    assert tuple(logits) == case.sides
    assert compare(written, logits) <= (1e-4 if case.adapt == "lora" and case.form == "merged" else 1e-5)
    assert written.probe.truth.std() > 0.05  # equal numbers that say something


def test_rows_are_ragged_and_reach_the_longest(exported: dict[str, Any]) -> None:
    for case in TINY:
        lengths = exported[case.name][0].probe.view.encoded.lengths
        assert lengths.max() == 64
        assert lengths.min() < 16
        assert len(lengths) == 8


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_folder_tells_labels_and_names_no_code(case: Case, result: Any) -> None:
    folder = result[0].folder
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    labels = {"regress": {"0": "score"}, "tag": {"0": "B-X", "1": "O"}, "multilabel": None, "classify": None}[case.task]
    told = {"0": "food", "1": "money", "2": "weather"} if case.task == "classify" else labels
    if told is not None:
        assert config["id2label"] == told
    assert "auto_map" not in config
    assert not [file.name for file in folder.iterdir() if file.suffix in (".py", ".bin", ".pt", ".pkl")]
    assert (folder / "head.safetensors").exists() == (case.auto is None)
    assert (folder / "adapter_config.json").exists() == (case.form == "adapter")
    assert (folder / "model.safetensors").exists() == (case.form == "merged")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer["pad_token"]
    assert tokenizer["model_max_length"] == 64


def test_problem_type_and_number_of_labels(exported: dict[str, Any]) -> None:
    kinds = {
        "regress": "regression",
        "multilabel": "multi_label_classification",
        "classify": "single_label_classification",
    }
    for case in TINY:
        config = json.loads((exported[case.name][0].folder / "config.json").read_text(encoding="utf-8"))
        assert config.get("problem_type") == kinds.get(case.task)
        assert len(config["id2label"]) == exported[case.name][0].probe.truth.shape[1]


def test_padding_id_ends_no_row(exported: dict[str, Any]) -> None:
    """With the last token's pooling transformers goes by the id: a row that ends with it would be read too early."""
    for case in TINY:
        written = exported[case.name][0]
        if case.pooling == "last" and case.auto:
            config = json.loads((written.folder / "config.json").read_text(encoding="utf-8"))
            encoded = written.probe.view.encoded
            ends = {int(encoded.row(encoded.ids, row)[-1]) for row in range(len(encoded))}
            assert config["pad_token_id"] not in ends


def test_padding_id_is_another_where_texts_end_with_it(tinies: dict[str, str], tmp_path: Path) -> None:
    from luthier.export.own import _pads

    case = Case("llama", "head", "classify", "last", SEQUENCE)
    folder = made_run(case, tinies["llama"], tmp_path / "runs", tmp_path / "store")
    found = tuned(folder, "merged", tmp_path / "store")
    first = _pads(found.about, found.base, found.probe)[0]
    assert first == found.base.pad_id
    encoded = found.probe.view.encoded
    ids = encoded.ids.copy()
    ids[encoded.offsets[1] - 1] = first  # the first row ends with it
    object.__setattr__(encoded, "ids", ids)
    assert first not in _pads(found.about, found.base, found.probe)


def test_card_is_what_was_run(exported: dict[str, Any]) -> None:
    text = (exported[CASES[4].name][0].folder / "README.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert len(blocks) == 3
    assert "head.safetensors" in blocks[1]
    assert "the mean of the real tokens" in blocks[2]
    lines = [line for line in (blocks[1] + blocks[2]).splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 17
    assert "luthier" not in blocks[1] + blocks[2]
    assert "sha256" in text
    assert "licence of the base holds" in text
    assert "Nothing was held out" in text
    assert "`food`, `money`, `weather`" in text


def test_card_says_where_padding_must_stand(exported: dict[str, Any]) -> None:
    for case in TINY:
        text = (exported[case.name][0].folder / "README.md").read_text(encoding="utf-8")
        assert ("Pad on the right" in text) == (case.sides == RIGHT)


def test_adapter_is_the_runs_own(exported: dict[str, Any], tinies: dict[str, str]) -> None:
    case = CASES[2]
    folder = exported[case.name][0].folder
    told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert told["base_model_name_or_path"] == tinies["llama"]
    assert told["task_type"] == "SEQ_CLS"
    assert told["modules_to_save"] == ["score"]
    names = list(load_file(folder / "adapter_model.safetensors"))
    assert "base_model.model.score.weight" in names
    assert not [name for name in names if "embed" in name or "base_layer" in name]


@pytest.fixture(scope="module")
def whole(easy: Path, tinies: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A short run from end to end, by lora."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    recipe = {"model": tinies["llama"], "adapt": "lora", "data": {"train": str(easy)}, "train": {"steps": 2}}
    return Folder(run(recipe, runs=runs, name="whole", quiet=True).folder)


def test_verb(whole: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export("whole", None, "merged", whole.path.parent)
    said = capsys.readouterr().out
    assert folder == whole.path / "export"
    assert "checked in a fresh process: largest difference" in said
    assert "over 8 rows, padded right and left" in said
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "| accuracy |" in text
    assert "majority (baseline)" in text
    assert "easy.csv" in text
    assert str(whole.path.parent) not in text  # of paths only the names
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md", "config.json", "head.safetensors", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    with pytest.raises(UserError, match="exists already"):
        export("whole", None, "merged", whole.path.parent)


def test_run_itself_is_left_as_it_was(whole: Folder) -> None:
    model, _, _ = saved.read(whole.model)
    assert bridge.is_wrapped(model.backbone)


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh process gives outputs that are a little off."""

    def off(jobs: list[fresh.Job]) -> list[dict[str, torch.Tensor]]:
        return [{side: torch.full((8, 3), 0.1) for side in job.sides} for job in jobs]

    monkeypatch.setattr(fresh, "run", off)


@pytest.mark.usefixtures("no_child")
def test_unequal_outputs_leave_nothing_behind(whole: Folder, tmp_path: Path) -> None:
    with pytest.raises(NotEqual, match="Padded right, the written folder gives other outputs"):
        export(whole.path, tmp_path / "out", "merged")
    assert list(tmp_path.iterdir()) == []


def test_code_that_fails_is_told(tmp_path: Path) -> None:
    card = "```python\nfolder = 1\n```\n```python\nimport no_such_module\n```\n```python\nlogits = 1\n```\n"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    with pytest.raises(NotEqual, match="no_such_module"):
        fresh.run([fresh.Job(tmp_path, ["a"], RIGHT)])


def test_refusals(whole: Folder, tinies: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no form 'onnx'"):
        export(whole.path, tmp_path / "out", "onnx")
    with pytest.raises(UserError, match="no run 'wholly'"):
        export("wholly", None, "merged", whole.path.parent)
    (tmp_path / "file").write_text("here", encoding="utf-8")
    with pytest.raises(UserError, match="exists already"):
        export(whole.path, tmp_path / "file")
    case = Case("bert", "head", "classify", "mean", None)
    folder = made_run(case, tinies["bert"], tmp_path / "runs", tmp_path / "store")
    with pytest.raises(UserError, match=r"adapt: head, which keeps no adapter(.|\n)*--form merged"):
        export(folder.path, tmp_path / "out", "adapter")
    about = json.loads((whole.model / saved.ABOUT).read_text(encoding="utf-8")) | {"base": str(whole.model)}
    (folder.model / saved.ABOUT).write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(UserError, match=r"is an adapter itself(.|\n)*--form merged"):
        export(folder.path, tmp_path / "out", "adapter")
    assert not (tmp_path / "out").exists()


def test_label_names_break_no_card(exported: dict[str, Any]) -> None:
    from dataclasses import replace

    from luthier.export.card import card

    written = exported[CASES[0].name][0]
    about = replace(
        saved.about(written.folder.parent / "runs" / CASES[0].name / "model"), labels=("a`\n```python\nx", "b|c")
    )
    recipe = read({"model": "pocket", "adapt": "head", "data": {"train": "rows.csv"}})
    text = card(written.plan, about, "name", {}, recipe)
    assert len(BLOCK.findall(text)) == 3
