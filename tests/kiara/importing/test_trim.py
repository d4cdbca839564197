"""`kiara trim`: the same tokens and logits with fewer entries, for every family's tokenizer; refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from families import make_folder

import kiara as face
from kiara.checkpoints.checkpoint import load_model
from kiara.data.dataset import Dataset
from kiara.data.token_ids import TokenIds
from kiara.importing.importer import import_model
from kiara.importing.tokenizers import hard_texts
from kiara.importing.trim import trim
from kiara.importing.vocabulary import kept_ids, trimmed_tokenizer
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.tokenizer import Tokenizer

SHORT = "def f(x):\n    return [y for y in x if y]\n"


@pytest.fixture(scope="module", params=["llama", "qwen2-untied", "gpt2", "mistral"])
def imported(request: pytest.FixtureRequest, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    make_folder(request.param, folder / "theirs", texts)
    import_model(folder / "theirs", folder / "ours")
    return folder / "ours"


@torch.no_grad()
def test_tokens_and_logits_are_those_of_the_original(imported: Path, tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text(SHORT * 3, "utf-8")
    made = trim(imported, str(tmp_path / "short.py"), tmp_path / "small")
    original, before = load_model(imported)
    small, after = load_model(tmp_path / "small")
    kept = made.kept
    assert len(kept) == small.vocab_size < before.vocab_size
    assert small.vocab_size % 64 == 0
    ids, new_ids = before.encode(SHORT), after.encode(SHORT)
    assert [kept[i] for i in new_ids] == ids
    assert after.decode(new_ids) == SHORT
    expected = original(torch.tensor([ids]))[0][..., torch.tensor(kept)]
    torch.testing.assert_close(small(torch.tensor([new_ids]))[0], expected, atol=1e-5, rtol=1e-5)
    assert {after.special_tokens[name] for name in before.special_tokens} <= set(range(small.vocab_size))
    olds, news = TokenIds.read(imported), TokenIds.read(tmp_path / "small")
    assert kept[news.bos] == olds.bos
    assert {kept[i] for i in news.eos} == olds.eos


def test_any_other_text_can_still_be_tokenized(imported: Path) -> None:
    before = Tokenizer.load(imported)
    after = trimmed_tokenizer(before, kept_ids(before, before.encode(SHORT)))
    for text in hard_texts(before):
        if "\ufffd" not in text:
            assert after.decode(after.encode(text)) == before.decode(before.encode(text))


def test_a_prepared_folder_says_which_tokens_stay(imported: Path, corpus: Path, tmp_path: Path) -> None:
    settings = {"training.sequence_length": 64}
    dataset = face.prepare(str(corpus / "bisect.py"), tmp_path / "data", settings, tokenizer=imported)
    made = trim(imported, str(tmp_path / "data"), tmp_path / "small")
    used = {int(i) for split in (dataset.train, dataset.val) for i in split.shards[0]}
    assert made.used == len(used)
    again = face.prepare(str(corpus / "bisect.py"), tmp_path / "again", settings, tokenizer=tmp_path / "small")
    assert [made.kept[i] for i in again.train.shards[0]] == dataset.train.shards[0].tolist()


def test_what_a_trained_run_does_not_use_is_told(
    run: Path, corpus: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    result = kiara("trim", run, "--to", corpus / "bisect.py", "--out", tmp_path / "small", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["after"]["vocab_size"] < found["before"]["vocab_size"] == 512
    assert found["after"]["int8_bytes"] < found["before"]["int8_bytes"]
    assert found["after"]["int8_step_seconds"] > 0
    shown = kiara("trim", run, "--to", corpus / "bisect.py", "--out", tmp_path / "other", "--no-measure")
    assert "entries; the text uses" in shown.output
    assert kiara("trim", run, "--to", tmp_path / "nothing", "--out", tmp_path / "third").exit_code == 1
    assert not (tmp_path / "third").exists()


def test_data_of_another_tokenizer_are_refused(imported: Path, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another tokenizer"):
        trim(imported, str(dataset.folder), tmp_path / "small")
