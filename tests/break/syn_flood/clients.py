# Clients that come for the first time, each from an address of its own: how many were served within the time.
#   clients.py SERVER PORT NETWORK COUNT SECONDS
import asyncio
import sys

server, port, network, count, limit = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])


async def served(number):
    await asyncio.sleep(number * 0.02)
    try:
        async with asyncio.timeout(limit):
            reader, writer = await asyncio.open_connection(server, port, local_addr=(f"{network}.{number + 1}", 0))
            greeting = await reader.read(1)
            writer.close()
            return greeting == b"x"
    except (OSError, TimeoutError):
        return False


async def main():
    print(sum(await asyncio.gather(*(served(number) for number in range(count)))))


asyncio.run(main())
