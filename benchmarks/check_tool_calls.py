"""Tool calls by a real model: each must parse, name a tool and satisfy its schema.

Usage: check_tool_calls.py BUNDLE [--calls 1000] [--threads N]. Tools are drawn at random: names, several kinds of
values, nested objects, enumerations, formats and bounds. An eighth of the answers may have text instead of a call
("auto"). Sampled at temperature 1, so that a small model that prefers something else is held by the grammar alone.
Prints the counts; ends with an error where a call is wrong. Run by hand: `make check-tool-calls`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from jsonschema import Draft202012Validator

from kiara_runtime.loading import load
from kiara_runtime.model import Model
from kiara_runtime.stream import Generation

AT_ONCE, BATCH, MAX_TOKENS = 8, 64, 250
WORDS = "city date amount unit title body user path query limit colour size start end tag mode price note".split()
REQUESTS = (
    "What is the weather in Lisbon tomorrow?",
    "Send a short note to Maria about the meeting.",
    "Find three books on gardening below 20 euros.",
    "Turn the lights in the kitchen down to 30 percent.",
    "Add milk and bread to my list.",
)


def value(draw: random.Random, depth: int) -> dict[str, Any]:
    """The schema of one argument."""
    kinds: list[dict[str, Any]] = [
        {"type": "string", "maxLength": 24},
        {"type": "string", "enum": draw.sample(WORDS, 3)},
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        {"type": "string", "format": draw.choice(["date", "time", "ipv4", "uuid"])},
        {"type": "integer", "minimum": draw.randint(-50, 0), "maximum": draw.randint(1, 5000)},
        {"type": "number", "minimum": 0, "exclusiveMaximum": 100},
        {"type": "boolean"},
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 1, "maxItems": 3},
        {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 1, "maximum": 9}]},
    ]
    return arguments(draw, depth - 1) if depth and draw.random() < 0.2 else draw.choice(kinds)


def arguments(draw: random.Random, depth: int = 2) -> dict[str, Any]:
    names = draw.sample(WORDS, draw.randint(1, 4))
    required = [name for name in names if draw.random() < 0.7] or names[:1]
    properties = {name: value(draw, depth) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def tools(draw: random.Random) -> list[dict[str, Any]]:
    names = draw.sample(("get_weather", "send_mail", "search", "set_light", "add_item"), draw.randint(1, 3))
    return [
        {"type": "function", "function": {"name": n, "description": n.replace("_", " "), "parameters": arguments(draw)}}
        for n in names
    ]


def checked(known: list[dict[str, Any]], calls: list[Any]) -> int:
    """The number of right calls; raises an error that shows a wrong one."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in known}
    for call in calls:
        Draft202012Validator(schemas[call.name], format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
            json.loads(call.arguments)
        )
    return len(calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    found, began = Counter[str](), time.perf_counter()
    with load(options.bundle, threads=options.threads) as model, ThreadPoolExecutor(AT_ONCE) as pool:
        for first in itertools.count(0, BATCH):
            for known, answer in pool.map(partial(asked, model), range(first, first + BATCH)):
                found["calls"] += checked(known, [call for call in answer.tool_calls if call.complete])
                found["answers"] += 1
                found["without a call"] += not answer.tool_calls
                found["cut at max_tokens"] += answer.finish_reason == "length"
                found["tokens"] += len(answer.tokens)
            print(dict(found), flush=True)
            if found["calls"] >= options.calls:
                break
    print(f"{found['calls']} calls parse and validate; {time.perf_counter() - began:.0f} s")


def asked(model: Model, seed: int) -> tuple[list[dict[str, Any]], Generation]:
    """The tools of a request, and its answer."""
    draw = random.Random(seed)
    known = tools(draw)
    messages = [{"role": "user", "content": draw.choice(REQUESTS)}]
    choice = "auto" if seed % 8 == 0 else "required"
    return known, model.chat(
        messages, known, choice, max_tokens=MAX_TOKENS, temperature=1.0, seed=seed, parallel_tool_calls=seed % 2 == 0
    )


if __name__ == "__main__":
    main()
