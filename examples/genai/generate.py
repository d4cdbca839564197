"""A bundle in onnxruntime-genai, as it is: pip install onnxruntime-genai

python examples/genai/generate.py bundles/demo "def main("
"""

import sys

import onnxruntime_genai as genai


def main(bundle: str, prompt: str) -> None:
    model = genai.Model(bundle)
    tokenizer = genai.Tokenizer(model)
    ids = tokenizer.encode(prompt)
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + 32, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(ids)
    stream = tokenizer.create_stream()
    while not generator.is_done():
        generator.generate_next_token()
        print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
