"""Few examples on real data: CLINC150, one domain of 15 intents, 8 and 16 labelled rows an intent.

    python benchmarks/quality_fewshot.py            the tables that are not there yet

`luthier prompt-or-tune` on MiniLM (an encoder: probe, SetFit, LoRA) and on pocket (which also answers prompts); the figures lie in
results/quality_fewshot.json, finished tables and cells are kept, and benchmarks/work holds the runs.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
import csv
import json
from pathlib import Path

import sets
from luthier.prompt_or_tune import prompt_or_tune, table_text

RESULTS = Path(__file__).parent / "results" / "quality_fewshot.json"
DOMAIN = "banking"
EACH = (8, 16)
TABLES = {
    "minilm": (("probe", "setfit", "lora"), 1),
    "pocket": (("zero-shot", "k-shot", "probe", "setfit", "lora"), 1),
}


def data() -> dict[str, str]:
    """The domain's rows as files: train, eval and test as CLINC150 has them."""
    names = json.loads((sets.SHARED / "data/clinc150/domains.json").read_text(encoding="utf-8"))
    wanted, files = set(names[DOMAIN]), {}
    for split, pairs in sets.clinc().items():
        path = sets.WORK / "fewshot" / f"{DOMAIN}-{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(
                [("text", "label"), *((text, label.replace("_", " ")) for text, label in pairs if label in wanted)]
            )
        files["eval" if split == "val" else split] = str(path)
    return files


def main() -> None:
    """Run what is missing."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    files = data()
    for name, (ways, seeds) in TABLES.items():
        if name in kept:
            continue
        recipe = {
            "model": str(sets.minilm()) if name == "minilm" else name,
            "method": {"kind": "fewshot", "draws": 3, "template": "Message: {text}\nTopic: {label}"}, "data": files,
            "train": {"device": "cpu", "precision": "fp32"},
        }  # fmt: skip
        told = prompt_or_tune(
            recipe,
            counts=[15 * each for each in EACH],
            ways=ways,
            seeds=seeds,
            name=name,
            runs=sets.WORK / "fewshot" / "runs",
            quiet=True,
        )
        print(table_text(told), flush=True)
        kept[name] = told
        RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
