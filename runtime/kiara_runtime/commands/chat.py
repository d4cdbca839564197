"""`kiara-run chat`: a conversation in the terminal. What is said and kept is in `conversation`."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from kiara_runtime.commands.options import DEVICE, KV_CACHE
from kiara_runtime.errors import UserError
from kiara_runtime.system import Terminated, tell

if TYPE_CHECKING:
    from kiara_runtime.commands.conversation import Conversation, WhenFull
    from kiara_runtime.engine import Device, KVCache, Piece, Sequence
    from kiara_runtime.stream import Stream

HELP = """/reset          forget the conversation, keep the system message
/system TEXT    set the system message; without TEXT remove it
/set NAME=VALUE change a sampling setting, such as temperature=0.5
/retry          answer the last question again
/save FILE      write the conversation as JSON
/load FILE      go on with a saved one
/stats          show tokens and speed of each answer, or hide them
/quit           leave, as Ctrl-D does
Ctrl-C stops an answer. A line that ends with \\ goes on in the next one."""
PROMPT, MORE = "> ", ". "


class _Interrupts:
    """Ctrl-C: stops an answer while one is written, and clears the line while one is typed."""

    def __init__(self) -> None:
        self.answering, self.stopped = False, False

    def hear(self, number: int, frame: FrameType | None) -> None:
        if not self.answering or self.stopped:  # the second one does not wait for the next token
            raise KeyboardInterrupt
        self.stopped = True

    @contextmanager
    def heard(self) -> Generator[None]:
        before = signal.signal(signal.SIGINT, self.hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def during_answer(self) -> Generator[None]:
        self.answering, self.stopped = True, False
        try:
            yield
        finally:
            self.answering = False


class _Terminal:
    """Reads lines, writes answers. Messages about the conversation go to standard error."""

    def __init__(self, conversation: Conversation, interrupts: _Interrupts, stats: bool) -> None:
        self._conversation, self._interrupts, self._stats = conversation, interrupts, stats
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: tell(HELP),
            "/reset": lambda _: (conversation.reset(), tell("[forgotten]"))[1],
            "/system": lambda text: (conversation.set_system(text), tell("[set]" if text else "[removed]"))[1],
            "/set": lambda text: (conversation.set(text), tell(f"[{text}]"))[1],
            "/save": lambda name: tell(f"[saved as {conversation.save(name)}]"),
            "/load": lambda name: tell(f"[loaded {conversation.load(name)}]"),
            "/retry": lambda _: self._write(conversation.retry),
            "/stats": self._toggle,
        }

    def run(self) -> None:
        """Until the end of the input or /quit."""
        while (line := self._line()) is not None:
            if line.strip() in ("/quit", "/exit"):
                return
            if line.strip():
                self._act(line)

    def _act(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        try:
            if not name.startswith("/"):
                self._write(lambda: self._conversation.ask(line))
            elif name in self._commands:
                self._commands[name](rest.strip())
            else:
                raise UserError(name, "is not a command", "/help lists them")
        except UserError as error:
            tell(f"Error: {error}")
        except KeyboardInterrupt as error:
            if isinstance(error, Terminated):
                raise
            tell("[stopped]")

    def _line(self) -> str | None:
        """The next line, or several that are joined; None at the end of the input."""
        lines: list[str] = []
        while True:
            try:
                line = _read(MORE if lines else PROMPT)
            except KeyboardInterrupt as error:
                if isinstance(error, Terminated):
                    raise
                tell("\n[/quit or Ctrl-D leaves]")
                lines.clear()
                continue
            if line is None:
                return "\n".join(lines) if lines else None
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                return "\n".join(lines)

    def _write(self, begin: Callable[[], Stream]) -> None:
        """Write an answer as it is generated, and keep it."""
        with self._interrupts.during_answer():
            pieces: list[Piece] = []
            times = [time.perf_counter()]
            stream = begin()
            if self._conversation.dropped:
                tell(f"[the {self._conversation.dropped} oldest messages no longer fit and are left out]")
            try:
                for piece in stream:
                    pieces.append(piece)
                    times.append(time.perf_counter())
                    click.echo(piece.text, nl=False)
                    if self._interrupts.stopped:
                        break
            finally:
                stream.close()
                click.echo()
                self._conversation.answered("".join(piece.text for piece in pieces))
        if self._interrupts.stopped:
            tell("[stopped]")
        elif pieces[-1].finish_reason == "length":
            tell("[cut: at max_tokens, which /set changes, or at the end of the context]")
        if self._stats:
            tell(_figures(stream.sequence, sum(len(piece.tokens) for piece in pieces), times))

    def _toggle(self, _: str) -> None:
        self._stats = not self._stats
        tell(f"[figures {'shown' if self._stats else 'hidden'}]")


def _figures(sequence: Sequence, tokens: int, times: list[float]) -> str:
    """Tokens and speed of an answer. times: of the question and of each piece, in seconds."""
    if len(times) < 2:
        return "[no token]"
    speed = f"{(tokens - 1) / (times[-1] - times[1]):,.0f} tokens/s, " if tokens > 1 else ""
    return (
        f"[{tokens} tokens, {speed}first after {1000 * (times[1] - times[0]):,.0f} ms; "
        f"prompt of {sequence.prompt_tokens:,} tokens, {sequence.reused:,} of them cached]"
    )


def _read(prompt: str) -> str | None:
    """A line of standard input, edited if it is a terminal; None at its end."""
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - it can be closed
        return None
    try:
        if sys.stdin.isatty():
            return input(prompt)
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    except EOFError:
        click.echo()
        return None
    except UnicodeDecodeError as error:
        raise UserError("prompt", f"standard input is not UTF-8 at byte {error.start}", "convert it (iconv)") from None


@contextmanager
def _line_history(file: Path | None) -> Generator[None]:
    """Let `input` edit lines and recall earlier ones; with a file, those of earlier sessions too."""
    try:
        import readline
    except ImportError:  # Windows has editing of its own
        yield
        return
    if file is not None:
        with suppress(FileNotFoundError):
            readline.read_history_file(file)
    try:
        yield
    finally:
        if file is not None:
            readline.write_history_file(file)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", help="Variant to run, such as int8; by default the bundle's first.")
@click.option("--threads", type=int, help="ONNX Runtime threads; by default one per core.")
@DEVICE
@click.option("--prompt-cache", type=click.Path(path_type=Path), help="Folder that keeps the KV cache of prompts.")
@KV_CACHE
@click.option("--system", help="System message.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Most tokens of an answer.")
@click.option("--temperature", type=float, help="0 always takes the likeliest token.")
@click.option("--top-p", type=float, help="Keep the likeliest tokens whose probabilities add up to this.")
@click.option("--seed", type=int, help="The same seed gives the same answers.")
@click.option(
    "--when-full",
    type=click.Choice(["stop", "drop"]),
    default="stop",
    show_default=True,
    help="When the conversation fills the context: refuse to go on, or leave the oldest turns out.",
)
@click.option("--load", "loaded", help="Go on with a conversation that /save wrote.")
@click.option("--history", type=click.Path(path_type=Path), help="File that keeps the typed lines for later sessions.")
@click.option("--stats", is_flag=True, help="Show tokens and speed of each answer.")
def chat(
    bundle: Path, variant: str | None, threads: int | None, device: Device, prompt_cache: Path | None,
    kv_cache: KVCache, system: str | None, when_full: WhenFull, loaded: str | None, history: Path | None, stats: bool,
    **sampling: Any,
) -> None:  # fmt: skip
    """Talk with a model that has a chat template. /help lists what can be typed besides questions."""
    from kiara_runtime.commands.conversation import Conversation
    from kiara_runtime.loading import load
    from kiara_runtime.sampling import sampling_params
    from kiara_runtime.tokens import can_chat

    given = {name: value for name, value in sampling.items() if value is not None}
    sampling_params(given)
    interrupts = _Interrupts()
    with load(bundle, variant, threads, device, 1, prompt_cache=prompt_cache, kv_cache=kv_cache) as model:
        if not can_chat(model.tokenizer):
            raise UserError(bundle, "has no chat template", "continue a plain prompt with `kiara-run generate`")
        conversation = Conversation(model, given, system, when_full)
        if loaded is not None:
            conversation.load(loaded)
        if sys.stdin is not None and sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison]
            tell(f"{bundle.name}: context of {model.context_length:,} tokens. /help lists the commands.")
        with interrupts.heard(), _line_history(history):
            _Terminal(conversation, interrupts, stats).run()
