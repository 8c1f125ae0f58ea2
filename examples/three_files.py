"""Three small files for examples/multitask.yaml, made from the messages that ship inside the package."""

import csv
from pathlib import Path

import luthier

with (Path(luthier.__file__).parent / "demo" / "library.csv").open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
FILES = {
    "topic": [("text", "label"), *((row["text"], row["label"]) for row in rows)],
    "question": [("text", "label"), *((row["text"], "question" if "?" in row["text"] else "statement") for row in rows[::2])],
    "length": [("text", "score"), *((row["text"], len(row["text"].split())) for row in rows[::3])],
}
for name, lines in FILES.items():
    with Path(f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    print(f"{name}.csv: {len(lines) - 1} rows")
