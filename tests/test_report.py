"""The report: says what the record says, survives whatever is missing, and lets nobody's text act."""

import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from luthier.evaluate import Outputs, by_class, confusion, report, score
from luthier.evaluate.page import pictures
from luthier.evaluate.page.style import STYLE
from luthier.evaluate.page.words import duration, figure, headline, number, plain, shown, size, verdict

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Reads a page as strictly as HTML allows: every tag closed in order; collects words, tags and
    addresses."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(source)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words).replace("\u202f", " "))


def split_scores(outputs: Outputs) -> tuple[dict, dict]:
    found = score(outputs.task, outputs, resamples=100)
    return {k: v.value for k, v in found.items()}, {k: [v.low, v.high] for k, v in found.items()}


def folder_of(path: Path, task: str = "classify", labels: int = 3, rows: int = 60) -> Path:
    """A run folder as a finished run leaves it."""
    random = np.random.default_rng(0)
    names = [f"label {index}" for index in range(labels)]
    if task == "regress":
        targets = random.uniform(0, 5, rows)
        own = Outputs(task, None, targets, targets + random.normal(size=rows) * 0.5)
        flat = Outputs(task, None, targets, np.full(rows, targets.mean()))
    elif task == "tag":
        tags = [["B-PER", "O", "B-LOC", "I-LOC"]] * rows
        said = [["B-PER", "O", "B-LOC", "I-LOC" if row % 3 else "O"] for row in range(rows)]
        own, flat = Outputs(task, None, tags, said), Outputs(task, None, tags, [["O"] * 4] * rows)
        names = own.names
    else:
        targets = random.integers(labels, size=rows)
        said = np.where(random.random(rows) < 0.9, targets, (targets + 1) % labels)
        own, flat = Outputs(task, names, targets, said), Outputs(task, names, targets, np.zeros(rows, dtype=int))
    metrics, bounds = split_scores(own)
    base, base_bounds = split_scores(flat)
    metric = {"classify": "accuracy", "regress": "r2", "tag": "entity-f1"}[task]
    table = confusion(own)
    split = {"source": "rows.csv", "rows": rows, "hash": "abc", "truncated": 0, "skipped": 0, "tokens": 9, "longest": 4}
    record = {
        "luthier": "0.1.0", "name": "a run", "status": "done", "error": None, "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:05+00:00", "recipe": {"adapt": {"kind": "lora"}}, "seed": 0, "metric": metric,
        "model": {"name": "hub/stories260k", "architecture": "Llama", "parameters": 264000, "layers": 5, "width": 64,
                  "hash": "f00"},
        "adapt": {"kind": "lora", "trainable": 1000, "total": 265000, "stored_bytes": 2048, "options": {"rank": 8},
                  "where": "low-rank updates"},
        "method": {"kind": "supervised", "task": task, "labels": names, "pooling": "mean", "layer": -1},
        "data": {"split": "given", "train": split, "eval": split, "test": split}, "headline_split": "test",
        "metrics": {"eval": metrics, "test": metrics}, "intervals": {"test": bounds},
        "baselines": {"majority": base}, "baseline_intervals": {"majority": base_bounds},
        "by_class": by_class(own), "confusion": None if table is None else table.tolist(),
        "proofs": [{"name": "one BOS", "says": "one BOS", "value": "60 of 60", "bound": None, "passed": True},
                   {"name": "same score", "says": "padding", "value": 3e-3, "bound": 1e-5, "passed": False}],
        "memory": {"peak_bytes": 3 * 2**30, "weights_bytes": 1, "gradients_bytes": 1, "optimizer_bytes": 2,
                   "device": "cpu"},
        "time": {"seconds": 75, "steps": 40}, "warnings": ["a warning"], "environment": {"torch": "2.13.0"},
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps(record))
    steps = [{"step": step, "train/loss": 2 / step, "train/lr": 1e-3} for step in range(1, 41)]
    steps += [{"step": step, "eval/loss": 1 / step, f"eval/{metric}": 1 - 1 / step} for step in range(10, 41, 10)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    lines = []
    for row in range(rows):
        target, guess = own.targets[row], own.predictions[row]
        if task == "classify":
            line = {"text": f"text {row}", "target": names[target], "prediction": names[guess],
                    "confidence": 0.5 + row / 200, "loss": 1.0}  # fmt: skip
        elif task == "regress":
            line = {"text": ["one", "other"], "target": float(target), "prediction": float(guess)}
        else:
            line = {"text": "Ann in New York", "tokens": ["Ann", "in", "New", "York"], "target": target,
                    "prediction": guess}  # fmt: skip
        lines.append(json.dumps({"row": row + 1, **line}))
    (path / "predictions.jsonl").write_text("\n".join(lines))
    return path


SURE, UNSURE = 1.9, 2.5  # nats a token, tuned and base


def written_folder(path: Path, rows: int = 40, kind: str = "prompt,completion") -> Path:
    """A run folder as a finished run of a model that writes leaves it: every fifth row got worse."""
    split = {
        "source": "rows.jsonl",
        "rows": rows,
        "hash": "abc",
        "truncated": 3,
        "skipped": 0,
        "tokens": 900,
        "longest": 64,
    }
    now = {"loss": SURE, "perplexity": math.exp(SURE), "bits-per-character": 0.9}
    before = {"loss": UNSURE, "perplexity": math.exp(UNSURE), "bits-per-character": 1.2}
    bounds = {name: [0.9 * value, 1.1 * value] for name, value in now.items()}
    record = {
        "luthier": "0.1.0", "name": "a run", "status": "done", "error": None, "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:05+00:00", "recipe": {"adapt": {"kind": "lora"}}, "seed": 0, "metric": "loss",
        "model": {"name": "hub/stories260k", "architecture": "Llama", "parameters": 264000, "layers": 5, "width": 64, "hash": "f00"},
        "adapt": {"kind": "lora", "trainable": 1000, "total": 265000, "stored_bytes": 2048, "options": {"rank": 8}, "where": "low-rank"},
        "method": {"kind": "sft", "task": "generate", "labels": [], "train_on": "completion", "rows": kind,
                   "learned": {"train": 450, "eval": 450, "test": 450},
                   "counts": {"train": {"truncated": 3, "cut_completion": 2, "split": 0, "no_target": 1}}},
        "data": {"split": "given", "train": split, "eval": split, "test": split}, "headline_split": "test",
        "metrics": {"eval": now, "test": now | {"rouge-l": 0.31}}, "intervals": {"test": bounds | {"rouge-l": [0.2, 0.4]}},
        "baselines": {"base": before}, "baseline_intervals": {"base": {name: [0.8 * v, 1.2 * v] for name, v in before.items()}},
        "difference": {"loss": [-0.6, -0.7, -0.5], "perplexity": [-5.5, -6.0, -5.0], "bits-per-character": [-0.3, -0.4, 0.1]},
        "samples": [{"prompt": "Is it open?\n", "reference": "From nine on.", "base": "", "tuned": "Yes, from nine."}],
        "proofs": [{"name": "one BOS", "says": "one BOS", "value": 0.0, "bound": 0.0, "passed": True}],
        "memory": {"peak_bytes": 3 * 2**30, "device": "cpu"}, "time": {"seconds": 75, "steps": 40},
        "warnings": ["a warning"], "environment": {"torch": "2.13.0"},
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps(record))
    steps = [{"step": step, "train/loss": 2 + 2 / step, "train/lr": 1e-3} for step in range(1, 41)]
    steps += [{"step": step, "eval/loss": 1.9 + abs(step - 20) / 100} for step in range(10, 41, 10)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    lines = [
        {"row": str(row), "text": f"prompt {row}", "target": f"answer {row}", "loss": 1 + row / 100,
         "base_loss": 1 + row / 100 + (-0.01 * row if row % 5 == 0 else 0.5)}
        for row in range(1, rows + 1)
    ]  # fmt: skip
    (path / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def page_of(folder: Path) -> Page:
    written = report.write(folder)
    assert written == folder / "report.html"
    return Page(written.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("task", "labels"), [("classify", 3), ("classify", 20), ("classify", 60), ("regress", 0), ("tag", 0)]
)
def test_a_finished_run_says_it_all(tmp_path: Path, task: str, labels: int) -> None:
    folder = folder_of(tmp_path / "run", task, labels)
    record = json.loads((folder / "run.json").read_text())
    page = page_of(folder)
    value = figure(record["metric"], record["metrics"]["test"][record["metric"]]).replace("\u202f", " ")
    named = {"classify": f"{value} accuracy", "regress": f"R² {value}", "tag": f"{value} entity F1"}[task]
    assert f"lora on stories260k reaches {named}" in page.text
    for words in ("60 test rows", "Most wrong", "Training", "learning rate", "3.0 GiB", "1 min 15 s", "2.0 KiB",
                  "a warning", "1 of 2 checks hold", "✗ failed", "Environment and hashes", "rank 8"):  # fmt: skip
        assert words in page.text, words
    assert ("Predictions" if task == "regress" else "Label by label") in page.text
    assert "could not be drawn" not in page.text


def test_the_page_stands_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    page = page_of(folder)
    assert not {"script", "img", "iframe", "object", "embed", "form", "video"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "action"):
            assert value == "data:,", (tag, name, value)
    source = (folder / "report.html").read_text()
    assert not re.search(r"https?://|url\(|@import", source)
    assert "default-src 'none'" in source
    assert "prefers-color-scheme: dark" in source
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "metrics.jsonl", "predictions.jsonl", "report.html", "run.json",
    ]  # fmt: skip


EVIL = "</title></style><script>alert('1')</script>\"><b onclick=x> \u202egnp.exe\u200b\u0000 \ud800 {body}"


def poisoned(value: object) -> object:
    """The record with every string an attack, keys too where they are free."""
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()} | {EVIL: EVIL}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return EVIL if isinstance(value, str) else value


@pytest.mark.parametrize("task", ["classify", "regress", "tag", "generate"])
def test_text_of_others_stays_text(tmp_path: Path, task: str) -> None:
    folder = written_folder(tmp_path / "run") if task == "generate" else folder_of(tmp_path / "run", task)
    record = json.loads((folder / "run.json").read_text())
    kept = {"metric": record["metric"], "headline_split": "test"}
    record = poisoned(record) | kept  # type: ignore[operator]
    record["method"]["task"] = task
    if task == "generate":
        record["baselines"] = {"base": record["baselines"]["base"], EVIL: record["baselines"]["base"]}
    (folder / "run.json").write_text(json.dumps(record))
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    evil = "\n".join(
        json.dumps(poisoned(line) | {"prediction": "other"} if task == "classify" else poisoned(line)) for line in lines
    )
    (folder / "predictions.jsonl").write_text(evil)
    (folder / "recipe.yaml").write_text(EVIL.replace("\ud800", ""))
    page = page_of(folder)
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in source
    assert "<b onclick" not in source
    assert not set("\u202e\u200b\x00\ud800") & set(source)
    assert "U+202E" in page.text
    assert "{body}" in page.text
    assert "script" not in page.tags


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        ("failed", "Traceback ...\nValueError: the loss is not a number", "lora on tiny failed after step 7."),
        ("interrupted", None, "lora on tiny was interrupted after step 7."),
        ("running", None, "lora on tiny was still running after step 7."),
    ],
)
def test_unfinished_runs_have_a_report(tmp_path: Path, status: str, error: str | None, expected: str) -> None:
    recipe = {"adapt": {"kind": "lora"}, "model": {"name": "tiny"}}
    record = {"name": "r", "status": status, "error": error, "recipe": recipe, "metrics": {}, "warnings": []}
    (tmp_path / "run.json").write_text(json.dumps(record))
    lines = "".join(json.dumps({"step": step, "train/loss": 1.0, "eval/accuracy": 0.5}) + "\n" for step in range(1, 8))
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 8, "trai')
    page = page_of(tmp_path)
    assert expected in page.text
    assert "1 broken line was left out" in page.text
    assert "kind: lora" in page.text
    assert ("the loss is not a number" in page.text) == (status == "failed")


