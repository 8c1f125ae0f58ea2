"""The contract of ADAPTERS: every adapter on every architecture, for labels and for text.

The ordinary suite walks a covering part (each adapter meets each family of models once, labels and text in turn); the
whole product is marked slow and runs in `make test-all`.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from luthier.adapters import ADAPTERS, bridge, virtual_tokens
from luthier.adapters.freeze import frozen_blocks, train_mode
from luthier.adapters.structure import plain, structure
from luthier.data.bundles import lay, lay_plain
from luthier.errors import UserError
from luthier.models import load, saved, spoken
from luthier.models.heads import TaskModel
from luthier.models.language import LanguageModel
from luthier.models.saved import About, weights_hash
from luthier.proofs import relative
from luthier.recipe import read

POOLINGS, LABELS = ("mean", "cls", "last"), ("classify", "regress", "tag", "multilabel")
WAYS: dict[str, Any] = {kind: kind for kind in ADAPTERS} | {
    "last-n": {"kind": "last-n", "n": 1},
    "lora": {"kind": "lora", "rank": 4},
    "rslora": {"kind": "rslora", "rank": 4},
    "dora": {"kind": "dora", "rank": 4},
    "pissa": {"kind": "pissa", "rank": 4},
    "prefix": {"kind": "prefix", "tokens": 5},
    "prompt": {"kind": "prompt", "tokens": 5},
    "p-tuning": {"kind": "p-tuning", "tokens": 5},
    "bottleneck": {"kind": "bottleneck", "width": 4},
    "peft": {"kind": "peft", "type": "VERA", "r": 8},
}
MODELS = (*tiny.DECODERS, *tiny.ENCODERS, *tiny.SEQ2SEQ)
WRITERS = (*tiny.DECODERS, *tiny.SEQ2SEQ)
COSTLY = ("dora", "pissa", "rslora", "p-tuning", "peft")  # in the ordinary suite, on every second model
TWIN = "qwen3-sliding"  # qwen3 but for its mask: only in the whole product
NO_BIASES = {"llama", "qwen3", "qwen3-sliding", "gemma3", "mistral", "granite", "t5"}
ROWS = [0, 5, 11, 14]


class Cell(NamedTuple):
    """One adapter on one model."""

    adapt: str
    name: str
    task: str
    pooling: str | None

    @property
    def refused(self) -> bool:
        """Told from the names alone, and not by asking the code."""
        if self.adapt == "bitfit":
            return self.name in NO_BIASES
        return self.adapt == "prefix" and (self.name == "distilbert" or (self.name == "t5" and self.task != "generate"))

    def __str__(self) -> str:
        return "-".join(filter(None, self))


def cells() -> list[Any]:
    """Every adapter on every model, with labels (tasks and poolings go round) and, where it writes, with text."""
    found = []
    for one, adapt in enumerate(ADAPTERS):
        for two, name in enumerate(MODELS):
            task = LABELS[(one + two) % len(LABELS)]
            poolings = POOLINGS if name not in tiny.DECODERS else ("mean", "last")  # its first token: tests/test_heads.py
            cell = Cell(adapt, name, task, None if task == "tag" else poolings[(one + two // 2) % len(poolings)])
            text = Cell(adapt, name, "generate", None)
            writes, left = name in WRITERS, name == TWIN or (adapt in COSTLY and (one + two) % 2 == 0)
            turn = writes and (one + two) % 3 != 0  # which of the two the ordinary suite takes
            found.append(pytest.param(cell, id=str(cell), marks=[pytest.mark.slow] if turn or left else []))
            if writes:
                found.append(pytest.param(text, id=str(text), marks=[] if turn and not left else [pytest.mark.slow]))
    return found


CELLS = cells()
TAKEN = [cell for cell in CELLS if not cell.values[0].refused]


@dataclass
class Learner:
    """A model that can learn, whatever it ends in."""

    model: Any
    batch: dict[str, torch.Tensor]
    about: About
    tokenizer: Any
    made: tiny.Made | None = None
    before: dict[str, torch.Tensor] | None = None  # parameters before the first step

    def out(self, model: Any = None) -> torch.Tensor:
        """What lies behind the adapter: features of rows, or log-probabilities of targets."""
        model = (model or self.model).eval()
        with torch.no_grad():
            found: torch.Tensor = model.features(self.batch) if self.made is not None else model.logprobs(self.batch)
        return found

    def loss(self, model: Any) -> torch.Tensor:
        """Something to learn."""
        if self.made is None:
            found: torch.Tensor = model.nll(self.batch)
            return found
        states = model.features(self.batch)
        return (states * torch.linspace(-1, 1, states.shape[-1], dtype=states.dtype)).square().mean()

    def plain_inputs(self) -> dict[str, torch.Tensor]:
        """What transformers' own forward takes, padded on the right."""
        return {
            key: self.batch[key] for key in ("input_ids", "attention_mask", "decoder_input_ids") if key in self.batch
        }

    def plain_out(self, backbone: Any) -> torch.Tensor:
        """States or logits of the wrapped or plain model."""
        with torch.no_grad():
            out = backbone.eval()(**self.plain_inputs())
        found: torch.Tensor = out.last_hidden_state if self.made is not None else out.logits
        return found[:, virtual_tokens(backbone) :]


