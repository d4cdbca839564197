"""Facts out of a text, as JSON that always follows a schema. Needs kiara-runtime[structured].

python examples/extract_json.py bundles/demo "Invoice 17 of 3 May 2026, 120.50 euros, paid"

The schema is never broken. Whether the values are right depends on the model.
"""

import json
import sys

import kiara_runtime

SCHEMA = {
    "type": "object",
    "properties": {
        "number": {"type": "integer", "minimum": 0, "maximum": 100000},
        "date": {"type": "string", "format": "date"},
        "amount": {"type": "number", "minimum": 0, "maximum": 1000000},
        "paid": {"type": "boolean"},
    },
    "required": ["number", "date", "amount", "paid"],
    "additionalProperties": False,
}


def extract(model: kiara_runtime.Model, text: str) -> dict[str, object]:
    prompt = f"Text: {text}\nThe same as JSON: "
    answer = model.generate(prompt, json_schema=SCHEMA, max_tokens=200, temperature=0.0)
    return json.loads(answer.text)


if __name__ == "__main__":
    print(json.dumps(extract(kiara_runtime.load(sys.argv[1]), sys.argv[2]), indent=2))
