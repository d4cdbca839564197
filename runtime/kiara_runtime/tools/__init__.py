"""Tools that a model may call: their definitions, prompts, the grammar that holds calls, and reading them.

Nothing here runs a tool; `kiara_runtime.functions` does. What grammars are is in `sampling.grammar`.
"""

from kiara_runtime.tools.call_format import CallFormat
from kiara_runtime.tools.call_reader import CallPart, CallReader, ToolCall, call_id, gathered
from kiara_runtime.tools.conversation import Conversation, conversation
from kiara_runtime.tools.definitions import Choice, Definition, ToolUse, tool_use

__all__ = [
    "CallFormat",
    "CallPart",
    "CallReader",
    "Choice",
    "Conversation",
    "Definition",
    "ToolCall",
    "ToolUse",
    "call_id",
    "conversation",
    "gathered",
    "tool_use",
]
