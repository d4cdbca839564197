"""The Python package `openai` with a Kiara server: list, complete, stream, chat.

pip install openai
kiara-run serve bundles/demo
python examples/clients/openai_client.py http://127.0.0.1:8000/v1 "def main("
"""

import os
import sys

import openai


def main(url: str, prompt: str) -> None:
    key = os.environ.get("KIARA_API_KEY", "none")  # the package wants one; the server does only with --api-key-file
    client = openai.OpenAI(base_url=url, api_key=key)
    model = client.models.list().data[0]
    print(f"{model.id}: {model.to_dict()['context_length']} tokens of context")

    whole = client.completions.create(model=model.id, prompt=prompt, max_tokens=24, temperature=0, stop="\n\n")
    print(f"\ngreedy, ended by {whole.choices[0].finish_reason}:\n{prompt}{whole.choices[0].text}")

    print(f"\nsampled, as it comes:\n{prompt}", end="")
    options = {"include_usage": True}
    chunks = client.completions.create(
        model=model.id, prompt=prompt, max_tokens=24, temperature=0.8, seed=1, stream=True, stream_options=options
    )
    for chunk in chunks:
        for choice in chunk.choices:
            print(choice.text, end="", flush=True)
        if chunk.usage:
            print(f"\n({chunk.usage.completion_tokens} tokens)")

    if model.to_dict()["chat"]:
        said = client.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": prompt}], max_completion_tokens=24, temperature=0
        )
        print(f"\nchat: {said.choices[0].message.content}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except openai.APIError as error:
        sys.exit(f"{type(error).__name__}: {error}")
