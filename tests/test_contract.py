"""The contract of ADAPTERS, walked for every adapter on every architecture; poolings and tasks go round with them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from luthier.adapters import ADAPTERS, bridge
from luthier.adapters.freeze import frozen_blocks
from luthier.adapters.structure import plain, structure
from luthier.models import saved
from luthier.models.heads import TaskModel
from luthier.proofs import relative
from tiny import Made

POOLINGS, TASKS = ("mean", "cls", "last"), ("classify", "regress", "tag", "multilabel")
WAYS: dict[str, Any] = {"head": "head", "full": "full", "last-n": {"kind": "last-n", "n": 1}, "lora": "lora"}
ROWS = [0, 5, 11, 14]


def cells() -> list[tuple[str, str, str, str | None]]:
    """Every adapter on every architecture; each pooling and each task meets each adapter and each architecture."""
    found = []
    for one, adapt in enumerate(ADAPTERS):
        for two, name in enumerate(tiny.ARCHITECTURES):
            task = TASKS[(one + two) % len(TASKS)]
            found.append((adapt, name, task, None if task == "tag" else POOLINGS[(one + two // 2) % len(POOLINGS)]))
    return found


CELLS = cells()
IDS = ["-".join(filter(None, cell)) for cell in CELLS]


class Workshop:
    """Each cell is made and trained once, whoever asks first."""

    def __init__(self, folder: Path, tinies: dict[str, str]) -> None:
        self.folder, self.tinies = folder, tinies
        self.made: dict[tuple[str, str, str, str | None], Made] = {}
        self.saved: dict[tuple[str, str, str, str | None], Path] = {}

    def fresh(self, cell: tuple[str, str, str, str | None]) -> Made:
        adapt, name, task, pooling = cell
        return tiny.make(self.tinies[name], WAYS[adapt], task, self.folder / "rows", pooling)

    def trained(self, cell: tuple[str, str, str, str | None]) -> Made:
        if cell not in self.made:
            made = self.fresh(cell)
            tiny.train(made, 3, self.folder / "-".join(filter(None, cell)))
            self.made[cell] = made
        return self.made[cell]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tinies: dict[str, str]) -> Iterator[Workshop]:
    shop = Workshop(tmp_path_factory.mktemp("contract"), tinies)
    yield shop
    shop.made.clear()


def test_every_adapter_has_its_cells() -> None:
    assert set(WAYS) == set(ADAPTERS), "a new line of ADAPTERS needs its way here"
    for adapt in ADAPTERS:
        assert {cell[1] for cell in CELLS if cell[0] == adapt} == set(tiny.ARCHITECTURES)
        assert {cell[2] for cell in CELLS if cell[0] == adapt} == set(TASKS)


@torch.no_grad()
def features(model: TaskModel, made: Made) -> torch.Tensor:
    return model.eval().features(made.batch(ROWS))


@torch.no_grad()
def backbone_of(made: Made, folder: str) -> torch.Tensor:
    """What the base alone gives, read again by transformers itself."""
    import transformers

    base = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    model = copy.deepcopy(made.built.model)
    return features(TaskModel(base, model.head, model.pooling), made)


@pytest.mark.parametrize("cell", CELLS, ids=IDS)
def test_identity_at_initialisation(cell: Any, workshop: Workshop) -> None:
    made = workshop.fresh(cell)
    made.built.model.double()
    after = features(made.built.model, made)
    before = backbone_of(made, workshop.tinies[cell[1]])
    assert before.abs().max() > 0.1
    assert (relative(after, before) <= 1e-9) == ADAPTERS[cell[0]].identity


def belongs(adapt: str, made: Made, name: str) -> bool:
    """Whether this parameter should move, told from its name and not from requires_grad."""
    if name.startswith("head."):
        return True
    if adapt == "full":
        return True
    if adapt == "lora":
        return "lora_" in name
    if adapt == "last-n":
        parts = structure(made.built.model.backbone)
        top = f"{parts.blocks_name}.{len(parts.blocks) - 1}."
        return any(name.startswith(f"backbone.{path}") for path in (top, *parts.after))
    return False


@pytest.mark.parametrize("cell", CELLS, ids=IDS)
def test_only_its_own_parameters_move(cell: Any, workshop: Workshop) -> None:
    before = {name: p.clone() for name, p in workshop.fresh(cell).built.model.named_parameters()}
    made = workshop.trained(cell)
    moved, should = set(), set()
    for name, parameter in made.built.model.named_parameters():
        if not torch.equal(parameter, before[name]):
            moved.add(name)
        if belongs(cell[0], made, name):
            should.add(name)
    never = {name for name in should if no_gradient(name, cell[1])}
    assert should - never <= moved, f"still: {sorted(should - never - moved)}"
    assert moved <= should, f"moved: {sorted(moved - should)}"


def no_gradient(name: str, architecture: str) -> bool:
    """Where the mathematics gives no gradient: a key's bias is the same for every key, and softmax drops it."""
    return name.endswith((".key.bias", ".k_lin.bias", ".key.lora_B.default.bias"))


@pytest.mark.parametrize("cell", CELLS, ids=IDS)
def test_switched_off_is_the_base(cell: Any, workshop: Workshop) -> None:
    made = workshop.trained(cell)
    base = workshop.fresh((cell[0], cell[1], cell[2], cell[3])) if cell[0] != "lora" else None
    on = features(made.built.model, made)
    with bridge.switched_off(made.built.model.backbone):
        off = features(made.built.model, made)
    if base is None:
        base = workshop.fresh(("head", *cell[1:]))
    before = features(base.built.model, made)
    assert torch.equal(off, before) == ADAPTERS[cell[0]].off_is_base
    if cell[0] == "lora":
        assert relative(on, before) > 1e-4, "the adapter does something"


