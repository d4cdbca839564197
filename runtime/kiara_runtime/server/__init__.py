"""`kiara-run serve`: an HTTP server with the APIs of OpenAI, Anthropic and Ollama, and a web page.

http        sockets, connections with time limits
address     where the server listens
lifecycle   start, signals, draining
guard       keys, hosts and origins; errors as HTTP responses
routes      the routes, each a few lines over `service`
service     what all requests share; whether the server is loading, ready or draining
models      which models there are, and which are loaded
served      a loaded model, and what the endpoints ask of it
jobs        the sequences of a request in the engine, with its deadline and its client
openai/, responses/, anthropic/, ollama/    requests and responses in the formats of these APIs
records     metrics and log lines
traces      spans for OpenTelemetry

Nothing here computes or samples. Needs the extra `server`; the rest of the runtime never imports it.
"""

from kiara_runtime.server.address import Address
from kiara_runtime.server.guard import Guard, read_keys
from kiara_runtime.server.lifecycle import serve
from kiara_runtime.server.models import Limits
from kiara_runtime.server.service import Settings

__all__ = ["Address", "Guard", "Limits", "Settings", "read_keys", "serve"]
