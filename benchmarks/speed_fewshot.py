"""8-shot evaluation against lm-eval: the same model, the same prompts, the same answers, process CPU time.

    python benchmarks/speed_fewshot.py                 the cells that are not there yet
    python benchmarks/speed_fewshot.py --again         all of them
    python benchmarks/speed_fewshot.py --tiny          a trial on a small model, nothing is kept

Random weights from a seed (the time does not depend on them being good): a Llama of 6 layers, 256 wide, 8,192 words, 9 million
parameters. A prompt has 8 demonstrations of about 35 tokens, an item of about 30, and 4 labels of one token each. lm-eval
runs its own HFLM in batches of 8, length-sorted: with all choices in one call, where its cache reads the choices of a context
together, and with a call for each choice, where it reads them apart. A round takes each side once, in turns; the figure is the
median of the rounds' ratios. Both sides start from texts and end in log-likelihoods, which are compared. Needs
`pip install lm-eval` (0.4 or later); where it is missing the result says so and ours is measured alone.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from luthier.data.bundles import Query
from luthier.data.render import Speech
from luthier.data.render.shots import Spelled, prompt_of
from luthier.models import load
from luthier.models.language import LanguageModel
from luthier.models.scoring import Scorer

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "speed_fewshot.json"
WORK = Path(os.environ.get("LUTHIER_BENCH", ROOT / "benchmarks" / "work")) / "fewshot"
VOCABULARY, SHOTS, ROUNDS = 8192, 8, 3
CELLS = {"items-200": 200}


def base(width: int, depth: int) -> Path:
    """The model's folder; made once."""
    folder = WORK / f"llama-h{width}-l{depth}"
    if (folder / "tokenizer.json").is_file():
        return folder
    config = transformers.LlamaConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=4, num_key_value_heads=4, intermediate_size=4 * width,
        vocab_size=VOCABULARY, max_position_embeddings=2048, bos_token_id=None, eos_token_id=0, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = ["<end>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 2))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", unk_token="<unk>", model_max_length=2048
    ).save_pretrained(folder)
    return folder


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """Texts of about 30 words, with one of four labels."""
    draw = np.random.default_rng(seed)
    return [
        {"text": " ".join(f"w{word}" for word in draw.integers(10, VOCABULARY - 2, draw.integers(22, 38))), "label": f"w{draw.integers(4)}"}
        for _ in range(count)
    ]  # fmt: skip


def ours(model: LanguageModel, tokenizer: Any, shown: list[dict[str, str]], items: list[dict[str, str]]) -> np.ndarray:
    """(items, labels) log-likelihoods, from texts on: tokens, prefix once, the rest."""
    prompt = prompt_of(
        "text,label",
        False,
        template="w4 w5 {text} w6 {label}",
        separator=" w7 ",
        instruction=None,
        words={},
        chat=False,
    )
    spelled = Spelled(tokenizer, prompt, 2048, Speech(2**30))
    answers = tuple(spelled.answers([f"w{label}" for label in range(4)]))
    contexts, _, _ = spelled.contexts([(shown, item) for item in items], 1)
    found = Scorer(model)([[Query(ids, answers)] for ids in contexts])
    return np.array([one[0] for one in found])


def texts(shown: list[dict[str, str]], items: list[dict[str, str]]) -> list[tuple[str, str]]:
    """(context, continuation) of each request, as lm-eval builds them."""
    front = "".join(f"w4 w5 {one['text']} w6 {one['label']} w7 " for one in shown)
    return [(f"{front}w4 w5 {item['text']} w6", f" w{label}") for item in items for label in range(4)]


def theirs(lm: Any, requests: list[tuple[str, str]], together: bool) -> np.ndarray:
    """The same by lm-eval: all requests in one call (it groups the choices of a context), or each choice in a call of its own."""
    from lm_eval.api.instance import Instance

    def made(pairs: list[tuple[str, str]]) -> list[Any]:
        return [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(pairs)]

    if together:
        found = [value for value, _ in lm.loglikelihood(made(requests), disable_tqdm=True)]
        return np.array(found).reshape(-1, 4)
    columns = [
        [value for value, _ in lm.loglikelihood(made(requests[label::4]), disable_tqdm=True)] for label in range(4)
    ]
    return np.array(columns).T


def cell(count: int, rounds: int, width: int = 256, depth: int = 6) -> dict[str, Any]:
    """One cell: the rounds' CPU seconds of each side, their ratios, and how far the answers differ."""
    torch.set_num_threads(1)
    folder = base(width, depth)
    found = load.find(str(folder))
    model = LanguageModel(load.causal(found).eval())
    shown, items = rows(SHOTS, 1), rows(count, 2)
    requests = texts(shown, items)
    sides: dict[str, Callable[[], np.ndarray]] = {"luthier": lambda: ours(model, found.tokenizer, shown, items)}
    told: dict[str, Any] = {"items": count, "shots": SHOTS}
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(pretrained=model.lm, tokenizer=found.tokenizer, batch_size=8, device="cpu", backend="causal")
        told["lm-eval"] = getattr(lm_eval, "__version__", "unknown")
        sides |= {
            "one-token cache": lambda: theirs(lm, requests, True),
            "one request per choice": lambda: theirs(lm, requests, False),
        }
    except ImportError as missing:
        told["lm-eval"] = f"not installed ({missing})"
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, np.ndarray] = {}
    for number in range(1 + rounds):
        for name, side in sides.items():
            if number == 0 and name != "luthier" and count > 48:
                continue  # the peer needs no warm round that long
            started = time.process_time()
            answers[name] = side()
            if number:
                seconds[name].append(time.process_time() - started)
    for name in sides:
        if name != "luthier":
            far = np.abs(answers[name] - answers["luthier"])
            told.setdefault("difference", {})[name] = float((far / np.abs(answers[name])).max())
            told.setdefault("same answers", {})[name] = float(
                (answers[name].argmax(1) == answers["luthier"].argmax(1)).mean()
            )
    told["seconds"] = seconds
    told["milliseconds an item"] = {
        name: round(1000 * statistics.median(each) / count, 2) for name, each in seconds.items()
    }
    told["ratios"] = {
        name: [round(a / b, 2) for a, b in zip(each, seconds["luthier"], strict=True)]
        for name, each in seconds.items()
        if name != "luthier"
    }
    return told


def main() -> None:
    """Run what is missing."""
    if "--tiny" in sys.argv:
        print(json.dumps(cell(12, 1, 64, 2), indent=1))
        return
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name, count in CELLS.items():
        if name in kept and "--again" not in sys.argv:
            continue
        machine = {
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        kept[name] = cell(count, ROUNDS) | {"environment": machine}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(name, kept[name]["milliseconds an item"], kept[name]["ratios"], kept[name].get("difference"), flush=True)


if __name__ == "__main__":
    main()
