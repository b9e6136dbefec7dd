"""Start processes that share their work out of one that has imported torch, which takes longest of all that they do.

    python -m tests.distributed.forked PROCESSES STORE MODULE ARGUMENT ...

Each of them runs `MODULE` as a script. They find each other by the file STORE, as those of `--device cpu,cpu` do.
"""

import os
import runpy
import sys

import torchvision  # noqa: F401 (and all of torch that it imports)


def start(rank: int, processes: str, store: str, words: list[str]) -> int:
    """Return the number of a new process that runs a module."""
    child = os.fork()
    if child:
        return child
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update(own, REPYOLO_STORE=store)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    sys.exit()


def main(processes: str, store: str, *words: str) -> int:
    """Return 0 where all processes end well."""
    started = [start(rank, processes, store, list(words)) for rank in range(int(processes))]
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in started)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
