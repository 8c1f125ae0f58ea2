"""The code of the card: plain transformers, peft and torch. The fresh process runs these very lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

EXAMPLES = {
    "compare": '[("What was asked?", "One answer.", "Another answer.")]',
    "one": '["The first text.", "And a second one."]',
    "pair": '[("The first text.", "What belongs to it."), ("A second one.", "And its other half.")]',
    "tag": '[["The", "first", "text", "."], ["And", "a", "second", "one", "."]]',
}
POOLED = {
    "mean": "(states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # the mean of the real tokens",
    "cls": "states[torch.arange(len(states)), mask.argmax(1)]  # the first real token",
    "last": "states[torch.arange(len(states)), mask.shape[1] - 1 - mask.flip(1).argmax(1)]  # the last real token",
    "none": "states",
}


@dataclass(frozen=True)
class Plan:
    """What is written, as far as its code goes.

    Attributes:
        form: "merged" or "adapter".
        auto: the Auto class that has the head, or None: backbone and head are joined by the lines.
        task, pooling, hidden, bias, max_length: of the tuned model.
        sides: on which padding may stand.
        positions: whether the call passes `position_ids`.
        offset: position of a row's first token.
        poolers: whether the backbone's class makes a pooler unless told not to.
        base, revision: what the adapter goes on; the base's folder or hub id.
        pairs: texts come in pairs.
        layout: how a prompt and two outputs become a row (see `comparing.Layout`); None for others.
    """

    form: str
    auto: str | None
    task: str
    pooling: str
    hidden: str | None
    bias: bool
    max_length: int
    sides: tuple[str, ...]
    positions: bool
    offset: int
    poolers: bool
    base: str
    revision: str | None
    pairs: bool
    layout: Any = None


def settings(plan: Plan) -> str:
    """What the reader sets."""
    kind = plan.task if plan.task in ("compare", "tag") else "pair" if plan.pairs else "one"
    return f'folder = "path/of/this/folder"\ntexts = {EXAMPLES[kind]}\n'


def loading(plan: Plan) -> str:
    """From `folder` to `tokenizer` and `model` (and `head`)."""
    auto, adapter = plan.auto or "AutoModel", plan.form == "adapter"
    names = sorted([auto, "AutoTokenizer", *(["AutoConfig"] if adapter else [])])
    extra = ", add_pooling_layer=False" if plan.auto is None and plan.poolers else ""
    lines = ["import torch"]
    lines += ["from peft import PeftModel"] if adapter else []
    lines += ["from safetensors.torch import load_file"] if plan.auto is None else []
    lines += [f"from transformers import {', '.join(names)}", ""]
    lines += ["tokenizer = AutoTokenizer.from_pretrained(folder)"]
    if adapter:
        revision = f", revision={json.dumps(plan.revision)}" if plan.revision else ""
        lines += [
            "config = AutoConfig.from_pretrained(folder)",
            f"base = {auto}.from_pretrained(\n    {json.dumps(plan.base)}{revision}, config=config, dtype=torch.float32{extra}\n)",
            "model = PeftModel.from_pretrained(base, folder).eval()",
        ]
    else:
        lines += [f"model = {auto}.from_pretrained(folder{extra}).eval()"]
    lines += ['head = load_file(f"{folder}/head.safetensors")'] if plan.auto is None else []
    return "\n".join(lines) + "\n"


def using(plan: Plan) -> str:
    """From `texts` to `logits` and what they say."""
    if plan.layout is not None:
        return _comparing(plan)
    split = ", is_split_into_words=True" if plan.task == "tag" else ""
    lines = [
        f"batch = tokenizer(texts{split}, padding=True, truncation=True, max_length={plan.max_length}, "
        'return_tensors="pt")'
    ]
    if plan.auto is None or plan.positions:
        lines += ['mask = batch["attention_mask"]']
    if plan.positions:
        offset = f" + {plan.offset}" if plan.offset else ""
        lines += [f'batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0){offset}']
    lines += ["with torch.no_grad():"]
    lines += ["    logits = model(**batch).logits"] if plan.auto is not None else _joined(plan)
    return "\n".join(lines + _said(plan)) + "\n"


def _joined(plan: Plan) -> list[str]:
    """From a batch to logits, through the backbone and the head beside it."""
    bias = ' + head["bias"]' if plan.bias else ""
    lines = ["    states = model(**batch).last_hidden_state", f"    features = {POOLED[plan.pooling]}"]
    if plan.hidden:
        lines += [f'    features = torch.{plan.hidden}(features @ head["hidden.weight"].T + head["hidden.bias"])']
    return [*lines, f'    logits = features @ head["weight"].T{bias}']


def _comparing(plan: Plan) -> str:
    """The same where a row is a prompt with two outputs, read both ways round."""
    laid = plan.layout
    (first, second), between = laid.marks, laid.between
    fixed = len(laid.opens) + 2 * len(between) + len(laid.ends) + len(first) + len(second)
    lines = [
        "def row(prompt, one, two):",
        '    prompt, one, two = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, one, two))',
        f"    room = {plan.max_length - fixed}",
        "    if len(prompt) + len(one) + len(two) > room:  # the prompt loses its beginning, the outputs their ends",
        "        prompt = prompt[-max(1, min(len(prompt), max(room // 2, room - len(one) - len(two)))) :]",
        "        left = room - len(prompt)",
        "        one = one[: max(1, left // 2, left - len(two))]",
        "        two = two[: max(1, left - len(one))]",
        f"    asked = {laid.opens} + prompt + {between}",
        f"    said = {first} + one + {between} + {second} + two + {laid.ends}",
    ]
    types = ', "token_type_ids": [0] * len(asked) + [1] * len(said)' if laid.typed else ""
    lines += [
        f'    return {{"input_ids": asked + said{types}}}',
        "",
        "rows = [row(*text) for text in texts] + [row(prompt, two, one) for prompt, one, two in texts]  # both ways round",
        'batch = tokenizer.pad(rows, padding=True, return_tensors="pt")',
        'mask = batch["attention_mask"]',
    ]
    if plan.positions:
        offset = f" + {plan.offset}" if plan.offset else ""
        lines += [f'batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0){offset}']
    lines += ["with torch.no_grad():", *_joined(plan)]
    lines += [
        "one, other = logits[:, 0].chunk(2)",
        "logits = (one - other) / 2  # turned round, a pair gives the opposite",
        f"likely = torch.sigmoid(logits / {laid.temperature:.6g})  # that the first output is the better one",
    ]
    return "\n".join(lines) + "\n"


def _said(plan: Plan) -> list[str]:
    """From logits to words."""
    if plan.task == "regress":
        return ["scores = logits[:, 0].tolist()"]
    names = ["names = model.config.id2label"]
    if plan.task == "multilabel":
        return [*names, "labels = [[names[i] for i, logit in enumerate(row) if logit >= 0] for row in logits]"]
    if plan.task == "classify":
        return [*names, "labels = [names[int(best)] for best in logits.argmax(-1)]"]
    return [
        *names,
        "tags = []  # of each word: what its first token says",
        "for row, best in enumerate(logits.argmax(-1).tolist()):",
        "    words = batch.word_ids(row)",
        "    first = [i for i, word in enumerate(words) if word is not None and word not in words[:i]]",
        "    tags.append([names[best[i]] for i in first])",
    ]
