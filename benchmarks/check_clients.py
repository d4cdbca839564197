"""Popular client packages, with their defaults, against the server; a row for each thing that one of them does.

python benchmarks/check_clients.py [--python .venv/clients/bin/python] [--npm .venv/clients/npm] [--only NAME]

A tiny model is trained and exported first (a minute), because only the server's format matters here: grammars hold what
it writes. Each client runs in the interpreter that --python names, whose packages `benchmarks/clients.txt` lists.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

HEAD = """
import asyncio, os
from pydantic import BaseModel

class Verdict(BaseModel):
    "A verdict."
    ok: bool

def switch(on: bool) -> str:
    "Turn the light on or off."
    return "done"

def row(feature, value):
    print(f"| {CLIENT} | {feature} | {str(value)[:60]!r} |", flush=True)

HELLO = [{"role": "user", "content": "hello"}]
"""
CLIENTS = {
    "openai": """
import openai
client = openai.OpenAI()
row("chat", client.chat.completions.create(model="small", messages=HELLO, max_tokens=8).choices[0].message.content)
tool = openai.pydantic_function_tool(Verdict)
asked = {"model": "small", "messages": HELLO, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
row("tools", client.chat.completions.parse(**asked).choices[0].message.tool_calls[0].function.parsed_arguments)
row("responses", client.responses.parse(model="small", input="hello", text_format=Verdict).output_parsed)
row("embeddings", client.embeddings.create(model="small", input=["hello", "world"]).data[1].embedding[:3])
""",
    "openai-agents": """
from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled
set_tracing_disabled(True)
row("typed", Runner.run_sync(Agent(name="a", model="small", output_type=Verdict), "hello").final_output)
once = ModelSettings(tool_choice="required", parallel_tool_calls=False)
light = {"tools": [function_tool(switch)], "tool_use_behavior": "stop_on_first_tool", "model_settings": once}
row("tools", Runner.run_sync(Agent(name="a", model="small", **light), "hello").final_output)

async def streamed():
    result = Runner.run_streamed(Agent(name="a", model="small", output_type=Verdict), "hello")
    async for _ in result.stream_events():
        pass
    return result.final_output

row("streamed", asyncio.run(streamed()))
""",
    "pydantic-ai": """
from pydantic_ai import Agent, NativeOutput
for name in ("openai-chat:small", "openai-responses:small"):
    row(f"tools, {name}", Agent(name, output_type=Verdict).run_sync("hello").output)
    row(f"typed, {name}", Agent(name, output_type=NativeOutput(Verdict)).run_sync("hello").output)
""",
    "instructor": """
import instructor
client = instructor.from_provider("openai/small")
row("typed", client.chat.completions.create(messages=HELLO, response_model=Verdict))
""",
    "langchain-openai": """
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
model = ChatOpenAI(model="small", max_tokens=100)
row("chat", model.invoke("hello").content)
row("streamed", "".join(chunk.content for chunk in model.stream("hello")))
row("typed", model.with_structured_output(Verdict).invoke("hello"))
row("tools", model.bind_tools([tool(switch)], tool_choice="any").invoke("hello").tool_calls[0]["args"])
row("responses", ChatOpenAI(model="small", max_tokens=8, use_responses_api=True).invoke("hello").content)
vectors = OpenAIEmbeddings(model="small", check_embedding_ctx_length=False)  # its default counts tokens with a download
row("embeddings", vectors.embed_documents(["hello", "world"])[1][:3])
""",
    "litellm": """
import litellm
schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
tools = [{"type": "function", "function": {"name": "switch", "parameters": schema}}]
asked = {"model": "openai/small", "messages": HELLO, "tools": tools, "tool_choice": "required"}
row("tools", litellm.completion(**asked, max_tokens=100).choices[0].message.tool_calls[0].function.arguments)
asked = {"model": "anthropic/small", "messages": HELLO, "api_base": os.environ["ANTHROPIC_BASE_URL"]}
row("messages", litellm.completion(**asked, max_tokens=8).choices[0].message.content)
row("embeddings", litellm.embedding(model="openai/small", input=["hello"]).data[0]["embedding"][:3])
""",
    "llama-index": """
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
shared = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": "none", "max_tokens": 100}
model = OpenAILike(model="small", is_chat_model=True, is_function_calling_model=True, **shared)
row("chat", model.complete("hello").text)
row("typed", model.structured_predict(Verdict, PromptTemplate("hello")))
vectors = OpenAILikeEmbedding(model_name="small", api_base=os.environ["OPENAI_BASE_URL"], api_key="none")
row("embeddings", vectors.get_text_embedding("hello")[:3])
""",
    "anthropic": """
import anthropic
client = anthropic.Anthropic()
asked = {"model": "small", "max_tokens": 100, "messages": HELLO}
with client.messages.stream(**asked) as stream:
    row("streamed", "".join(stream.text_stream))
tool = {"name": "judge", "input_schema": Verdict.model_json_schema()}
asked |= {"tools": [tool], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
row("tools", client.messages.create(**asked).content[0].input)
""",
    "ollama": """
import ollama
client = ollama.Client(host=os.environ["OLLAMA_HOST"])
row("list", [model.model for model in client.list().models])
asked = {"messages": HELLO, "tools": [switch], "options": {"num_predict": 20}}
row("chat with tools", client.chat("small", **asked).message.content)
schema = {**Verdict.model_json_schema(), "additionalProperties": False}
row("typed", client.generate("small", "hello", format=schema).response)
row("embeddings", client.embed("small", ["hello", "world"]).embeddings[1][:3])
""",
    "llm": """
import pathlib, tempfile
os.environ["LLM_USER_PATH"] = tempfile.mkdtemp()
known = "{model_id: local, model_name: small, supports_tools: true, supports_schema: true, api_base: %s}"
settings = pathlib.Path(os.environ["LLM_USER_PATH"], "extra-openai-models.yaml")
settings.write_text("- " + known % os.environ["OPENAI_BASE_URL"])
import llm
model = llm.get_model("local")
model.key = "none"
row("chat", model.prompt("hello", max_tokens=8).text())
schema = {**Verdict.model_json_schema(), "additionalProperties": False}
row("typed", model.prompt("hello", schema=schema, stream=False).text())
found = model.prompt("hello", tools=[switch], max_tokens=100).tool_calls()
row("tools", [(call.name, call.arguments) for call in found])
""",
}
JAVASCRIPT = {
    "ai-sdk": """
import { generateObject, generateText, streamText, embed, tool } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { z } from "zod";
const baseURL = process.env.OPENAI_BASE_URL;
const row = (feature, value) => console.log(`| ai-sdk | ${feature} | ${JSON.stringify(value).slice(0, 60)} |`);
const light = { light: tool({ inputSchema: z.object({ on: z.boolean() }), execute: async ({ on }) => on }) };
const openai = createOpenAI({ baseURL, apiKey: "none" }), like = createOpenAICompatible({ name: "kiara", baseURL });
const asked = { prompt: "hello", maxOutputTokens: 100 };
const forced = { tools: light, toolChoice: "required", maxOutputTokens: 1000 };
for (const [name, model] of [["openai", openai("small")], ["openai-compatible", like("small")]]) {
  row(`chat, ${name}`, (await generateText({ model, ...asked, maxOutputTokens: 16 })).text);
  let streamed = "";
  for await (const part of streamText({ model, ...asked, maxOutputTokens: 16 }).textStream) streamed += part;
  row(`streamed, ${name}`, streamed);
  const { toolResults } = await generateText({ model, ...asked, ...forced });
  row(`tools, ${name}`, toolResults.map((result) => result.output));
}
const typed = { model: openai("small"), schema: z.object({ ok: z.boolean() }), ...asked };
row("typed, openai", (await generateObject(typed)).object);
row("embeddings", (await embed({ model: openai.embedding("small"), value: "hello" })).embedding.slice(0, 3));
""",
}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SETTINGS = {
    "tokenizer.vocab_size": 1024, "model.context_length": 2048, "model.hidden_size": 64, "model.intermediate_size": 128,
    "model.num_attention_heads": 2, "model.num_key_value_heads": 1, "model.num_hidden_layers": 2,
    "training.max_steps": 60, "training.batch_size": 4, "training.sequence_length": 256, "training.compile": "never",
}  # fmt: skip


def made(folder: Path) -> Path:
    """A bundle named `small` with a chat template."""
    from serving import with_chat

    import kiara

    kiara.train(
        folder / "run", {**SETTINGS, "data.train": str(REPOSITORY / "docs"), "data.prepared_dir": str(folder / "data")}
    )
    kiara.export(folder / "run", folder / "plain" / "small", ["int8"], embeddings=True)
    return with_chat(folder / "plain" / "small", folder / "small", TEMPLATE)


def main() -> None:
    from serving import served

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", type=Path, default=Path(".venv/clients/bin/python"))
    parser.add_argument("--npm", type=Path, default=Path(".venv/clients/npm"), help="Folder with node_modules.")
    parser.add_argument("--only", choices=[*CLIENTS, *JAVASCRIPT])
    arguments = parser.parse_args()
    failed = list[str]()
    with tempfile.TemporaryDirectory() as folder, served(made(Path(folder))) as server:
        urls = {"OPENAI_BASE_URL": f"{server.url}/v1", "ANTHROPIC_BASE_URL": server.url, "OLLAMA_HOST": server.url}
        environ = {**os.environ, **urls, "OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none"}
        print("| client | feature | found |\n|---|---|---|", flush=True)
        for name in [arguments.only] if arguments.only else [*CLIENTS, *JAVASCRIPT]:
            if name in CLIENTS:
                python = sys.executable if name == "llm" else arguments.python.absolute()  # llm needs another openai
                words, where = [python, "-c", f"CLIENT = {name!r}\n{HEAD}{CLIENTS[name]}"], None
            else:
                words, where = ["node", "--input-type=module", "--eval", JAVASCRIPT[name]], arguments.npm
            done = subprocess.run(words, env=environ, cwd=where, capture_output=True, text=True, check=False)
            print(done.stdout, end="", flush=True)
            if done.returncode:
                failed.append(name)
                print(f"| {name} | | failed: {(done.stderr.strip().splitlines() or ['?'])[-1]} |", flush=True)
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed")


if __name__ == "__main__":
    main()
