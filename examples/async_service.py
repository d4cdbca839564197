"""An asyncio service: a line of text in, its continuation out, many clients at once. Needs kiara-runtime only.

python examples/async_service.py bundles/demo 8765
printf 'def main(\n' | nc 127.0.0.1 8765
"""

import asyncio
import sys
from contextlib import aclosing, closing, suppress

import kiara_runtime


async def serve(bundle: str, port: int) -> None:
    with closing(kiara_runtime.AsyncModel(kiara_runtime.load(bundle))) as model:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                prompt = (await reader.readline()).decode("utf-8", "replace").rstrip("\n")
                async with aclosing(model.stream(prompt, max_tokens=40, temperature=0.0)) as pieces:
                    async for piece in pieces:
                        writer.write(piece.text.encode())
                        await writer.drain()  # fails when the client has left, which ends the generation
                writer.close()
                await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", port, limit=1 << 16)
        print(f"listening on port {server.sockets[0].getsockname()[1]}", flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
