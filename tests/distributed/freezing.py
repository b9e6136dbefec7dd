"""Two processes of which the second is frozen while the first awaits it with all patience.

python -m torch.distributed.run --nproc_per_node 2 -m tests.distributed.freezing
"""

from __future__ import annotations

import os
import signal
import sys

from utils import cli
from utils.distributed.group import await_all, is_first, process_group


def main(_: object) -> None:
    """Stop the second process once both have started."""
    with process_group("cpu"):
        await_all()
        if not is_first():
            os.kill(os.getpid(), signal.SIGSTOP)
        await_all()


if __name__ == "__main__":
    sys.exit(cli.run_script(main, cli.Parser(prog="freezing"), []))
