"""The name of this process among all machines."""

import os
import socket


def process_name() -> str:
    """Return the host and the process id: "gpu-1-4711"."""
    return f"{socket.gethostname()}-{os.getpid()}"