@pytest.mark.parametrize("make", ["folder_of", "written_folder"])
def test_any_missing_piece_is_left_out(tmp_path: Path, make: str) -> None:
    whole = json.loads((globals()[make](tmp_path / "whole") / "run.json").read_text())
    for key in whole:
        for other in (None, "absent"):
            folder = globals()[make](tmp_path / f"{key}-{other}")
            record = {k: v for k, v in whole.items() if k != key} | ({} if other == "absent" else {key: None})
            (folder / "run.json").write_text(json.dumps(record))
            assert "could not be drawn" not in page_of(folder).text, key


def test_damaged_records_cost_only_their_part(tmp_path: Path) -> None:
    assert "run.json is missing" in page_of(tmp_path).text
    (tmp_path / "run.json").write_text("{")
    assert "run.json is damaged" in page_of(tmp_path).text
    folder = folder_of(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"confusion": [[1, 2], [3]]}))
    page = page_of(folder)
    assert 'The part "per_class" could not be drawn' in page.text
    assert "Training" in page.text
    with pytest.raises(FileNotFoundError, match="no run folder"):
        report.write(tmp_path / "nowhere")


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "run")
    report.write(folder)
    before = (folder / "report.html").read_text()

    def full(source: str, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        report.write(folder)
    assert (folder / "report.html").read_text() == before
    assert not list(folder.glob(".report-*"))


def test_only_the_rows_that_are_most_wrong_are_shown(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    lines = [{"row": row, "text": f"text-{row}", "target": "a", "prediction": "b" if row % 2 else "a", "confidence": row / 1000}
             for row in range(1000)]  # fmt: skip
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = report.read_run(folder)
    assert [line["row"] for line in run.wrong] == list(range(999, 975, -2))
    assert run.rows == 1000


def test_the_scatter_is_an_even_sample(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", "regress")
    (folder / "predictions.jsonl").write_text(
        "\n".join(json.dumps({"target": t, "prediction": t}) for t in range(30000))
    )
    run = report.read_run(folder)
    assert 900 <= len(run.points) <= report.POINTS
    assert np.mean([x for x, _ in run.points]) == pytest.approx(15000, rel=0.05)


def test_eval_as_headline_is_called_optimistic(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    assert "optimistic: expect" not in page_of(folder).text
    record = json.loads((folder / "run.json").read_text()) | {"headline_split": "eval"}
    del record["metrics"]["test"]
    (folder / "run.json").write_text(json.dumps(record))
    assert "so this figure is optimistic" in page_of(folder).text


def record_of(metric: str, own: float, bounds: list, other: float, other_bounds: list) -> dict:
    return {
        "status": "done", "metric": metric, "headline_split": "test", "adapt": {"kind": "lora"},
        "model": {"name": "hub/stories260k"}, "data": {"test": {"rows": 300}},
        "metrics": {"test": {metric: own}}, "intervals": {"test": {metric: bounds}},
        "baselines": {"majority": {metric: 0.12}, "bag-of-words": {metric: other}},
        "baseline_intervals": {"bag-of-words": {metric: other_bounds}},
    }  # fmt: skip


def test_the_headline_in_plain_words() -> None:
    record = record_of("accuracy", 0.873, [0.841, 0.902], 0.701, [0.65, 0.75])
    words = re.sub(r"<[^>]*>", "", headline(record, None)).replace("\u202f", " ")
    assert words == (
        "lora on stories260k reaches 87.3 % accuracy (84.1 to 90.2) on 300 test rows: "
        "bag-of-words gets 70.1 %, majority gets 12.0 %."
    )


@pytest.mark.parametrize(
    ("metric", "own", "bounds", "other", "other_bounds", "kind"),
    [
        ("accuracy", 0.87, [0.84, 0.90], 0.70, [0.65, 0.75], "good"),
        ("accuracy", 0.74, [0.70, 0.78], 0.70, [0.65, 0.75], "even"),
        ("accuracy", 0.60, [0.55, 0.65], 0.70, [0.65, 0.75], "bad"),
        ("rmse", 0.05, [0.04, 0.06], 0.09, [0.08, 0.1], "good"),
        ("rmse", 0.20, [0.18, 0.22], 0.15, [0.14, 0.17], "bad"),
        ("accuracy", 0.87, None, 0.70, None, "even"),
    ],
)
def test_the_verdict(metric: str, own: float, bounds: list, other: float, other_bounds: list, kind: str) -> None:
    assert verdict(record_of(metric, own, bounds, other, other_bounds))[0] == kind


def test_numbers_read_well() -> None:
    assert [number(x) for x in (0, 1234567, 12.345, 0.012345, 2.4e-5, math.nan, None, True)] == [
        "0", "1,234,567", "12.3", "0.0123", "2.4e-5", "–", "–", "–",
    ]  # fmt: skip
    assert [size(x) for x in (0, 1023, 1536, 2**31)] == ["0\u202fB", "1023\u202fB", "1.5\u202fKiB", "2.0\u202fGiB"]
    assert [duration(x) for x in (0.25, 9.94, 59.99, 60, 3723)] == [
        "250\u202fms", "9.9\u202fs", "60.0\u202fs", "1\u202fmin 00\u202fs", "1\u202fh 02\u202fmin",
    ]  # fmt: skip
    assert pictures.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert pictures.ticks(3, 3) == [3]
    assert [pictures.short(x) for x in (2e-4, 0.5, 1500, 0)] == ["2e-4", "0.5", "1,500", "0"]


def test_hidden_characters_are_named_and_others_left_alone() -> None:
    assert shown("naïve 日本 🎻 a<b") == "naïve 日本 🎻 a&lt;b"
    assert "U+200B" in shown("a\u200bb")
    assert plain('a\u202eb"') == "a⟨U+202E⟩b&quot;"
    assert plain("abcdef", 3) == "abc…"
    assert "3 more characters" in shown("abcdef", 3)


# models that write


@pytest.mark.parametrize("kind", ["text", "prompt,completion", "messages"])
def test_a_run_that_writes_says_it_all(tmp_path: Path, kind: str) -> None:
    page = page_of(written_folder(tmp_path / "run", kind=kind))
    assert "lora on stories260k brings the perplexity on 40 test rows from 12.2 to 6.69 (6.02 to 7.35)." in page.text
    assert (
        "Row by row the loss falls by 0.600 nats a token (0.500 to 0.700): the gain is more than chance." in page.text
    )
    begins = {"text": "How it begins", "messages": "Conversation"}.get(kind, "Prompt")
    for words in (begins, "Base, untuned", "Tuned", "nothing", "Yes, from nine.", "From nine on.", "tokens learned", "50 % of 900",
                  "best 1.900", "bits per character", "−0.600", "−0.700 to −0.500", "ROUGE-L", "0.310", "2 answers that lost their end",
                  "1 row left out, with nothing to learn", "3.0 GiB", "1 of 1 checks hold", "On eval: loss 1.900"):  # fmt: skip
        assert words in page.text, words
    for words in (
        "Label by label",
        "Most wrong",
        "taken for",
        "0 labels",
        "could not be drawn",
        "bag-of-words",
        "read from",
    ):
        assert words not in page.text, words
    assert "how surprised the model is by what people wrote there" in page.text
    assert page.tags.count("figure") == 3, "the headline, the loss, the rate: the loss is not drawn twice"


def test_rows_before_and_after(tmp_path: Path) -> None:
    folder = written_folder(tmp_path / "run")
    run = report.read_run(folder)
    assert (run.rows, run.risen) == (40, 8)
    assert [line["row"] for line in run.wrong] == ["40", "39", "38", "37", "36", "35"]
    assert [line["row"] for line in run.worse] == ["40", "35", "30", "25"]
    page = page_of(folder)
    assert "32 of 40 rows (80 %) are less surprising to the tuned model than to the base. 8 got worse." in page.text
    assert "row 40 · loss 1.40, was 1.00" in page.text
    assert page.tags.count("circle") > 40
    lines = [json.loads(line) | {"base_loss": 9.0} for line in (folder / "predictions.jsonl").read_text().splitlines()]
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    better = page_of(folder).text
    assert "None got worse." in better
    assert "Got worse, the most first" not in better
    (folder / "predictions.jsonl").unlink()
    assert "are less surprising" not in page_of(folder).text


@pytest.mark.parametrize(
    ("metric", "found", "kind", "words"),
    [
        ("loss", [-0.6, -0.7, -0.5], "good", "falls by 0.600 nats a token (0.500 to 0.700): the gain"),
        (
            "loss",
            [0.2, 0.1, 0.3],
            "bad",
            "rises by 0.200 nats a token (0.100 to 0.300): on these rows the untuned base",
        ),
        ("loss", [-0.1, -0.3, 0.1], "even", "(-0.300 to 0.100): the interval holds zero"),
        ("rouge-l", [0.2, 0.1, 0.3], "good", "the ROUGE-L rises by 0.200 (0.100 to 0.300): the gain"),
        ("rouge-l", [-0.2, -0.3, -0.1], "bad", "falls by 0.200"),
        ("loss", None, "", ""),
    ],
)
def test_the_verdict_of_a_run_that_writes(metric: str, found: list | None, kind: str, words: str) -> None:
    record = {
        "metric": metric, "headline_split": "test", "method": {"task": "generate"}, "metrics": {"test": {metric: 1.0}},
        "difference": {metric: found} if found else {},
    }  # fmt: skip
    assert verdict(record)[0] == kind
    assert words in verdict(record)[1]


def test_the_line_for_the_terminal(tmp_path: Path) -> None:
    from luthier.record import headline as line

    record = json.loads((written_folder(tmp_path / "run") / "run.json").read_text())
    assert line(record) == (
        "loss 1.900 (1.710 to 2.090), perplexity 6.69 (6.02 to 7.35) on 40 test rows; base 2.500 and 12.2; 1 min 15 s"
    )
    assert line(record | {"metric": "rouge-l"}) == "rouge-l 0.310 (0.200 to 0.400) on 40 test rows; 1 min 15 s"
    labels = json.loads((folder_of(tmp_path / "labels") / "run.json").read_text())
    assert re.fullmatch(
        r"accuracy 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\) on 60 test rows; majority 0\.\d{3}; 1 min 15 s", line(labels)
    )
    assert "Nothing was held out" in line(record | {"metrics": {}})


def test_tables_of_words_have_a_style() -> None:
    assert re.search(r"\.text td[^{]*\{ text-align: left", STYLE)