def items(branches: int = 1) -> list[Any]:
    """Rows longer than any window, of different lengths."""
    found = []
    for number, (prompt, written) in enumerate([(11, 4), (7, 6), (9, 3)]):
        generator = np.random.default_rng(number)
        ids = generator.integers(3, 300, prompt + branches * written)
        branch = np.concatenate([np.zeros(prompt, int), np.repeat(np.arange(1, branches + 1), written)])
        found.append((ids, branch, (branch > 0).astype(int)))
    return found


class Workshop:
    """Each model is built once, each cell made and trained once, whoever asks first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[Cell, Learner] = {}

    def base(self, cell: Cell) -> str:
        """The folder of the pretrained model."""
        folder = self.folder / ("writes" if cell.task == "generate" else "reads") / cell.name
        if not folder.exists():
            (tiny.build_causal if cell.task == "generate" else tiny.build_model)(cell.name, folder)
        return str(folder)

    def fresh(self, cell: Cell) -> Learner:
        """Attached, not trained."""
        if cell.task == "generate":
            return self._writer(cell)
        made = tiny.make(self.base(cell), WAYS[cell.adapt], cell.task, self.folder / "rows", cell.pooling)
        return Learner(made.built.model, made.batch(ROWS), made.built.about, made.built.base.tokenizer, made)

    def _writer(self, cell: Cell) -> Learner:
        options = read({"model": "pocket", "adapt": WAYS[cell.adapt], "data": {"train": "memory"}}).adapt
        base = load.find(self.base(cell))
        model = load.causal(base)
        about = About(
            base.path, weights_hash(model), None, cell.adapt, ADAPTERS[cell.adapt].stores, "generate", (), "none", -1, None,
            64, "sdpa", "fp32", "language", {},
        )  # fmt: skip
        model = ADAPTERS[cell.adapt].attach(model, options, 0, "generate")
        batch = lay(items(), 0, seq2seq=0 if base.encoder_decoder else None)
        return Learner(LanguageModel(model), batch, about, base.tokenizer)

    def trained(self, cell: Cell) -> Learner:
        """After three steps."""
        if cell not in self.made:
            found = self.fresh(cell)
            found.before = {name: p.detach().clone() for name, p in found.model.named_parameters()}
            if found.made is not None:
                tiny.train(found.made, 3, self.folder / "runs" / str(cell))
            else:
                learns = [p for p in found.model.parameters() if p.requires_grad]
                optimizer = torch.optim.AdamW(learns, lr=1e-2, weight_decay=0.0)
                train_mode(found.model)
                for _ in range(3):
                    found.loss(found.model).backward()
                    optimizer.step()
                    optimizer.zero_grad()
            self.made[cell] = found
        return self.made[cell]

    def untouched(self, cell: Cell) -> Any:
        """What transformers itself reads from the base's folder, in the learner's clothes, with fp64 or fp32 weights."""
        found = self.trained(cell)
        base = load.find(self.base(cell))
        model = load.causal(base) if cell.task == "generate" else load.backbone(base)
        if found.made is None:
            return LanguageModel(model)
        return TaskModel(model, copy.deepcopy(found.model.head), found.model.pooling)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    shop = Workshop(tmp_path_factory.mktemp("contract"))
    yield shop
    shop.made.clear()


def test_every_adapter_has_its_cells() -> None:
    assert set(WAYS) == set(ADAPTERS), "a new line of ADAPTERS needs its way here"
    ordinary = [cell.values[0] for cell in CELLS if not cell.marks]
    for adapt in ADAPTERS:
        mine = [cell for cell in ordinary if cell.adapt == adapt]
        whole = {cell.values[0].name for cell in CELLS if cell.values[0].adapt == adapt}
        assert whole == set(MODELS)
        assert {cell.name for cell in mine} == set(MODELS) - {TWIN} or adapt in COSTLY
        assert {cell.task == "generate" for cell in mine} == {True, False}


REFUSED = [cell for cell in CELLS if cell.values[0].refused]


@pytest.mark.parametrize("cell", REFUSED)
def test_what_can_not_be_is_refused_with_a_neighbour(cell: Cell, workshop: Workshop) -> None:
    with pytest.raises((UserError, ValueError), match="lora") as told:
        workshop.fresh(cell)
    assert "no biases" in str(told.value) or "takes no keys and values" in str(told.value)


@pytest.mark.parametrize("cell", TAKEN)
def test_identity_at_initialisation(cell: Cell, workshop: Workshop) -> None:
    """In fp64, attached to an fp64 model: dora's magnitudes are norms in the weights' own precision."""
    options = read({"model": "pocket", "adapt": WAYS[cell.adapt], "data": {"train": "memory"}}).adapt
    found, model = workshop.trained(cell), workshop.untouched(cell).double()
    before = found.out(model)
    task = "generate" if cell.task == "generate" else "labels"
    model.backbone = ADAPTERS[cell.adapt].attach(model.backbone, options, 0, task).double()
    after = found.out(model)
    assert before.abs().max() > 0.1
    if cell.adapt != "peft":  # of which nothing is promised
        assert (relative(after, before) <= 1e-9) == ADAPTERS[cell.adapt].identity


def belongs(adapt: str, found: Learner, name: str) -> bool:
    """Whether this parameter should move, told from its name and not from requires_grad."""
    if name.startswith("head.") or adapt in ("full", "gradual", "lp-ft"):  # of lp-ft the second stage; opening: test_transfer.py
        return True
    if adapt == "last-n":
        parts = structure(found.model.backbone)
        top = f"{parts.blocks_name}.{len(parts.blocks) - 1}."
        return any(name.startswith(f"backbone.{path}") for path in (top, *parts.after))
    if adapt == "pissa":
        return "lora_" in name and ".default." in name
    if adapt == "bitfit":
        return name.endswith("bias")
    if adapt == "head":
        return name == "backbone.lm_head.weight"
    words = {
        "norm": "ln_tuning_layers.", "ia3": "ia3_l.", "prefix": "prompt_encoder.", "prompt": "prompt_encoder.",
        "p-tuning": "prompt_encoder.", "bottleneck": ".bottleneck.", "peft": "vera_lambda",
    }  # fmt: skip
    return words.get(adapt, "lora_") in name


@pytest.mark.parametrize("cell", TAKEN)
def test_only_its_own_parameters_move(cell: Cell, workshop: Workshop) -> None:
    found = workshop.trained(cell)
    moved, should, before = set(), set(), found.before or {}
    for name, parameter in found.model.named_parameters():
        if not torch.equal(parameter, before[name]):
            moved.add(name)
        if belongs(cell.adapt, found, name):
            should.add(name)
    never = {name for name in should if no_gradient(name)}
    assert should - never <= moved, f"still: {sorted(should - never - moved)}"
    assert moved <= should, f"moved: {sorted(moved - should)}"
    assert should == {name for name, p in found.model.named_parameters() if p.requires_grad}


def no_gradient(name: str) -> bool:
    """Where the mathematics gives no gradient: a key's bias is the same for every key, and softmax drops it."""
    return name.endswith((".key.bias", ".k_lin.bias", ".key.lora_B.default.bias"))


