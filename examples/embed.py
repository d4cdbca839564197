"""Text generation inside a program: load a bundle, generate, stream. Needs kiara-runtime only.

python examples/embed.py bundles/demo "def main("
"""

import sys

import kiara_runtime


def main(bundle: str, prompt: str) -> None:
    model = kiara_runtime.load(bundle)

    whole = model.generate(prompt, max_tokens=40, temperature=0.0, stop=["\n\n"])
    print(f"greedy, {len(whole.tokens)} tokens, ended by {whole.finish_reason}:")
    print(prompt + whole.text)

    print("\nsampled, as it comes:")
    print(prompt, end="")
    for piece in model.stream(prompt, max_tokens=40, temperature=0.8, top_p=0.95, seed=1):
        print(piece.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
