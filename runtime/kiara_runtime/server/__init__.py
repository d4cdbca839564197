"""`kiara-run serve`: an HTTP server with OpenAI's completions and chat endpoints, and a web page.

http        sockets, connections with time limits
lifecycle   start, signals, draining
guard       keys, hosts and origins; errors as HTTP responses
routes      the routes, each a few lines over `service`
service     the model behind the routes: loading, ready or draining
jobs        the sequences of a request in the engine, with its deadline and its client
openai/     requests, responses and choices in OpenAI's formats
records     metrics and log lines

Nothing here computes or samples. Needs the extra `server`; the rest of the runtime never imports it.
"""

from kiara_runtime.server.guard import Guard, read_keys
from kiara_runtime.server.lifecycle import serve
from kiara_runtime.server.service import Settings

__all__ = ["Guard", "Settings", "read_keys", "serve"]
