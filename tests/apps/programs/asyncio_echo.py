"""An echo server and its client on asyncio, or on uvloop.

    asyncio_echo.py serve  LOOP PORT
    asyncio_echo.py work   LOOP PORT CONNECTIONS ROUNDS BULK_BYTES

The client's connections exchange messages of random lengths (the same in every run), then send bulk
data while they read it back, and end by half-closing. It prints one digest over all that came back,
and the rate of small exchanges on the last line.
"""

import asyncio
import hashlib
import random
import signal
import sys
import time


def run(loop, coroutine):
    if loop == "uvloop":
        import uvloop

        uvloop.install()
    return asyncio.run(coroutine)


async def echo(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def serve(port):
    server = await asyncio.start_server(echo, "10.77.0.1", port)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with server:
        await stop.wait()


async def exchange(number, port, rounds, bulk):
    chance = random.Random(number)
    digest = hashlib.sha256()
    reader, writer = await asyncio.open_connection("10.77.0.1", port)
    for _ in range(rounds):
        message = chance.randbytes(chance.choice([1, 7, 100, 1000, 5000, 70_000]))
        writer.write(message)
        answer = await reader.readexactly(len(message))
        assert answer == message
        digest.update(answer)

    async def send():
        left = bulk
        while left > 0:
            piece = chance.randbytes(min(left, 100_000))
            writer.write(piece)
            await writer.drain()
            left -= len(piece)
        writer.write_eof()

    sending = asyncio.create_task(send())
    while data := await reader.read(1 << 16):
        digest.update(data)
    await sending
    writer.close()
    await writer.wait_closed()
    return digest.digest()


async def ping(port, rounds):
    reader, writer = await asyncio.open_connection("10.77.0.1", port)
    start = time.monotonic()
    for _ in range(rounds):
        writer.write(b"0123456789" * 10)
        await reader.readexactly(100)
    seconds = time.monotonic() - start
    writer.close()
    await writer.wait_closed()
    return rounds / seconds


async def work(port, connections, rounds, bulk):
    digests = await asyncio.gather(
        *(exchange(n, port, rounds, bulk) for n in range(connections))
    )
    print("digest", hashlib.sha256(b"".join(digests)).hexdigest())
    print("exchanges/s", round(await ping(port, rounds * 20)))


def main():
    what, loop, *numbers = sys.argv[1:]
    numbers = [int(number) for number in numbers]
    run(loop, serve(*numbers) if what == "serve" else work(*numbers))


main()
