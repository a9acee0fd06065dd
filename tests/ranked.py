"""A program as torchrun starts it: in several processes, here forked ones."""

import os
from collections.abc import Callable
from pathlib import Path

from torch.distributed import TCPStore

from tests.forked import Done, start, wait


def ranked(main: Callable[[], int | None], processes: int, folder: Path) -> list[Done]:
    """How `main` ends in each of them, by their ranks."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent

    def of(rank: int) -> Callable[[], int | None]:
        def one() -> int | None:
            os.environ |= {
                "TORCHELASTIC_RUN_ID": "test",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "0",
                "WORLD_SIZE": str(processes),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
            return main()

        return one

    folders = [folder / f"rank{rank}" for rank in range(processes)]
    started = [(start(of(rank), out), out) for rank, out in enumerate(folders)]
    return [wait(*process) for process in started]
