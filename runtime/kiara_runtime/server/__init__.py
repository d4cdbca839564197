"""`kiara-run serve`: the engine behind the two endpoints of OpenAI's that generate text, and what belongs to them.

api         what requests may hold, answers what goes back: checks, answers and the OpenAPI document are made of them
wording     a running request's pieces as OpenAI's choices
work        a request's sequences in the engine, with its deadline and its client's leaving
guard       who may ask, and how every refusal looks
app         the routes
serving     sockets, threads, signals

Nothing here computes or samples. Needs the extra `server`; the rest of the runtime never imports it.
"""

from kiara_runtime.server.guard import Guard, read_keys
from kiara_runtime.server.lifecycle import serve
from kiara_runtime.server.service import Settings

__all__ = ["Guard", "Settings", "read_keys", "serve"]
