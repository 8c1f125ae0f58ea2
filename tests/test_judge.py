"""`evaluate` and `predict`: base against tuned, and new rows in, predictions out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from luthier import judge
from luthier.errors import UserError
from luthier.run import run

GOOD = ["lovely", "great", "happy", "kind", "warm", "bright"]
BAD = ["awful", "sad", "cold", "rude", "dark", "broken"]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def messages(count: int, offset: int = 0) -> list[dict[str, str]]:
    rows = []
    for number in range(offset, offset + count):
        words, label = (GOOD, "good") if number % 2 else (BAD, "bad")
        rows.append({"text": f"a {words[number % 6]} day number {number}, very {words[(number // 2) % 6]}", "label": label})
    return rows


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    data = write(folder / "train.csv", messages(60))
    recipe = {"model": "pocket", "adapt": "lora", "data": {"train": str(data)}, "train": {"epochs": 4}}
    return run(recipe, runs=folder / "runs", name="one", quiet=True).folder


def test_base_against_tuned_on_the_users_own_set(tuned: Path, tmp_path: Path) -> None:
    own = write(tmp_path / "own.csv", messages(40, offset=1000))
    (tmp_path / "mine.py").write_text("def share(targets, predictions):\n    return float((targets == predictions).mean())\n")
    found = judge.evaluate(tuned, str(own), [f"{tmp_path / 'mine.py'}:share"], quiet=True)
    assert found["rows"] == 40
    assert set(found["metrics"]) == {"majority", "bag-of-words", "base", "tuned"}
    accuracy = found["metrics"]["tuned"]["accuracy"]
    assert accuracy > found["metrics"]["majority"]["accuracy"] + 0.2
    mine = next(value for name, value in found["metrics"]["tuned"].items() if "share" in name)
    assert mine == pytest.approx(accuracy)
    gain, low, high = found["difference"]["accuracy"]
    assert low <= gain <= high
    assert gain == pytest.approx(accuracy - found["metrics"]["base"]["accuracy"])
    assert json.loads((tuned / "evaluations.jsonl").read_text().splitlines()[-1])["rows"] == 40
    assert "tuned minus base" in judge.table(found)


def test_predictions_of_a_list_and_of_files_agree(tuned: Path, tmp_path: Path) -> None:
    texts = [row["text"] for row in messages(6, offset=500)]
    said = judge.predict(tuned, texts, quiet=True)
    assert [line["text"] for line in said] == texts
    assert {line["prediction"] for line in said} == {"good", "bad"}
    assert all(0.5 <= line["confidence"] <= 1 for line in said)
    file = write(tmp_path / "new.csv", [{"text": text} for text in texts])
    judge.predict(tuned, str(file), tmp_path / "out.jsonl", quiet=True)
    judge.predict(tuned, str(file), tmp_path / "out.csv", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    cells = list(csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()))
    assert [line["prediction"] for line in lines] == [line["prediction"] for line in said]
    assert [cell["prediction"] for cell in cells] == [line["prediction"] for line in said]
    assert [line["row"] for line in lines] == [2, 3, 4, 5, 6, 7]


def test_every_task_predicts(tmp_path: Path) -> None:
    rows = messages(40)
    sets = {
        "regress": [{"text": row["text"], "score": 10.0 if row["label"] == "good" else -10.0} for row in rows],
        "multilabel": [{"text": row["text"], "label": [row["label"], "day"]} for row in rows],
        "tag": [{"tokens": row["text"].split(), "tags": ["B-X" if w in GOOD else "O" for w in row["text"].split()]} for row in rows],
    }
    for task, made in sets.items():
        file = tmp_path / f"{task}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in made))
        folder = run(
            {"model": "pocket", "adapt": "head", "data": {"train": str(file)}}, runs=tmp_path / "runs", name=task, quiet=True
        ).folder
        record = json.loads((folder / "run.json").read_text())
        assert all(proof["passed"] for proof in record["proofs"]), [p for p in record["proofs"] if not p["passed"]]
        key = "tokens" if task == "tag" else "text"
        said = judge.predict(folder, [row[key] for row in made[:4]], quiet=True)
        if task == "regress":
            assert [line["prediction"] > 0 for line in said] == [row["score"] > 0 for row in made[:4]]
        elif task == "multilabel":
            assert all("day" in line["prediction"] for line in said)
        else:
            assert [len(line["prediction"]) for line in said] == [len(row["tokens"]) for row in made[:4]]


def test_mistakes(tuned: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "other.csv", [{"message": "a day"}])
    with pytest.raises(UserError, match=r"no column 'text'.*message"):
        judge.predict(tuned, str(file), quiet=True)
    with pytest.raises(UserError, match=r"\.csv or \.jsonl"):
        judge.predict(tuned, ["a day"], tmp_path / "out.xlsx", quiet=True)
    with pytest.raises(UserError, match="There is no run"):
        judge.predict("nothing", ["a day"], runs=tmp_path, quiet=True)
    with pytest.raises(UserError, match="labels that train does not"):
        judge.evaluate(tuned, str(write(tmp_path / "x.csv", [{"text": "a", "label": "ugly"}])), quiet=True)
