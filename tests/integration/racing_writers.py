"""One client process of a race: for each line of standard input, a key, put it create-only from several writers at
once, and print how many won, and what the others got. Run by test_coordination.py."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

from coffre.client import ClientOptions, ObjectInfo, connect


async def race(config: Path, writers: int) -> None:
    options = ClientOptions(lock_patience=60.0)
    clients = [await connect(config, options=options) for _ in range(2)]
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    while key := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        outcomes = await asyncio.gather(
            *(
                clients[number % 2].put("race", key, f"{sys.argv[3]} {number}".encode(), if_absent=True)
                for number in range(writers)
            ),
            return_exceptions=True,
        )
        won = [outcome.version for outcome in outcomes if isinstance(outcome, ObjectInfo)]
        lost = Counter(type(each).__name__ for each in outcomes if not isinstance(each, ObjectInfo))
        print(json.dumps({"won": won, "lost": lost}), flush=True)
    for client in clients:
        await client.aclose()


if __name__ == "__main__":
    asyncio.run(race(Path(sys.argv[1]), int(sys.argv[2])))
