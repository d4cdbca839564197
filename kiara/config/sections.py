"""Sections of the configuration; each documented field defines its schema, YAML key and help text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from kiara.config.model import ModelConfig, Section
from kiara_runtime.errors import UserError


class TokenizerConfig(Section):
    """The byte-level BPE that `kiara prepare` trains, or an existing one."""

    source: str | None = None
    """Checkpoint whose tokenizer to use as it is; null trains one on the text. Training from a checkpoint sets it."""
    vocab_size: int = Field(default=4096, ge=320, le=1 << 20, multiple_of=64)
    """Vocabulary size of a tokenizer to train: 256 bytes, merges and special tokens."""


class DataConfig(Section):
    """Training text and held-out text."""

    train: str = "stdlib"
    """A prepared folder, or a source as for `kiara prepare`: a file, a folder, a glob, JSON lines or `stdlib`."""
    val: str | None = None
    """Source of the validation text; null holds out documents of the training source."""
    val_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    """Fraction of the bytes to hold out if `val` is null."""
    split_seed: int = Field(default=0, ge=0)
    """Seed that chooses the held-out documents; not `training.seed`, so that runs can share a validation split."""
    mix: dict[str, float] = Field(default={})
    """Sources and weights, instead of `train`: each gives its share of the bytes, in documents chosen at random."""
    format: Literal["text", "chat", "preference"] = "text"
    """chat: conversations, of which only the answers are learned; preference: `prompt`, `chosen`, `rejected` (DPO)."""
    chat_template: str | None = None
    """File with the chat template (Jinja) of conversations; null: the checkpoint's, or a plain one if it has none."""
    overlong: Literal["cut", "drop"] = "cut"
    """Conversations longer than a training sequence: cut their end off, or leave them out."""
    text_field: str = "text"
    """Field of a record (JSON lines, Parquet) that holds the text."""
    bad_text: Literal["fail", "skip", "replace"] = "fail"
    """Documents that are not UTF-8 text: stop, leave them out, or put U+FFFD in the place of what cannot be read."""
    dedupe: Literal["none", "exact", "near"] = "none"
    """Drop documents that repeat an earlier one: equal ones, or also those that share most of their five-word runs."""
    prepared_dir: str = "data"
    """Folder in which `kiara train` puts the data that it prepares."""


class AdaptConfig(Section):
    """Adapters: train small matrices beside the frozen ones of a checkpoint (LoRA, Hu et al. 2021)."""

    rank: int | None = Field(default=None, ge=1, le=1024)
    """Rank of the adapters on every linear layer; null trains all weights."""
    alpha: float | None = Field(default=None, gt=0)
    """The adapters' output is multiplied by alpha / rank; null means twice the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the adapters' inputs to drop while training."""

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 2.0 if self.alpha is None else self.alpha / (self.rank or 1)


class TrainingConfig(Section):
    """Training: Muon for the matrices inside the blocks, AdamW for the rest, linear decay over the whole run."""

    init_from: str | None = None
    """Checkpoint or run to start from: its weights, shape and tokenizer; null starts from random weights."""
    max_steps: int = Field(default=800, ge=1)
    """Total optimizer steps."""
    epochs: float | None = Field(default=None, gt=0, le=1000)
    """Passes over the training text, which replaces max_steps; null: as max_steps says."""
    sequence_length: int | None = Field(default=None, ge=16, le=1 << 20)
    """Tokens of a training sequence, at most model.context_length; null means as many."""
    batch_size: int = Field(default=8, ge=1, le=1 << 16)
    """Sequences per pass of one process. A step takes as many passes as global_batch needs."""
    global_batch: int | None = Field(default=None, ge=1, le=1 << 20)
    """Sequences per step, over all passes and processes; null means batch_size."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each process holds the whole model; fsdp: weights, gradients and optimizer state are sharded (FSDP2)."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more time, much less memory."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Optimizer of the matrices inside the blocks; all other weights have AdamW."""
    learning_rate: float = Field(default=0.0055, gt=0, lt=1)
    """Peak learning rate of the matrices inside the blocks; AdamW wants about a third of Muon's."""
    embedding_learning_rate: float = Field(default=0.04, gt=0, lt=1)
    """Peak learning rate of all other weights."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Decay of the learning rates to zero."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.1, ge=0, lt=1)
    """Decoupled weight decay of the matrices inside the blocks."""
    dpo_beta: float = Field(default=0.1, gt=0)
    """How closely a model that learns preferences stays to the checkpoint it starts from (DPO's beta)."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Gradient norm to clip at."""
    eval_every: int = Field(default=100, ge=1)
    """Steps between validations."""
    eval_tokens: int = Field(default=32768, ge=1)
    """Validation tokens evaluated each time; the end of a run evaluates all of them."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints to keep, in addition to the best one."""
    quantize: Literal["none", "int8", "int4", "int2", "int8-dynamic"] = "none"
    """Variant to train for: the end of the run rounds weights (for int8-dynamic also activations) as export does."""
    quantize_from: float = Field(default=0.8, ge=0, lt=1)
    """Fraction of `max_steps` trained in full precision before rounding begins."""
    select_by: Literal["val_bpb", "int8", "int4", "int2", "int8-dynamic"] | None = None
    """Loss that picks the best checkpoint: of the weights as trained, or rounded for a variant; null: as `quantize`."""
    patience: int | None = Field(default=None, ge=1)
    """End the run after so many validations without a better loss; null: never."""
    track: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(default=[])
    """Trackers to log to, in addition to metrics.jsonl; each is an extra."""
    sample_prompt: str = "def "
    """Prompt of the sample that each validation generates; if empty, the beginning of the held-out text."""
    sample_tokens: int = Field(default=64, ge=0)
    """Tokens of that sample; 0 disables it."""
    seed: int = Field(default=1337, ge=0, lt=1 << 63)
    """Seed of the initial weights, the order of the data and the samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto uses a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of computation; auto uses bfloat16 if the processor supports it. Weights stay float32."""
    compile: Literal["auto", "always", "never"] = "auto"
    """torch.compile; auto uses it if a C++ compiler is found and the run is long enough to repay the compile time."""

    @property
    def sequences(self) -> int:
        """Sequences per step."""
        return self.global_batch or self.batch_size


class Config(Section):
    """All settings; each section is a key of the YAML file."""

    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    adapt: AdaptConfig = AdaptConfig()

    @property
    def sequence_length(self) -> int:
        """Tokens of a training sequence."""
        return self.training.sequence_length or self.model.context_length

    @model_validator(mode="after")
    def _shape_suits_the_kernels(self) -> Config:
        if self.training.init_from is not None:  # the checkpoint's shape counts, which is checked when it is read
            return self
        if self.sequence_length > self.model.context_length:
            problem = f"is above model.context_length ({self.model.context_length})"
            raise UserError("training.sequence_length", problem, "lower it", value=self.sequence_length)
        for name, multiple in (("hidden_size", 64), ("intermediate_size", 64), ("head_dim", 16)):
            if (value := getattr(self.model, name)) % multiple:
                raise UserError(f"model.{name}", "cannot be used", f"give a multiple of {multiple}", value=value)
        width = self.model.num_attention_heads * self.model.head_dim
        if width % 64:
            raise UserError("model.head_dim", f"num_attention_heads * head_dim is {width}", "make it a multiple of 64")
        return self
