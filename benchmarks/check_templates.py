"""Public chat templates beside `transformers`: the same text, or both refuse.

Usage: check_templates.py FOLDER, searched for *.jinja. Prints a row a template and a count of the outcomes; ends with
an error where a text differs or only one of the two refuses.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from kiara_runtime.errors import UserError
from kiara_runtime.tokens.chat import read_messages
from kiara_runtime.tokens.template import clock, render

FUNCTION = {
    "name": "get_weather",
    "description": 'Weather <now> & "then" für Köln\'s',
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "city"}, "days": {"type": "integer", "enum": [1, 2]}},
        "required": ["city"],
    },
}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"id": "call12345", "type": "function"} | {"function": {"name": "get_weather", "arguments": {"city": "Köln"}}}
USER = {"role": "user", "content": "Hi <b> & 'x' \"y\"  "}
ANSWER = {"role": "tool", "content": "12 °C", "tool_call_id": "call12345", "name": "get_weather"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfour"}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "question": {"messages": [USER]},
    "system": {"messages": [{"role": "system", "content": " Be brief. "}, USER]},
    "turns": {"messages": [USER, THOUGHT, {"role": "user", "content": "日本 {{ x }} </s>"}]},
    "tools": {"messages": [USER], "tools": TOOLS},
    "call": {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, ANSWER], "tools": TOOLS},
    "documents": {"messages": [USER], "documents": [{"title": "T", "text": "X & Y"}]},
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}


def _outcome(template: str, messages: list[Any], tools: Any = None, documents: Any = None) -> str:
    values = {"messages": read_messages(messages), "tools": tools, "documents": documents, "strftime_now": clock()}
    try:
        ours: str | None = render(template, {**values, **NAMES})
    except UserError:
        ours = None
    try:
        theirs: str | None = render_jinja_template([messages], tools, documents, template, **NAMES)[0][0]
    except Exception:  # whatever a template raises there
        theirs = None
    if ours == theirs:
        return "equal" if ours is not None else "both refuse"
    return "ONLY OURS" if theirs is None else "REFUSED" if ours is None else "DIFFERS"


def main() -> None:
    found: Counter[str] = Counter()
    for path in sorted(Path(sys.argv[1]).rglob("*.jinja")):
        row = [_outcome(path.read_text("utf-8"), **conversation) for conversation in CONVERSATIONS.values()]
        found.update(row)
        print(f"{path.stem[:48]:48}", *(f"{outcome:12}" for outcome in row))
    print(dict(found))
    sys.exit(not found or bool({"ONLY OURS", "REFUSED", "DIFFERS"} & set(found)))


if __name__ == "__main__":
    main()