@pytest.mark.parametrize("cell", TAKEN)
def test_switched_off_is_the_base(cell: Cell, workshop: Workshop) -> None:
    found = workshop.trained(cell)
    learns = [p.requires_grad for p in found.model.parameters()]
    on = found.out()
    with bridge.switched_off(found.model.backbone):
        assert virtual_tokens(found.model.backbone) == 0
        off = found.out()
    before = found.out(workshop.untouched(cell))
    generates_head = cell.adapt == "head" and cell.task == "generate"  # an output layer is a model's, not an adapter
    if cell.adapt == "peft" or not generates_head:
        assert torch.equal(off, before) == (ADAPTERS[cell.adapt].off_is_base or cell.adapt == "peft")
    if bridge.is_wrapped(found.model.backbone):
        assert relative(on, before) > 1e-5, "the adapter does something"
        assert torch.equal(found.out(), on), "and does it again"
    assert [p.requires_grad for p in found.model.parameters()] == learns


@pytest.mark.parametrize("cell", TAKEN)
def test_merged_is_attached(cell: Cell, workshop: Workshop) -> None:
    found = workshop.trained(cell)
    if not ADAPTERS[cell.adapt].merges:
        with pytest.raises(ValueError, match="lora"):
            bridge.merged(found.model.backbone)
        return
    for kind, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model = copy.deepcopy(found.model).to(kind)
        attached = found.out(model)
        model.backbone = bridge.merged(model.backbone)
        assert not bridge.is_wrapped(model.backbone)
        assert relative(found.out(model), attached) <= bound


