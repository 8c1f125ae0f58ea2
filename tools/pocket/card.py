"""Stage 9: the model card, with the figures that the other stages left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from settings import RESULTS, Settings, stage
from teacher import file_hash

CARD = (Path(__file__).resolve().parent / "card.md").read_text("utf-8")


def amount(facts: dict[str, Any], source: str) -> str:
    found = facts["train"][source]
    return f"{found['documents']:,} | {found['tokens']:,}"


def bracket(found: dict[str, float]) -> str:
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def probe_table(probes: dict[str, Any]) -> str:
    names = list(next(iter(probes.values()))["accuracy"])
    lines = ["| | " + " | ".join(f"{n}, {p['classes']} classes" for n, p in probes.items()) + " |"]
    lines.append("|---" * (len(probes) + 1) + "|")
    for name in names:
        lines.append(
            f"| {name} | " + " | ".join(bracket(p["accuracy"][name]) for p in probes.values()) + " |"
        )
    leads = " | ".join(bracket(p["lead over bag of words"]["pocket"]) for p in probes.values())
    return "\n".join([*lines, f"| **pocket's lead over the bag of words** | {leads} |"])


def sample_list(found: list[dict[str, str]]) -> str:
    quoted = [f"**{row['prompt']}** {row['text']}".replace("\n", "\n> ") for row in found]
    return "\n\n".join("> " + text for text in quoted)


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def run(s: Settings) -> None:
    results, language = read(RESULTS), read(s.work / "language.facts.json")
    train, texts = read(s.work / "train.facts.json"), read(s.work / "meaning.facts.json")
    bits = results["bits per character"]
    verdict = (
        "on two real sets: it passes"
        if results["passes"]
        else "on fewer than two real sets: **it does not pass**"
    )
    card = CARD.format(
        parameters=results["model"]["parameters"],
        size=results["model"]["bytes"] / 1e6,
        sha256=file_hash(s.target / "model.safetensors"),
        stories260k=file_hash(s.stories260k / "model.safetensors"),
        minilm=file_hash(s.minilm / "model.safetensors"),
        **{source: amount(language, source) for source in ("stories", "sampled", "asked", "tasks", "talk")},
        made=texts["texts"] - texts["real"],
        texts=texts["texts"],
        steps=train["steps"],
        tokens=train["tokens_a_step"],
        meanings=train["meaning_texts_a_step"],
        bits=bits["held-out stories"],
        answers=bits["held-out answers"],
        small_bits=bits["stories260k"]["held-out stories"],
        cosine=results["cosine to MiniLM"],
        draws=next(iter(results["probes"].values()))["draws"],
        probes=probe_table(results["probes"]),
        verdict=verdict,
        small_stories=bits["stories260k"]["stories"],
        held_stories=bits["stories"],
        samples=sample_list(results["samples"]),
    )
    (s.target / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    stage(__doc__, run)
