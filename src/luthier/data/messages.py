"""Conversations: a list of messages as a row of a file spells it, checked and brought to one form.

The form is that of transformers' chat templates: {"role", "content"}, and where they are given "tool_calls" (with
arguments as objects), "tool_call_id", "name", "reasoning_content" and "weight". What else a message holds is kept.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.cells import BadRow, is_empty, tree, unicode

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool", "observation": "tool"}
_MEANT = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant",
          "function": "tool", "ipython": "tool", "observation": "tool"}  # fmt: skip
_REASONING = ("reasoning_content", "thinking", "reasoning")  # the first is what chat templates read


def conversation(value: Any, column: str = "messages") -> list[Message]:
    """A cell as a list of messages.

    Taken are a list of {"role", "content"} (or ShareGPT's {"from", "value"}), the same as JSON text, and content as
    a list of text parts, which are joined.

    Raises:
        BadRow: naming the message and what is wrong with it.
    """
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            raise BadRow(f"{column} is text, expected a list of messages: [{{role: user, content: ...}}, ...]")
        value = tree(value, column)
    if isinstance(value, Mapping):
        value = [value]
    if is_empty(value) or (isinstance(value, Sequence) and len(value) == 0):
        raise BadRow(f"{column} is empty")
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"{column} is a {type(value).__name__}, expected a list of messages")
    return [_message(one, f"{column}[{at}]") for at, one in enumerate(value)]


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, Mapping):
        raise BadRow(f"{where} is a {type(given).__name__}, expected {{role, content}}")
    told = {key: value for key, value in given.items() if value is not None}  # a table fills what is not there
    if "role" not in told and "from" in told:
        told = _sharegpt(told, where)
    role = told.get("role")
    if role not in ROLES:
        raise BadRow(f"{where}: {_role(role)}")
    found = f"{where} ({role})"
    message: Message = {"role": role, "content": ""} | told
    reasons = [told[key] for key in _REASONING if told.get(key)]
    for key in _REASONING:
        message.pop(key, None)
    if reasons:
        message["reasoning_content"] = _string(reasons[0], f"{found}: reasoning_content")
    calls = _calls(message.pop("tool_calls", None), found)
    if calls:
        message["tool_calls"] = calls
    if (calls or reasons) and role != "assistant":
        raise BadRow(f"{found}: only the assistant has {'tool_calls' if calls else 'reasoning_content'}")
    if message.get("function_call"):
        raise BadRow(f"{found}: function_call is the old form; write tool_calls: [{{function: {{name, arguments}}}}]")
    if message.get("weight", 1) not in (0, 1):
        raise BadRow(f"{found}: weight is {message['weight']!r}, expected 0 (read, not learned) or 1")
    if "content" not in told and not calls:
        raise BadRow(f"{found}: content is missing")
    message["content"] = _content(message["content"], found)
    if role == "assistant" and not (message["content"].strip() or calls):
        raise BadRow(f"{found}: content is empty")
    return message


def _role(role: Any) -> str:
    known = " | ".join(ROLES)
    if role is None:
        return f"role is missing, expected {known}"
    near = _MEANT.get(str(role).lower()) or next(iter(difflib.get_close_matches(str(role).lower(), ROLES, n=1)), None)
    return f"role {role!r} is not known, expected {known}" + (f"; did you mean {near!r}?" if near else "")


def _sharegpt(told: Mapping[str, Any], where: str) -> Message:
    who = told["from"]
    if not isinstance(who, str) or who not in SHAREGPT:
        raise BadRow(f"{where}: from {who!r} is not known, expected {' | '.join(SHAREGPT)}")
    rest = {key: value for key, value in told.items() if key not in ("from", "value", "weight")}
    return {"role": SHAREGPT[who], **({"content": told["value"]} if "value" in told else {}), **rest}


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{where} is a {type(value).__name__}, expected text")
    return unicode(value, where)


def _content(value: Any, where: str) -> str:
    if not isinstance(value, (list, tuple)):
        return _string(value, f"{where}: content")
    parts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if kind not in ("text", "str"):
            raise BadRow(f"{where}: content holds a part of type {kind!r}, and only text is read")
        parts.append(_string(part.get("text") if isinstance(part, Mapping) else part, f"{where}: content"))
    return "".join(parts)


def _calls(value: Any, where: str) -> list[Any]:
    """Tool calls; OpenAI gives the arguments as JSON text, templates want the object."""
    if isinstance(value, str) and value.strip():
        value = tree(value, f"{where}: tool_calls")
    if not value:
        return []
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"{where}: tool_calls is a {type(value).__name__}, expected a list")
    calls = []
    for given in value:
        call = dict(given) if isinstance(given, Mapping) else {}
        inner = dict(call["function"]) if isinstance(call.get("function"), Mapping) else call
        if not isinstance(inner.get("name"), str):
            raise BadRow(f"{where}: a tool call has no name, expected {{function: {{name, arguments}}}}")
        arguments = inner.get("arguments")
        if isinstance(arguments, str):
            try:
                read = json.loads(arguments)
            except (json.JSONDecodeError, RecursionError):
                read = None
            inner["arguments"] = read if isinstance(read, dict) else arguments
        calls.append(call | {"function": inner} if inner is not call else inner)
    return calls


def tools(value: Any) -> str | None:
    """The tools that stand beside a conversation (JSON schemas), as JSON text; None where there are none."""
    if isinstance(value, str) and value.strip():
        value = tree(value, "tools")
    if is_empty(value) or not value:
        return None
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"tools is a {type(value).__name__}, expected a list of JSON schemas")
    found = [tree(one, f"tools[{at}]") if isinstance(one, str) else one for at, one in enumerate(value)]
    for at, one in enumerate(found):
        if not isinstance(one, Mapping):
            raise BadRow(f"tools[{at}] is a {type(one).__name__}, expected a JSON schema")
    return stored(found, "tools")


def answers(messages: Sequence[Message]) -> list[int]:
    """Positions of the assistant's turns that answer something: not one that begins the conversation."""
    return [at for at, message in enumerate(messages) if at > 0 and message["role"] == "assistant"]


def check_answered(messages: Sequence[Message], column: str = "messages") -> None:
    """Raise BadRow where no turn of the assistant can be learned."""
    if answers(messages):
        return
    if messages[0]["role"] == "assistant":
        raise BadRow(f"{column} begins with the assistant, and nothing answers what follows: there is nothing to learn")
    raise BadRow(f"{column} has no assistant turn: there is nothing to learn")


def stored(value: Any, column: str) -> str:
    """JSON text, as the Arrow table holds it."""
    try:
        return unicode(json.dumps(value, ensure_ascii=False), column)
    except TypeError as error:
        raise BadRow(f"{column} holds what JSON does not know: {error}") from None


def asked(messages: Sequence[Message]) -> str:
    """What a conversation begins with: the user's messages up to the first answer, else all that stands before it."""
    first = next(iter(answers(messages)), len(messages))
    users = [message["content"] for message in messages[:first] if message["role"] == "user"]
    return "\n".join(users or [message["content"] for message in messages[: max(first, 1)]])


def shown(messages: Sequence[Message]) -> str:
    """A conversation for showing, a line a message."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
