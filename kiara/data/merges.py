"""Learn the merges of a byte-level BPE, as a separate program that its parent can kill at any time.

The `tokenizers` library does not react to signals while it learns. Standard input: a line of JSON with the settings,
then texts as JSON strings, one per line, then null. Standard output: the merges as JSON. The program exits when its
standard input closes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent kills us
    settings = json.loads(sys.stdin.buffer.readline())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(settings["pattern"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=settings["vocab_size"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    json.dump(json.loads(tokenizer.to_str())["model"]["merges"], sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # the thread of _end_with_input is still reading


def _texts() -> Iterator[str]:
    for line in sys.stdin.buffer:
        text = json.loads(line)
        if text is None:
            threading.Thread(target=_end_with_input, daemon=True).start()
            return
        yield text
    os._exit(1)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
