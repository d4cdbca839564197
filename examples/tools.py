"""A model that calls Python functions: it asks, they run here, it answers. Needs kiara-runtime[chat,structured].

python examples/tools.py bundles/mine "What time is it?"

The arguments of a call always follow the annotations. Whether a small model calls the right function at the right
time is another matter: the first answer has to be a call here, and one call at a time is enough.
"""

import sys
from datetime import datetime
from typing import Literal

import kiara_runtime
from kiara_runtime.functions import run_functions


def now(part: Literal["date", "time"]) -> str:
    """Tell the date or the time.

    part: which of the two
    """
    return datetime.now().strftime("%d %B %Y" if part == "date" else "%H:%M")


def main(bundle: str, question: str) -> None:
    model = kiara_runtime.load(bundle)
    asked = [{"role": "user", "content": question}]
    for message in run_functions(model, asked, [now], "required", False, max_tokens=64, temperature=0.0):
        for call in message.get("tool_calls", ()):
            print(f"calls {call['function']['name']}({call['function']['arguments']})")
        if message["content"]:
            print(f"{message['role']}: {message['content']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
