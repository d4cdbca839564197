"""Conversations: which tokens are learned, against `transformers`; packing against single conversations; refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from families import CHAT, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

import kiara as face
from kiara.config.model import ModelConfig
from kiara.data.chat_split import IGNORED, ChatSplit
from kiara.data.conversations import PLAIN_TEMPLATE, conversation_ids
from kiara.data.dataset import Dataset
from kiara.data.token_ids import TokenIds
from kiara.evaluation.evaluate import tensors
from kiara.model.gpt import GPT
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.tokenizer import Tokenizer

LLAMA3 = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] | trim }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] | trim }}<|im_end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = PLAIN_TEMPLATE.replace(
    "{{ message['content'] }}{{ eos_token }}",
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}",
)
TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is a heap?"}, {"role": "assistant", "content": "A tree with order."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Sort this: 3, 1."},
        {"role": "assistant", "content": "1, 3"},
        {"role": "user", "content": "And now <|im_end|> backwards?"},
        {"role": "assistant", "content": "3, 1\n\nDone."},
        {"role": "user", "content": "Thanks"},
    ],
]


@pytest.fixture(scope="module")
def definition(texts: list[str]) -> dict[str, Any]:
    return json.loads(make_tokenizer("llama3", texts).to_str())


def _tokenizer(definition: dict[str, Any], template: str) -> tuple[Tokenizer, TokenIds]:
    tokenizer = Tokenizer(definition, {"chat_template": template, "eos_token": "<|im_end|>"})
    end = tokenizer.special_tokens["<|im_end|>"]
    return tokenizer, TokenIds(end, frozenset({end}))


@pytest.mark.parametrize("template", [CHATML, LLAMA3, PLAIN], ids=["chatml", "llama3", "plain"])
@pytest.mark.parametrize("talk", TALKS)
def test_the_tokens_that_count_are_those_of_transformers(
    template: str, talk: list[dict[str, Any]], definition: dict[str, Any]
) -> None:
    from tokenizers import Tokenizer as Library
    from transformers import PreTrainedTokenizerFast

    ours, token_ids = _tokenizer(definition, template)
    ids, learned = conversation_ids(ours, token_ids, talk)
    theirs = PreTrainedTokenizerFast(tokenizer_object=Library.from_str(json.dumps(definition)), eos_token="<|im_end|>")
    plain = [{**one, "content": one["content"].replace("<|im_end|>", "")} for one in talk]
    if plain != talk:  # their tokenizer reads special tokens in messages, ours does not
        ids, learned = conversation_ids(ours, token_ids, plain)
    found = theirs.apply_chat_template(
        plain, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids == found["input_ids"]
    assert learned == [bool(one) for one in found["assistant_masks"]]


def test_names_of_special_tokens_in_messages_stay_text(definition: dict[str, Any]) -> None:
    tokenizer, token_ids = _tokenizer(definition, CHAT)
    ids, learned = conversation_ids(tokenizer, token_ids, TALKS[1])
    assert sum(token in token_ids.eos for token in ids) == len(TALKS[1])
    assert sum(learned[i] for i, token in enumerate(ids) if token in token_ids.eos) == 2


def test_a_question_has_the_ids_that_it_has_when_the_model_is_asked(definition: dict[str, Any]) -> None:
    from kiara_runtime.tokens.chat import chat_ids

    tokenizer, token_ids = _tokenizer(definition, PLAIN_TEMPLATE)
    ids, learned = conversation_ids(tokenizer, token_ids, TALKS[0])
    assert ids[: learned.index(True)] == chat_ids(tokenizer, TALKS[0][:1])


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}<|im_start|>{{ m.content }}\n{% endfor %}", "without an end-of-text token"),
        ("{{ messages | length }}" + CHAT, "in another way once it goes on"),
    ],
)
def test_a_template_that_does_not_mark_answers_is_refused(template: str, told: str, definition: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=told):
        conversation_ids(*_tokenizer(definition, template), TALKS[1])


def _split(sizes: list[int], seed: int = 0, overlong: Any = "cut") -> ChatSplit:
    """Conversations of random tokens, whose second half is learned."""
    rng = np.random.default_rng(seed)
    begins = np.cumsum([0, *sizes])
    learned = np.concatenate([np.arange(size) >= size // 2 for size in sizes]).astype(np.uint8)
    return ChatSplit("train", [rng.integers(0, 64, begins[-1], np.uint16)], None, learned, begins, overlong)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(16, 40))
def test_each_conversation_is_packed_once_and_no_sequence_is_overfull(sizes: list[int], length: int) -> None:
    split = _split(sizes)
    packing = split.packed(length)
    kept = sorted(one for window in packing.windows for one in window)
    begins = np.cumsum([0, *sizes])[:-1].tolist()
    expected = [(b, min(s, length + 1)) for b, s in zip(begins, sizes, strict=True) if s // 2 <= length]
    assert kept == expected
    assert packing.dropped == len(sizes) - len(expected)
    if not expected:
        with pytest.raises(UserError, match="no conversation has an answer within"):
            split.sequences(length)
        return
    assert all(sum(size - 1 for _, size in window) <= length for window in packing.windows)
    assert split.step_targets(1, 0, 1, length) == int((split.examples(1, 0, 1, length).targets != IGNORED).sum())


def test_overlong_conversations_are_left_out_on_request() -> None:
    assert [(p.cut, p.dropped) for p in (_split([10, 30], overlong=o).packed(20) for o in ("cut", "drop"))] == [
        (1, 0),
        (0, 1),
    ]


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_packed_conversations_have_the_loss_and_gradient_of_single_ones(position: Any) -> None:
    config = ModelConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=64, context_length=64, position=position,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT(config, 64).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    split = _split([9, 14, 7, 30, 12, 5])
    count = split.sequences(40)
    assert count < 3
    packed = split.rows(list(range(count)), 40)
    loss = model.loss(*tensors(packed, torch.device("cpu")))
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    model.requires_grad_()
    singles = [_alone(split, begin, end) for begin, end in zip(split.begins, split.begins[1:], strict=False)]
    whole = sum(int((targets != IGNORED).sum()) for _, targets in singles)
    total = 0.0
    for ids, targets in singles:
        part = model.loss(ids, targets) * (int((targets != IGNORED).sum()) / whole)
        part.backward()
        total += part.item()
    assert loss.item() == pytest.approx(total, rel=1e-6)
    for name, weight in model.named_parameters():
        expected = gradients[name]
        assert expected is not None
        torch.testing.assert_close(weight.grad, expected, atol=1e-6, rtol=1e-5)


def _alone(split: ChatSplit, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.from_numpy(split.shards[0][begin:end].astype(np.int64))
    learned = torch.from_numpy(split.learned[begin + 1 : end].astype(bool))
    return tokens[None, :-1], torch.where(learned, tokens[1:], IGNORED)[None]


def _lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def test_a_chat_is_prepared_learned_and_answered(texts: list[str], tmp_path: Path) -> None:
    from families import make_folder

    from kiara.importing.importer import import_model

    make_folder("llama", tmp_path / "theirs", texts)
    import_model(tmp_path / "theirs", tmp_path / "base")
    records = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(20)]
    records += [{"messages": TALKS[0]}, {"messages": TALKS[0]}]
    source = _lines(tmp_path / "chats.jsonl", records)
    settings = {"data.format": "chat", "data.dedupe": "exact", "data.val_fraction": 0.2}
    dataset = face.prepare(str(source), tmp_path / "data", settings, tokenizer=tmp_path / "base")
    assert isinstance(dataset.train, ChatSplit)
    splits = dataset.manifest["splits"]
    assert splits["train"]["documents"] + splits["val"]["documents"] == 21
    assert dataset.manifest["dropped"] == {"a copy of another": 1}
    training = {"training.max_steps": 6, "training.batch_size": 2, "training.sample_tokens": 8, "adapt.rank": 4}
    assert face.train(tmp_path / "run", {"data.train": str(tmp_path / "data"), **training}, init_from=tmp_path / "base")
    ends = dataset.token_ids.eos
    assert dataset.tokenizer.special_tokens["<|im_end|>"] in ends
    answer = face.load(tmp_path / "run").chat([{"role": "user", "content": "What is 3?"}], max_tokens=4)
    assert len(answer.tokens) <= 4
    assert "What is" in (tmp_path / "run" / "samples.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0]: has the unknown role 'robot'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "has no answer of the assistant"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
            "messages[1]: is an empty answer",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "begins with an answer"),
        ({"messages": []}, "it is empty"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"text": "plain"}, "has neither `messages` nor `prompt` and `completion`"),
        ({"prompt": 3, "completion": "a"}, "messages"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_line_or_skipped(
    record: Any, told: str, dataset: Dataset, tmp_path: Path, kiara: Callable[..., Result], run: Path
) -> None:
    good = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(12)]
    source = _lines(tmp_path / "chats.jsonl", [good[0], record, *good[1:]])
    given = ["prepare", source, "--tokenizer", run, "--set", "data.format=chat"]
    result = kiara(*given, "--out", tmp_path / "data")
    assert result.exit_code == 1
    assert f"{source}:2" in result.output
    assert told in result.output
    assert "Traceback" not in result.output
    skipped = kiara(*given, "--out", tmp_path / "skipped", "--set", "data.bad_text=skip")
    assert skipped.exit_code == 0
    assert sum(Dataset.open(tmp_path / "skipped").manifest["dropped"].values()) == 1


def test_conversations_given_as_text_are_told_how_to_be_read(tmp_path: Path, kiara: Callable[..., Result]) -> None:
    source = _lines(tmp_path / "chats.jsonl", [{"messages": talk} for talk in TALKS])
    result = kiara("prepare", source, "--out", tmp_path / "data")
    assert result.exit_code == 1
    assert "--set data.format=chat" in result.output
    result = kiara("prepare", source, "--out", tmp_path / "data", "--set", "data.format=chat")
    assert "--tokenizer" in result.output


def test_another_template_is_prepared_again(imported: Path, tmp_path: Path) -> None:
    source = _lines(tmp_path / "chats.jsonl", [{"prompt": f"{i}?", "completion": f"{i}."} for i in range(12)])
    template = tmp_path / "template.jinja"
    lengths: list[int] = []
    for start in ("", "Begin "):
        template.write_text(start + CHAT, "utf-8")
        settings = {"data.format": "chat", "data.chat_template": str(template)}
        lengths.append(face.prepare(str(source), tmp_path / "data", settings, tokenizer=imported).train.tokens)
    assert lengths[1] > lengths[0]
