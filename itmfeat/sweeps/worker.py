"""The life of a worker process: one stack, told through the pipe that the command left open."""

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection

from itmfeat.sweeps.work import do


def main() -> None:
    """Take up the pipe, and a job from it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the command ends its processes
    connection = Connection(int(sys.argv[1]))
    job = connection.recv()
    sys.argv = job.argv  # manifests tell of the command that the user gave
    threading.Thread(target=_follow, args=(connection,), daemon=True).start()
    do(job, connection.send, connection.send)
    connection.send(None)


def _follow(connection: Connection) -> None:
    """End this process when the command is gone, so that the locks of its runs are free at once."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(1)


if __name__ == "__main__":
    main()