@pytest.mark.parametrize("cell", CELLS, ids=IDS)
def test_merged_is_attached(cell: Any, workshop: Workshop) -> None:
    assert ADAPTERS[cell[0]].merges
    made = workshop.trained(cell)
    for kind, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model = copy.deepcopy(made.built.model).to(kind)
        attached = features(model, made)
        model.backbone = bridge.merged(model.backbone)
        assert not bridge.is_wrapped(model.backbone)
        assert relative(features(model, made), attached) <= bound


CHILD = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
from luthier.models import saved
for folder in map(Path, json.loads(sys.argv[1])):
    model, told, base = saved.read(folder)
    with torch.no_grad():
        save_file({"logits": model(load_file(folder / "batch.st"))}, folder / "again.st")
"""


def test_reloaded_in_a_fresh_process(workshop: Workshop) -> None:
    folders, memory = [], []
    for cell in CELLS:
        made = workshop.trained(cell)
        model = copy.deepcopy(made.built.model).eval()
        model.head.fold()
        folder = workshop.folder / "saved" / "-".join(filter(None, cell))
        saved.save(model, made.built.about, made.built.base.tokenizer, folder)
        batch = made.batch(ROWS)
        with torch.no_grad():
            memory.append(model(batch))
        save_file(batch, folder / "batch.st")
        folders.append(folder)
    told = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([str(path) for path in folders])], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr[-3000:]
    for cell, folder, logits in zip(CELLS, folders, memory, strict=True):
        again = load_file(folder / "again.st")["logits"]
        assert logits.shape[-1] == len(workshop.trained(cell).schema.labels or [0])
        assert relative(logits, again) <= 1e-6, cell


@pytest.mark.parametrize("adapt", list(ADAPTERS))
@pytest.mark.parametrize("which", ["stories", "pocket", "minilm"])
def test_real_models(adapt: str, which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = which if which == "pocket" else request.getfixturevalue(which)
    made = tiny.make(folder, adapt, "classify", tmp_path / "rows")
    before = features(made.built.model, made)
    base = tiny.make(folder, "head", "classify", tmp_path / "rows")
    assert relative(before, features(base.built.model, made)) <= 1e-6
    tiny.train(made, 2, tmp_path / "run", lr=1e-3)
    after = features(made.built.model, made)
    assert (relative(after, before) > 1e-6) == (adapt != "head")
    with bridge.switched_off(made.built.model.backbone):
        assert torch.equal(features(made.built.model, made), before) == ADAPTERS[adapt].off_is_base
    attached = after
    model = copy.deepcopy(made.built.model)
    model.backbone = bridge.merged(model.backbone)
    assert relative(features(model, made), attached) <= 1e-5
    saved.save(made.built.model, made.built.about, made.built.base.tokenizer, tmp_path / "model")
    again, told, _ = saved.read(tmp_path / "model")
    with torch.no_grad():
        batch = made.batch(ROWS)
        assert relative(again(batch), made.built.model.eval()(batch)) <= 1e-6
    assert told.adapt == adapt


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_structure_is_found(name: str, tinies: dict[str, str], tmp_path: Path) -> None:
    made = tiny.make(tinies[name], {"kind": "last-n", "n": 2}, "classify", tmp_path)
    backbone = made.built.model.backbone
    parts = structure(backbone)
    assert len(parts.blocks) == tiny.DEPTH
    assert frozen_blocks(backbone) == tiny.DEPTH - 2
    embeds = [plain(backbone).get_submodule(path) for path in parts.embeddings]
    sizes = {tuple(p.shape) for module in embeds for p in module.parameters()}
    assert (tiny.VOCABULARY, tiny.WIDTH) in sizes
    assert bool(parts.after) == (name in ("llama", "qwen3", "gpt2"))  # the others normalise inside their blocks


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_lora_stands_beside_every_linear_layer(name: str, tinies: dict[str, str], tmp_path: Path) -> None:
    made = tiny.make(tinies[name], "lora", "classify", tmp_path)
    wrapped = [n for n, m in made.built.model.backbone.named_modules() if hasattr(m, "lora_A")]
    each = {"llama": 7, "qwen3": 7, "gpt2": 4, "bert": 6, "roberta": 6, "distilbert": 6}[name]
    assert len(wrapped) == each * tiny.DEPTH


@pytest.mark.parametrize("adapt", list(ADAPTERS))
def test_a_bare_name_learns(adapt: str, easy: Path, tmp_path: Path) -> None:
    """Nothing but a name: the table's own rate and epochs lift accuracy far above the majority's third."""
    from luthier.run import run

    result = run({"model": "pocket", "adapt": adapt, "data": {"train": str(easy)}}, runs=tmp_path, quiet=True)
    low, _ = result.record["intervals"]["test"]["accuracy"]
    assert low > result.record["baselines"]["majority"]["accuracy"] + 0.1, result.metrics
    assert all(line["passed"] for line in result.record["proofs"])
    losses = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    train = np.array([line["train/loss"] for line in losses if "train/loss" in line])
    assert train[-3:].mean() < 0.5 * train[:3].mean()
