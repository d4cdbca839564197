"""From conversations to the files of a split: token ids, which of them are learned, and where conversations begin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from kiara.data.conversations import conversation_ids
from kiara.data.documents import Document
from kiara.data.encode import token_type
from kiara.data.token_ids import TokenIds
from kiara_runtime.errors import UserError
from kiara_runtime.system import hash_file
from kiara_runtime.tokens import Tokenizer


def encode_chats(
    tokenizer: Tokenizer,
    token_ids: TokenIds,
    documents: Iterable[Document],
    folder: Path,
    split: str,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Write the split's files; returns its entry in the manifest. advance: receives bytes as they are encoded.

    Beside the token file: `.learned`, a byte for each token, 1 in answers; `.begins`, int64, where each conversation
    begins, and the end of the last one.
    """
    names = {kind: f"{split}-00000.{kind}" for kind in ("bin", "learned", "begins")}
    begins, documents_read, answers, text_bytes = [0], 0, 0, 0
    with (folder / names["bin"]).open("wb") as tokens, (folder / names["learned"]).open("wb") as mask:
        for document in documents:
            text = document.read()
            record = json.loads(text)
            documents_read += 1
            for messages in record["conversations"]:
                try:
                    ids, learned = conversation_ids(tokenizer, token_ids, messages, record["tools"])
                except UserError as error:
                    raise error.inside(document.name) from None
                np.array(ids, token_type(tokenizer)).tofile(tokens)
                np.array(learned, np.uint8).tofile(mask)
                begins.append(begins[-1] + len(ids))
                answers += sum(learned)
                text_bytes += sum(len(str(message.get("content") or "").encode()) for message in messages)
            advance(len(text.encode()))
    np.array(begins, np.int64).tofile(folder / names["begins"])
    hashes = {kind: hash_file(folder / name) for kind, name in names.items()}
    count = begins[-1]
    return {
        "documents": documents_read,
        "conversations": len(begins) - 1,
        "bytes": text_bytes,
        "tokens": count,
        "answer_tokens": answers,
        "bytes_per_token": round(text_bytes / count, 4) if count else None,
        "shards": [{"file": names["bin"], "tokens": count, "sha256": hashes["bin"]}],
        "chat": {kind: {"file": names[kind], "sha256": hashes[kind]} for kind in ("learned", "begins")},
    }
