"""Schemathesis against a running server: `make check-api`. Every phase, 300 examples an operation, all checks.

The document calls a grammar a text of the format `lark`, which JSON Schema does not know: `api_formats` makes such.
What no schema can say is refused though the schema allows it (ST202): a thousand empty messages where the context is
below 5,500 tokens, or a ban of the very token that a grammar asks for.

python benchmarks/check_api.py BUNDLE SCHEMATHESIS [EXAMPLES]
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

SECONDS = "300"  # for the longest answer


def main(bundle: str, schemathesis: str, examples: str = "300") -> int:
    words = [sys.executable, "-m", "kiara_runtime.commands.main", "serve", bundle, "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = ""
        while "is loaded" not in (line := server.stderr.readline()):
            assert line, "the server ended"
            url = (re.findall(r"on (http://\S+)", line) or [url])[0]
        log = subprocess.Popen(["tail", "-n", "1"], stdin=server.stderr, stdout=subprocess.DEVNULL)  # keeps it flowing
        words = [schemathesis, "--no-color", "run", f"{url}/openapi.json", "-n", examples, "--continue-on-failure"]
        words += ["--request-timeout", SECONDS]
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        formats = {"SCHEMATHESIS_HOOKS": "api_formats", "PYTHONPATH": os.pathsep.join(paths)}
        code = subprocess.run(words, check=False, env=os.environ | formats).returncode
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        log.wait(10)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
