"""Schemathesis against a running server: `make check-api`. Every phase, 300 examples an operation, all checks.

What is left is told, not excused: a schema can say that a grammar is a text, not that it is one that llguidance
reads, so that a random one is refused with 400 though the schema allows it (ST202).

python benchmarks/check_api.py BUNDLE SCHEMATHESIS [EXAMPLES]
"""

import re
import signal
import subprocess
import sys


def main(bundle: str, schemathesis: str, examples: str = "300") -> int:
    words = [sys.executable, "-m", "kiara_runtime.cli", "serve", bundle, "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = ""
        while "is loaded" not in (line := server.stderr.readline()):
            assert line, "the server ended"
            url = (re.findall(r"on (http://\S+)", line) or [url])[0]
        log = subprocess.Popen(["tail", "-n", "1"], stdin=server.stderr, stdout=subprocess.DEVNULL)  # keeps it flowing
        words = [schemathesis, "--no-color", "run", f"{url}/openapi.json", "-n", examples, "--continue-on-failure"]
        code = subprocess.run(words, check=False).returncode
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        log.wait(10)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
