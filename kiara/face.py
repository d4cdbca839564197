"""The commands as Python functions with typed arguments; the command line calls them, too.

Each function imports what it needs when it is called, so that `kiara prepare` does not load PyTorch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kiara.data import Dataset, Engine
    from kiara.evaluation import Comparison
    from kiara_runtime.model import Model
    from kiara_runtime.verify import Metrics

Place = str | Path
Settings = Mapping[str, Any] | Sequence[str]  # by dotted path, or assignments as for `--set`


def prepare(
    source: str | None,
    out: Place,
    settings: Settings = (),
    config: Place | None = None,
    tokenizer: Place | None = None,
    engine: Engine = "local",
) -> Dataset:
    """Tokenize text into the prepared folder `out` and open it; an up-to-date folder is not written again.

    source: a text file, a folder, a glob, a .jsonl or .parquet file, or `stdlib`; None for those of data.mix. settings:
    such as {"tokenizer.vocab_size": 4096}; they override the YAML file `config`. tokenizer: a checkpoint or run whose
    tokenizer to use. engine: ray prepares text on a cluster by Ray Data, which writes the same bytes. Raises UserError
    if there is no text, or if `out` holds something else.
    """
    from kiara.config import load_config
    from kiara.data import prepare_folder
    from kiara_runtime.errors import UserError

    named: dict[str, Any] = {} if source is None else {"data.train": source}
    if tokenizer is not None:
        from kiara.checkpoints import find_checkpoint

        named["tokenizer.source"] = str(find_checkpoint(Path(tokenizer)))
    loaded = load_config(_path(config), [*_assignments(settings), *_assignments(named)])
    if source is None and not loaded.data.mix:
        raise UserError("SOURCE", "is missing", "name text, or give several sources as data.mix")
    return prepare_folder(loaded, Path(out), engine=engine)


def train(
    out: Place,
    settings: Settings = (),
    config: Place | None = None,
    resume: bool = False,
    branch: Place | None = None,
    fit: str | None = None,
    init_from: Place | None = None,
) -> bool:
    """Train into the run folder `out`; False if it was interrupted, with a checkpoint written.

    settings: they override the YAML file or preset `config`; training.batch_size is in sequences, training.max_steps
    in optimizer steps. resume: continue from the newest checkpoint, with the run's own settings if `config` is None.
    branch: another run or one of its checkpoints to start from, with its weights, optimizer state, step, data and
    settings. init_from: a checkpoint or run to start from, with its weights, shape and tokenizer. fit: a budget such as
    "30MB, 20 ms a token"; the model's shape is chosen to keep to it, by measurements on this machine. Raises UserError
    for an invalid setting, and if memory runs out.
    """
    from kiara.checkpoints import trained_checkpoint, trained_on
    from kiara.config import load_config
    from kiara.data import as_prepared, dataset_of
    from kiara.files import CONFIG_FILE
    from kiara.training import Run, as_continued, check_settings, joined, trainer, with_steps
    from kiara_runtime.errors import UserError

    if init_from is not None:
        if fit is not None or branch is not None:
            raise UserError("--init-from", "has no effect together with --fit or --branch", "leave one of them out")
        settings = [*_assignments(settings), *_assignments({"training.init_from": str(init_from)})]
    if fit is not None:
        if resume or branch is not None:
            raise UserError("--fit", "has no effect on a run that exists", "leave it out")
        settings = [*_fitted(fit, settings, config), *_assignments(settings)]
    origin = None if branch is None else trained_checkpoint(Path(branch))
    saved = Path(out) / CONFIG_FILE
    if origin is not None and not saved.is_file():
        saved = origin.folder.parent.parent / CONFIG_FILE
    with joined() as world:
        if not world.main:
            world.wait()  # until the first process has checked the settings, claimed the folder and prepared the text
        own = (resume or origin is not None) and config is None and saved.is_file()
        loaded = load_config(saved if own else _path(config), _assignments(settings))
        if not own:  # a run's own settings are complete
            loaded = as_prepared(as_continued(loaded))
        check_settings(loaded)
        with closing(Run(Path(out), loaded, resume, world.main, origin)) as run:
            # A resumed run uses the data that it began with, even if their source has changed.
            dataset = trained_on(run.last.folder) if run.last else dataset_of(run.config)
            run.config = with_steps(run.config, dataset)
            if world.main:
                world.wait()
            return trainer.train(run, dataset, world)


def evaluate(source: Place, text: str | None = None) -> Metrics:
    """Loss (nats per token), perplexity, accuracy and bits per byte of a checkpoint, or of a run's best checkpoint.

    text: source of held-out text, or a prepared folder, whose validation split is taken; by default that of the run.
    """
    from kiara.evaluation import evaluate_checkpoint

    return evaluate_checkpoint(Path(source), text)


def load(source: Place) -> Model:
    """A checkpoint, or the best one of a run, in PyTorch: `generate`, `stream`, `chat` and `score` as of a bundle."""
    from kiara.checkpoints import find_checkpoint, load_model
    from kiara.data import TokenIds
    from kiara.evaluation import reference_model

    folder = find_checkpoint(Path(source))
    return reference_model(*load_model(folder), TokenIds.read(folder))


def compare(models: Sequence[Place], prompts: Place, max_tokens: int = 128, out: Place | None = None) -> Comparison:
    """Greedy answers of checkpoints, runs or bundles to the same prompts, and how likely each finds a reference answer.

    prompts: a text file with one prompt a line, or JSON lines with `messages`, or `prompt` and `completion`. out: a
    page to write.
    """
    from kiara.console import progress
    from kiara.evaluation import compare as run
    from kiara.evaluation import read_prompts
    from kiara.report import check_page, write_comparison
    from kiara_runtime.errors import UserError

    if out is not None:
        check_page(Path(out))
    asked = read_prompts(Path(prompts))
    if len(set(map(str, models))) < len(models):
        raise UserError("MODEL", "is named twice", "name different ones", value=str(models[-1]))
    with ExitStack() as stack:
        opened = {str(place): stack.enter_context(closing(_opened(Path(place)))) for place in models}
        with progress("Answering", len(asked) * len(opened)) as advance:
            found = run(opened, asked, max_tokens, advance)
    if out is not None:
        write_comparison(found, Path(out))
    return found


def _opened(place: Path) -> Model:
    """A bundle in the runtime, or a checkpoint in PyTorch."""
    from kiara.files import kind_of

    if kind_of(place) != "bundle":
        return load(place)
    from kiara_runtime.loading import load as load_bundle

    return load_bundle(place, slots=1)


def import_model(source: Place, out: Place, tokenizer: Place | None = None) -> None:
    """Write the checkpoint `out` from a pretrained model; raises UserError if it is not supported.

    source: a Hugging Face folder, a GGUF file, or `hf:OWNER/NAME[@REVISION][:FILE]`, which is fetched from the hub;
    or a checkpoint of nanoGPT or llama2.c, which needs `tokenizer`: a folder with tokenizer.json, or tokenizer.model.
    """
    from kiara.importing import importer

    importer.import_model(source, Path(out), None if tokenizer is None else Path(tokenizer))


def trim(source: Place, to: str, out: Place, measure: bool = True) -> dict[str, Any]:
    """Write the checkpoint `out` from a checkpoint or run, without the vocabulary entries that a text never uses.

    to: a source of text, or a prepared folder. Returns figures before and after: entries, weights, bytes of the int8
    and int4 graphs and, if `measure` is set, seconds of an int8 decode step on this machine.
    """
    from kiara.importing import trim as run
    from kiara.model import sizes
    from kiara_export.fit import Shape, step_seconds
    from kiara_runtime.bundle import find_variant

    made = run(Path(source), to, Path(out))
    figures: dict[str, Any] = {"used": made.used}
    for when, model in (("before", made.original), ("after", made.model)):
        shapes = {
            name: Shape(model.config, model.vocab_size, variant, trained=False)
            for name in ("int8", "int4")
            if (variant := find_variant(name)) is not None
        }
        figures[when] = {
            "vocab_size": model.vocab_size,
            "parameters": sizes.parameters(model.config, model.vocab_size),
            **{f"{name}_bytes": shape.weights for name, shape in shapes.items()},
            **({"int8_step_seconds": step_seconds(shapes["int8"])} if measure else {}),
        }
    return figures


def export(
    source: Place,
    out: Place,
    quantize: Sequence[str] = ("int8",),
    *,
    text: str | None = None,
    calibration: str | None = None,
    budget: int | None = None,
    max_bpb_loss: float | Mapping[str, float] | None = None,
    strict: bool = False,
    check_with: Sequence[str] = (),
    sign_key: Place | None = None,
    embeddings: bool = False,
) -> dict[str, dict[str, Any]]:
    """Write the bundle `out` from a checkpoint, or from a run's best one; returns its receipt's figures by variant.

    quantize: names of variants: int8, int4, int8-dynamic, fp32, fp16. text, calibration: sources of text to evaluate
    and to calibrate on. budget: largest size of the int4 graph in bytes. max_bpb_loss: largest relative loss of bits
    per byte, such as 0.005, for all variants or by name. strict: raise UserError if a variant loses more, instead of
    quantizing it more finely or leaving it out. check_with: other runtimes to compare with. sign_key: an Ed25519
    private key, PEM. embeddings: the bundle can embed texts (`Model.embed`), not only continue them.
    """
    from kiara_export.pipeline import export as run  # here, because kiara_export imports kiara
    from kiara_export.request import Request

    request = Request(
        variants=tuple(quantize),
        text=text,
        calibration=calibration,
        budget=budget,
        max_bpb_loss={} if max_bpb_loss is None else max_bpb_loss,
        strict=strict,
        check_with=tuple(check_with),
        sign_key=None if sign_key is None else Path(sign_key),
        embeddings=embeddings,
    )
    return run(Path(source), Path(out), request)


def _fitted(budget: str, settings: Settings, config: Place | None) -> list[str]:
    """Assignments of the shape that fits a budget, and of learning rates for its width unless they are given."""
    from kiara.config import load_config
    from kiara.data import as_prepared
    from kiara_export.fit import SHAPE, Budget, fit, rates
    from kiara_runtime.errors import UserError

    limits, given = Budget.parse(budget), _assignments(settings)
    for assignment in given:
        name = assignment.partition("=")[0].strip()
        if name.removeprefix("model.") in SHAPE:
            raise UserError(f"--set {assignment}", "has no effect together with --fit", "leave one of them out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--fit", "measures one process, but there are several", "run it once alone, then use its shape")
    loaded = load_config(_path(config), given)
    prepared = as_prepared(loaded)
    fixed = prepared is not loaded or "vocab_size" in loaded.tokenizer.model_fields_set
    shape = fit(limits, loaded, prepared.tokenizer.vocab_size if fixed else None)
    return _assignments({**rates(shape.model, loaded.training), **shape.settings()})


def _path(place: Place | None) -> Path | None:
    return None if place is None else Path(place)


def _assignments(settings: Settings) -> list[str]:
    """Settings as assignments, as for `--set`."""
    if not isinstance(settings, Mapping):
        return list(settings)
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]
