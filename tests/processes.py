"""Processes of one cluster on this machine, for tests."""

import json
import os
import subprocess
import sys


def tf_config(index, workers, port):
    """The `TF_CONFIG` of one of some workers."""
    cluster = {"worker": [f"127.0.0.1:{port + i}" for i in range(workers)]}
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": cluster, "task": task})


def free_ports(first, workers):
    """The first of some ports that no other test session is likely to use."""
    return first + os.getpid() % 1000 * workers


def start(module, *arguments, config=None):
    """Runs a module in a process of its own; `config` is its `TF_CONFIG`."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    environment.pop("TF_CONFIG", None)
    if config is not None:
        environment["TF_CONFIG"] = config
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end_of(process):
    """Waits for a process to end: its code, and what it printed."""
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, output