CHILD = """
import json, sys, warnings
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
warnings.simplefilter("ignore")
import peft, transformers
from luthier.models import saved, spoken

def plain(folder, told, batch):
    writes = told["family"] == "language"
    kind = json.loads((Path(told["base"]) / "config.json").read_text())["model_type"]
    auto = transformers.AutoModelForCausalLM if writes else transformers.AutoModel
    if kind == "t5":
        auto = transformers.AutoModelForSeq2SeqLM if writes else transformers.T5EncoderModel
    model = auto.from_pretrained(told["base"])
    if (folder / "adapter_config.json").exists():
        model = peft.PeftModel.from_pretrained(model, str(folder))
    else:
        names = model.load_state_dict(load_file(folder / "adapter.safetensors"), strict=False)
        assert not names.unexpected_keys
    out = model.eval()(**{k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "decoder_input_ids")})
    return out.logits if writes else out.last_hidden_state

for folder in map(Path, json.loads(sys.argv[1])):
    told, batch = json.loads((folder / "luthier.json").read_text()), load_file(folder / "batch.st")
    model, _, _ = (spoken if told["family"] == "language" else saved).read(folder)
    with torch.no_grad():
        found = {"ours": model(batch)}
        if told["stores"] == "adapter" and told["adapt"] != "bottleneck":
            found["plain"] = plain(folder, told, batch).contiguous()
    save_file(found, folder / "again.st")
"""


@pytest.mark.parametrize("part", ["covering", pytest.param("whole", marks=pytest.mark.slow)])
def test_reloaded_in_a_fresh_process(part: str, workshop: Workshop) -> None:
    """By us with the head; and the adapter alone in plain peft (or plain transformers) on the plain model."""
    chosen: list[Cell] = [cell.values[0] for cell in TAKEN if part == "whole" or not cell.marks]
    folders = {}
    for cell in chosen:
        found = workshop.trained(cell)
        model = copy.deepcopy(found.model).eval()
        folder = workshop.folder / "saved" / str(cell)
        if found.made is not None:
            model.head.fold()
            saved.save(model, found.about, found.tokenizer, folder)
        else:
            spoken.save(model, found.about, found.tokenizer, folder)
        save_file(found.batch, folder / "batch.st")
        with torch.no_grad():
            folders[cell] = folder, model(found.batch), found.plain_out(found.model.backbone)
    paths = json.dumps([str(folder) for folder, _, _ in folders.values()])
    told = subprocess.run([sys.executable, "-c", CHILD, paths], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-3000:]
    for cell, (folder, memory, states) in folders.items():
        again = load_file(folder / "again.st")
        bound = 3e-5 if cell.adapt == "pissa" else 1e-6  # saved as one product of twice the rank: another order of sums
        assert relative(memory, again["ours"]) <= bound, cell
        if "plain" in again:
            real = workshop.trained(cell).batch["attention_mask"].bool()
            there = again["plain"][:, again["plain"].shape[1] - states.shape[1] :]
            real = real if there.shape[:2] == real.shape else torch.ones(there.shape[:2], dtype=torch.bool)
            assert relative(states[real], there[real]) <= 1e-5, cell


