"""Read imported tokenizers, and choose an engine that gives exactly their ids.

tiktoken is preferred, because the runtime uses it by default. It is tested against the `tokenizers` library on the
text of every token, on hard strings and on random strings of tokens; after one difference the library is used instead.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kiara.console import logger
from kiara.families import (
    SPECIAL_TOKENS,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_CONFIG_FIXED,
    check_keys,
)
from kiara.importing.sentencepiece import MODEL_FILE, read_pieces
from kiara.importing.tokenizer_checks import check_added_tokens, check_definition
from kiara_runtime.errors import UserError
from kiara_runtime.system import read_bounded_json
from kiara_runtime.tokens import END_OF_TEXT, Tokenizer, added_token, chat_problems, template_of

# Keys of tokenizer_config.json that the runtime uses; the others are dropped.
KEPT = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template", "model_max_length", "tokenizer_class")
HARD_TEXTS = (
    "", " ", "\n\n  \r\n\t x", "a" * 5000, "\u00a0\u2003\u3000\ufeff", "١٢٣ 12345678 ½ 3.14e-10 1,000,000",
    "👩🏽\u200d🚀🇨🇭🏴\U000e0067\U000e0062\U000e007f", "e\u0301 Å ﬁ \u0000 \x7f \ufffd", "don't I'LL we'Re 'tis ''s'd",
    "def f(self,\n        *args):\n\treturn [x**2 for x in args]  # …\n", "日本語のテキスト 한국어 नमस्ते ไทย עברית",
    "<|endoftext|><s></s>[INST]", "   leading and trailing   ", "CamelCase_snake-kebab/path\\file.ext?q=1&r=2#x",
)  # fmt: skip
RANDOM_TEXTS = 400


def read_tokenizer(source: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, or of one file, with an engine that gives exactly its ids."""
    if source.is_file():
        definition = _from_model(source, {}, {}) if source.suffix == ".model" else read_bounded_json(source)
        return settle_tokenizer(source, definition, _usual_names(definition))
    given, named, added = (
        read_bounded_json(source / name) if (source / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    if not (source / "tokenizer.json").is_file() and (source / MODEL_FILE).is_file():
        definition = _from_model(source / MODEL_FILE, given, added)
    else:
        definition = read_bounded_json(source / "tokenizer.json")
    try:
        check_keys("tokenizer_config.json", given, TOKENIZER_CONFIG, TOKENIZER_CONFIG_FIXED)
        check_keys("special_tokens_map.json", named, SPECIAL_TOKENS_MAP, {})
        check_added_tokens(definition, given, named, added)
    except UserError as error:
        raise error.inside(source) from None
    usual = {} if given or named else _usual_names(definition)
    given = {**usual, **{key: value for key, value in named.items() if key in SPECIAL_TOKENS}, **given}
    config: dict[str, Any] = {key: _content(given[key]) for key in KEPT if given.get(key) is not None}
    template = source / "chat_template.jinja"
    if template.is_file() and template.stat().st_size <= 1 << 20:
        config["chat_template"] = template.read_text("utf-8")
    return settle_tokenizer(source, definition, config)


def _from_model(path: Path, config: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json for a SentencePiece model. added: added_tokens.json."""
    pieces = read_pieces(path)
    definition = pieces.definition()
    described = config.get("added_tokens_decoder")
    tokens = {str(i): _content(token) for i, token in (described if isinstance(described, dict) else {}).items()}
    tokens.update((str(i), name) for name, i in added.items())
    further = sorted((int(i), str(name)) for i, name in tokens.items() if i.isdecimal() and int(i) >= len(pieces.names))
    definition["added_tokens"] += [added_token(name, i) for i, name in further]
    bos = str(_content(config.get("bos_token", "<s>")))
    if bos in pieces.names and config.get("add_bos_token", True):
        definition["post_processor"] = begin_with(bos, pieces.names.index(bos))
    return definition


def _usual_names(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens with their usual names, for a tokenizer without a configuration."""
    usual = {"bos_token": ("<s>",), "eos_token": ("</s>", END_OF_TEXT), "unk_token": ("<unk>",)}
    entries = definition.get("added_tokens")
    names = {token.get("content") for token in entries or () if isinstance(token, dict)}
    found = {key: next((name for name in several if name in names), None) for key, several in usual.items()}
    return {key: name for key, name in found.items() if name is not None}


def begin_with(name: str, i: int) -> dict[str, Any]:
    """A post-processor that puts the special token `name` before a text."""
    first, text, other = (
        {"SpecialToken": {"id": name, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    )
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, other],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}},
    }


def settle_tokenizer(source: Path, definition: dict[str, Any], config: dict[str, Any]) -> Tokenizer:
    """The tokenizer from the contents of its two files, with an engine that gives exactly its ids."""
    config = _with_template(config)
    # Left over from training, these would truncate or pad every text; `transformers` ignores them, too.
    definition = {**definition, "truncation": None, "padding": None}
    try:
        check_definition(definition)
        config = {"kiara_prompt_prefix": _prompt_prefix(definition), **config}
        tokenizer = Tokenizer(definition, {**config, "kiara_engine": "tiktoken"})
        library = Tokenizer(definition, {**config, "kiara_engine": "tokenizers"})
        if tokenizer.engine != "tiktoken" or not _same(tokenizer, library):
            tokenizer = library
    except UserError as error:
        raise error.inside(source) from None
    for kind, problem in chat_problems(tokenizer).items():
        logger.warning("The chat template cannot be used with %s: %s", kind, problem)
    return tokenizer


def _with_template(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a single chat template: the one that the runtime uses, if there are several named ones."""
    template, rest = template_of(config), {key: value for key, value in config.items() if key != "chat_template"}
    if config.get("chat_template") and template is None:
        logger.warning("No chat template: that of tokenizer_config.json is neither text nor has a `default`.")
    return rest if template is None else {**rest, "chat_template": template}


def hard_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts on which two engines most likely differ, if they differ at all."""
    yield from HARD_TEXTS
    yield "".join(chr(i) for i in range(0x20, 0x3000) if unicodedata.category(chr(i)) not in ("Cs", "Cn"))
    words = [token.decode("utf-8", "replace") for token in tokenizer.token_bytes]
    yield from words
    rng = random.Random(0)
    for _ in range(RANDOM_TEXTS):
        yield "".join(rng.choices(words, k=40))
    yield from ("".join(rng.choices(" \n\t.,'0129aZé日", k=60)) for _ in range(RANDOM_TEXTS))


def _same(first: Tokenizer, second: Tokenizer) -> bool:
    return all(first.encode(text) == second.encode(text) for text in hard_texts(first))


def _content(value: Any) -> Any:
    """The text of a special token, given as a string or as an object with `content`; other values unchanged."""
    return value["content"] if isinstance(value, dict) and isinstance(value.get("content"), str) else value


def _prompt_prefix(definition: dict[str, Any]) -> list[int]:
    """Ids that the post-processor puts before a text; refuses a post-processor that adds any after it."""
    from tokenizers import Tokenizer as Library

    try:
        library = Library.from_str(json.dumps(definition))
    except Exception as error:  # the library raises plain Exception for every fault of a file
        raise UserError(
            "tokenizer.json", f"the tokenizers library cannot read it ({error})", "download it again"
        ) from None
    bare, whole = (library.encode("a", add_special_tokens=added).ids for added in (False, True))
    prefix = whole[: len(whole) - len(bare)]
    if [*prefix, *bare] != whole:
        raise UserError(
            "tokenizer.json",
            "its post-processor adds tokens after the text, which is not supported",
            "use another model",
        )
    return prefix
