"""A batch job: JSON lines with a `prompt` in, the same lines with a `text` out. Goes on where it was interrupted.

python examples/batch_job.py bundles/demo prompts.jsonl texts.jsonl
"""

import json
import sys
from itertools import islice
from pathlib import Path

import kiara_runtime

TOGETHER = 32  # prompts handed over at once; the model computes as many of them in a pass as it has slots


def main(bundle: str, source: str, target: str) -> None:
    model = kiara_runtime.load(bundle)
    out = Path(target)
    done = len(out.read_text("utf-8").splitlines()) if out.is_file() else 0
    with Path(source).open(encoding="utf-8") as lines, out.open("a", encoding="utf-8") as results:
        rest = islice(lines, done, None)
        while records := [json.loads(line) for line in islice(rest, TOGETHER)]:
            prompts = [record["prompt"] for record in records]
            texts = model.generate_all(prompts, max_tokens=48, temperature=0.0)
            for record, (generation,) in zip(records, texts, strict=True):
                results.write(json.dumps({**record, "text": generation.text}, ensure_ascii=False) + "\n")
            results.flush()
            done += len(records)
            print(f"{done} done", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
