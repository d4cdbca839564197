"""Conversations from notes in Markdown, to teach a model: a section's title is the question, its text the answer.

python examples/notes_to_chats.py notes/ > chats.jsonl
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SECTION = re.compile(r"^#+ +(.+?)\n(.*?)(?=^#+ |\Z)", re.MULTILINE | re.DOTALL)
MOST = 800  # characters of an answer
QUESTIONS = ("{}?", "What do my notes say about {}?", "Tell me about {}.")


def answer_in(text: str) -> str:
    """The first paragraphs of a section, without tables and code."""
    kept = ""
    for paragraph in re.split(r"\n\s*\n", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        plain = " ".join(paragraph.split())
        if plain and not paragraph.startswith(("|", "    ", "!", "<")) and len(kept) + len(plain) <= MOST:
            kept += ("\n\n" if kept else "") + plain
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", kept)


def conversations(folder: Path) -> Iterator[dict[str, str]]:
    for path in sorted(folder.rglob("*.md")):
        for title, text in SECTION.findall(path.read_text("utf-8")):
            answer = answer_in(text)
            if len(answer) > 20:
                yield from ({"prompt": question.format(title), "completion": answer} for question in QUESTIONS)


if __name__ == "__main__":
    for record in conversations(Path(sys.argv[1])):
        print(json.dumps(record, ensure_ascii=False))
