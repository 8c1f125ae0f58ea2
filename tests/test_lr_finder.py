"""The learning-rate finder: its suggestion lies where the loss falls, below divergence, and is never set."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import tiny
from luthier.adapters import ADAPTERS
from luthier.cli import main
from luthier.engine.cache import Cache
from luthier.engine.stop import Stop
from luthier.errors import UserError
from luthier.recipe import Recipe, read
from luthier.search.ranges import RangeTest, find, range_test, read_off, smooth
from luthier.search.trial import Bench


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.build_causal("llama", tmp_path_factory.mktemp("ranges") / "llama")


def recipe_of(model: str, data: Path, adapt: Any) -> Recipe:
    return read({"model": model, "adapt": adapt, "data": {"train": str(data)}, "train": {"batch_size": 16, "precision": "fp32"}})


def found_by(recipe: Recipe, tmp_path: Path, **options: Any) -> RangeTest:
    return range_test(recipe, Bench(Stop(), 0, 1, Cache(tmp_path / "cache")), **options)


def test_smoothing_by_hand() -> None:
    assert smooth([1.0, 3.0]) == [pytest.approx(1.0), pytest.approx((0.9 * 0.1 * 1 + 0.1 * 3) / (0.9 * 0.1 + 0.1))]
    assert smooth([2.0] * 5) == [pytest.approx(2.0)] * 5


def bowl(rates: list[float]) -> list[tuple[float, float]]:
    """Flat, then falling around 0.01, lowest at 0.1, climbing from there."""
    return [(rate, 2 - 1.5 / (1 + (0.01 / rate) ** 2) + (rate / 0.3) ** 2) for rate in rates]


def test_the_suggestion_lies_where_the_loss_falls_and_below_divergence() -> None:
    rates = [10 ** (-5 + 6 * at / 99) for at in range(100)]
    found = read_off(bowl(rates), 1e-3)
    assert found.suggested is not None
    assert found.diverged is not None
    assert 0.005 < found.suggested < found.lowest < found.diverged
    assert "Nothing was set" in found.sentence()


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    found = read_off([(10.0**-at, 1.0 + 0.001 * (at % 2)) for at in range(20)], 1e-3)
    assert found.suggested is None
    assert "no rate is suggested" in found.sentence()
    with pytest.raises(UserError, match="no number within three steps"):
        read_off([(1.0, math.inf)], 1.0)


@pytest.mark.parametrize("adapt", ["full", {"kind": "lora", "rank": 4}, "head"])
def test_a_real_model_under_any_adapt(llama: str, easy: Path, tmp_path: Path, adapt: Any) -> None:
    recipe = recipe_of(llama, easy, adapt)
    found = found_by(recipe, tmp_path, steps=40)
    rates = [rate for rate, _ in found.points]
    assert rates == sorted(rates)
    assert found.suggested is not None
    assert found.suggested < found.lowest
    if found.diverged is not None:
        assert found.suggested < found.diverged
    assert recipe.train.lr is None  # it only suggests


def test_of_a_method_that_writes(llama: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"the {word} is", "completion": f"very {word} today"} for word in ("rain", "snow", "wind", "sun", "cloud")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    data = {"train": str(tmp_path / "rows.jsonl"), "hold_out": {"eval": 0.3, "test": 0.0}}
    recipe = read({"model": llama, "adapt": "lora", "method": "sft", "data": data})
    found = found_by(recipe, tmp_path, steps=30)
    assert found.suggested is None or found.suggested < found.lowest
    assert len(found.points) <= 30


JUDGED: dict[str, Any] = {
    "reward": {"kind": "reward"},
    "preference": {"kind": "preference", "loss": "dpo"},
    "policy": {"kind": "ranking", "learner": "policy"},
    "comparator": {"kind": "ranking", "learner": "judge"},
}


@pytest.mark.parametrize("way", JUDGED)
def test_of_a_method_that_learns_from_judgements(way: str, llama: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": row["text"], "completions": [f" {row['label']} it is", f" {number % 5}"], "ranks": [1, 2]}
        for number, row in enumerate(tiny.easy_rows(40, 3))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "rows.jsonl")}
    train = {"batch_size": 8, "max_length": 64, "precision": "fp32"}
    recipe = read({"model": llama, "adapt": "lora", "method": JUDGED[way], "data": data, "train": train})
    found = found_by(recipe, tmp_path, steps=12)
    assert len(found.points) > 3
    assert all(math.isfinite(loss) for _, loss in found.points)


def test_rates_of_head_and_backbone_keep_their_ratio(llama: str, easy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.engine.loop import Loop

    seen: list[list[float]] = []
    run = Loop.run

    def watched(self: Loop) -> Any:
        done = run(self)
        seen.append(sorted({group["peak"] for group in self.optimizer.param_groups}))
        return done

    monkeypatch.setattr(Loop, "run", watched)
    found = found_by(recipe_of(llama, easy, "full"), tmp_path, steps=10, reach=10.0)
    assert seen[0][1] / seen[0][0] == pytest.approx(ADAPTERS["full"].head_lr / found.default)


def test_the_page_has_the_picture(llama: str, easy: Path, tmp_path: Path) -> None:
    found, page = find(recipe_of(llama, easy, "head"), runs=tmp_path, name="lr")
    text = page.read_text(encoding="utf-8")
    assert "learning rate" in text
    assert "diverges" in text or found.diverged is None
    assert json.loads((tmp_path / "lr/range.json").read_text())["suggested"] == found.suggested
    assert sorted(path.name for path in (tmp_path / "lr").iterdir()) == ["range.json", "report.html"]


def test_by_the_command_line(llama: str, easy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"model: {llama}\nadapt: head\ndata: {{train: {easy}}}\n")
    before = file.read_text()
    with pytest.raises(SystemExit) as ended:
        main(["search", str(file), "--lr", "--runs", str(tmp_path / "runs")])
    assert ended.value.code == 0
    assert "learning rate" in capsys.readouterr().out
    assert file.read_text() == before