def gradients(found: Learner, model: Any) -> dict[str, torch.Tensor]:
    """Of what learns, with the same dropout."""
    model.train()
    torch.manual_seed(0)
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("head.")}
    values = torch.autograd.grad(found.loss(model), list(learns.values()), allow_unused=True)
    return {name: value for name, value in zip(learns, values, strict=True) if value is not None}


@pytest.mark.parametrize("cell", TAKEN)
def test_gradient_checkpointing_changes_nothing(cell: Cell, workshop: Workshop) -> None:
    found = workshop.trained(cell)
    if not ADAPTERS[cell.adapt].checkpointing or (cell.adapt == "head" and cell.task != "generate"):
        return
    model = copy.deepcopy(found.model).double()
    before = gradients(found, model)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*gradient_checkpointing_enable.*", category=FutureWarning
        )  # renamed
        plain(model.backbone).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    after = gradients(found, model)
    assert before.keys() == after.keys()
    assert before
    for name, value in before.items():
        assert torch.allclose(value, after[name], rtol=1e-9, atol=1e-12), name


BUNDLED = [
    pytest.param(adapt, name, marks=[] if name == ("llama", "gpt2", "gemma3")[place % 3] else [pytest.mark.slow])
    for place, adapt in enumerate(ADAPTERS)
    for name in tiny.DECODERS
    if ADAPTERS[adapt].bundles and not Cell(adapt, name, "generate", None).refused
]


@pytest.mark.parametrize(("adapt", "name"), BUNDLED)
def test_bundles_and_packs_are_separate_rows(adapt: str, name: str, workshop: Workshop) -> None:
    """One prompt with two branches, and rows back to back, give the loss and the gradients of separate rows."""
    found = workshop.trained(Cell(adapt, name, "generate", None))
    model = copy.deepcopy(found.model).double()
    two = items(branches=2)
    for batch, rows in ((lay(two, 0), lay_plain(two, 0)), (lay(items(), 0, packed=True), lay_plain(items(), 0))):
        bundled = gradients(Learner(model, batch, found.about, None), model.eval())
        apart = gradients(Learner(model, rows, found.about, None), model.eval())
        with torch.no_grad():
            assert relative(model.eval().logprobs(batch), model.logprobs(rows)) <= 1e-9
        for key, value in apart.items():
            assert relative(bundled[key], value) <= 1e-6, key  # the norms count in fp32 whatever the model's precision


@pytest.mark.parametrize("adapt", [kind for kind, row in ADAPTERS.items() if not row.bundles and kind != "peft"])
def test_learned_tokens_take_no_bundles(adapt: str, workshop: Workshop) -> None:
    found = workshop.trained(Cell(adapt, "llama", "generate", None))
    ids = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="plain rows"):
        found.model.backbone(input_ids=ids, attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool))


def pairs() -> list[Any]:
    """Every adapter meets one real model in the ordinary suite, and all of them in the whole one."""
    real = ("stories", "pocket", "minilm")
    return [
        pytest.param(adapt, which, marks=[] if which == real[place % 3] else [pytest.mark.slow])
        for place, adapt in enumerate(ADAPTERS)
        for which in real
    ]


