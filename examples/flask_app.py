"""A web app of your own with a model inside: completions of a text, streamed. Needs kiara-runtime and Flask.

python examples/flask_app.py bundles/demo
curl -N -d "def main(" http://127.0.0.1:5000/complete
"""

import sys
from collections.abc import Iterator
from contextlib import closing

from flask import Flask, Response, request

import kiara_runtime


def create_app(bundle: str) -> Flask:
    app = Flask(__name__)
    model = kiara_runtime.load(bundle)  # once; the threads of a process share it

    @app.post("/complete")
    def complete() -> Response:
        prompt = request.get_data(as_text=True)
        stream = model.stream(prompt, max_tokens=64, temperature=0.7)  # refuses a bad prompt here, before the answer

        def pieces() -> Iterator[str]:
            with closing(stream):  # a client that leaves ends the generation
                for piece in stream:
                    yield piece.text

        return Response(pieces(), mimetype="text/plain")

    @app.errorhandler(kiara_runtime.UserError)
    def refused(error: kiara_runtime.UserError) -> tuple[dict[str, str], int]:
        return {"field": str(error.field), "problem": error.problem, "remedy": error.remedy}, 400

    return app


if __name__ == "__main__":
    create_app(sys.argv[1]).run(port=5000)