@pytest.mark.parametrize(("adapt", "which"), pairs())
def test_real_models(adapt: str, which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = which if which == "pocket" else request.getfixturevalue(which)
    if adapt == "bitfit" and which != "minilm":
        with pytest.raises(UserError, match="no biases"):
            tiny.make(folder, "bitfit", "classify", tmp_path / "rows")
        return
    made = tiny.make(folder, WAYS[adapt], "classify", tmp_path / "rows")
    found = Learner(made.built.model, made.batch(ROWS), made.built.about, made.built.base.tokenizer, made)
    before = found.out()
    base = found.out(tiny.make(folder, "head", "classify", tmp_path / "rows").built.model)
    row = ADAPTERS[adapt]
    assert (relative(before, base) <= 1e-6) == row.identity or adapt == "peft"
    tiny.train(made, 2, tmp_path / "run", lr=1e-3)
    after = found.out()
    assert (relative(after, before) > 1e-6) == (adapt != "head")
    with bridge.switched_off(made.built.model.backbone):
        assert torch.equal(found.out(), base) == row.off_is_base or adapt == "peft"
    saved.save(made.built.model, made.built.about, made.built.base.tokenizer, tmp_path / "model")
    again, told, _ = saved.read(tmp_path / "model")
    with torch.no_grad():
        assert relative(again(found.batch), made.built.model.eval()(found.batch)) <= 1e-6
    assert told.adapt == adapt
    if row.merges:
        made.built.model.backbone = bridge.merged(made.built.model.backbone)
        assert relative(found.out(), after) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_structure_is_found(name: str, workshop: Workshop) -> None:
    backbone = workshop.fresh(Cell("last-n", name, "classify", "mean")).model.backbone
    parts = structure(backbone)
    assert len(parts.blocks) == tiny.DEPTH
    assert parts.output is None
    assert frozen_blocks(backbone) == tiny.DEPTH - 1
    embeds = [plain(backbone).get_submodule(path) for path in parts.embeddings]
    sizes = {tuple(p.shape) for module in embeds for p in module.parameters()}
    assert (tiny.VOCABULARY, tiny.WIDTH) in sizes
    assert bool(parts.after) == (name not in tiny.ENCODERS)  # the others normalise inside their blocks


@pytest.mark.parametrize("name", WRITERS)
def test_structure_of_a_writer_is_found(name: str, workshop: Workshop) -> None:
    backbone = workshop.fresh(Cell("last-n", name, "generate", None)).model.backbone
    parts = structure(backbone)
    assert len(parts.blocks) == tiny.DEPTH
    assert parts.output == "lm_head"
    assert len(parts.after) == 1
    assert frozen_blocks(backbone) == (0 if name == "t5" else tiny.DEPTH - 1)  # T5's first block serves the others
    learns = {path for path, p in backbone.named_parameters() if p.requires_grad}
    assert learns
    assert all(path.startswith((f"{parts.blocks_name}.{tiny.DEPTH - 1}.", parts.after[0])) for path in learns)


BARE = [
    pytest.param(adapt, marks=[] if adapt == "head" else [pytest.mark.slow])
    for adapt in ADAPTERS
    if adapt != "bitfit"  # pocket has no biases
]


@pytest.mark.parametrize("adapt", BARE)
def test_a_bare_name_learns(adapt: str, easy: Path, tmp_path: Path) -> None:
    """Nothing but a name: the table's own rate and epochs lift accuracy far above the majority's third."""
    from luthier.run import run

    way = {"kind": "peft", "type": "VERA"} if adapt == "peft" else adapt
    result = run({"model": "pocket", "adapt": way, "data": {"train": str(easy)}}, runs=tmp_path, quiet=True)
    low, _ = result.record["intervals"]["test"]["accuracy"]
    assert low > result.record["baselines"]["majority"]["accuracy"] + 0.1, result.metrics
    stages = [result.folder / one["name"] for one in result.record.get("stages", [])] or [result.folder]  # lp-ft is two runs
    for folder in stages:
        assert all(line["passed"] for line in json.loads((folder / "run.json").read_text())["proofs"]), folder
    losses = [json.loads(line) for folder in stages for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = np.array([line["train/loss"] for line in losses if "train/loss" in line])
    assert train[-3:].mean() < 0.5 * train[:3].mean()
