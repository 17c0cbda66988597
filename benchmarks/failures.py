"""Failure drills: kills, full disks and refused files, at every write.

    python -m benchmarks.failures --count=100

Every system call by which a recorded training, or the build of an index,
changes its directory is found by running it once under `strace`. Then it is run
again and again, and at one of these calls, drawn at random,

- *killed*: the process gets a SIGKILL, before the call is made;
- *disk full*: the call fails with ENOSPC, and so does every one after it;
- *refused*: the call fails once with EIO, as a network's file system does.

After that the directory is read as a user would read it, the work is done again
in the same directory, and the result compared with that of work that nothing
disturbed. `--drills` and `--works` choose, `--seed` draws other calls. It needs
Linux and `strace`; of each call the table tells how often

- the process *ended by itself*, with an exception or without;
- everything that had been listed before *is listed*;
- everything that is listed *is whole*: equal, bit for bit, to what the same
  training saved, or the same build wrote, without a failure;
- the same work *goes on* and *ends the same*, bit for bit.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable

import keras
import numpy as np
from absl import app, flags

import keras_tracin as kt

_COUNT = flags.DEFINE_integer("count", 100, "Calls to fail at, each drill.")
_SEED = flags.DEFINE_integer("seed", 0, "Draws the calls.")
_DRILLS = flags.DEFINE_list("drills", ["killed", "disk full", "refused"], "")
_WORKS = flags.DEFINE_list("works", ["training", "index"], "What is disturbed.")

# System calls that change a directory or a file in it.
_CALLS = (
    "write,pwrite64,writev,pwritev,openat,rename,renameat,renameat2,link,"
    "linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate,fsync,fdatasync"
)
# What happens at the n-th call of a kind; `+` is at every one after it as well.
_INJECTED = {
    "killed": "signal=SIGKILL:when={n}",
    "disk full": "error=ENOSPC:when={n}+",
    "refused": "error=EIO:when={n}",
}
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")
_EPOCHS = 3
_EXAMPLES = 600


@dataclasses.dataclass(frozen=True)
class Call:
    """A system call: the n-th of its name in the main thread."""

    name: str
    number: int
    target: str


@dataclasses.dataclass(frozen=True)
class Work:
    """What is disturbed.

    Attributes:
        run: does the work in a directory; `told(text)` tells what is saved.
        saved: digests of what the directory holds for a user, by the names
            that were told when they were listed.
    """

    run: Callable[[pathlib.Path, Callable[[str], None]], object]
    saved: Callable[[pathlib.Path], dict[str, str]]


def _model() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activation="relu"),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    return model


def _data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(_EXAMPLES, 4)).astype("float32")
    return x, (x[:, 0] > 0).astype(int)


def _train(
    directory: pathlib.Path, told: Callable[[str], None] = lambda _: None
) -> keras.Model:
    """Trains from the last state that is saved, or from the beginning."""
    model, epoch = _model(), 0
    if (directory / "run.json").exists():
        run = kt.TrainingRun(directory)
        epoch = len(run)
        run.restore(model)
    tell = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: [
            told(str(saved.epoch)) for saved in kt.TrainingRun(directory)
        ]
    )
    model.fit(
        *_data(),
        epochs=_EPOCHS,
        initial_epoch=epoch,
        shuffle=False,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(directory), tell],
    )
    return model


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _checkpoints(directory: pathlib.Path) -> dict[str, str]:
    """The weights and rate of every checkpoint of a run, by its epoch."""
    if not (directory / "run.json").exists():
        return {}
    model, run = _model(), kt.TrainingRun(directory)
    run.verify()
    found = {}
    for checkpoint in run:
        checkpoint.restore(model)
        weights = [weight.tobytes() for weight in model.get_weights()]
        rate = repr(checkpoint.learning_rate).encode()
        found[str(checkpoint.epoch)] = _digest(*weights, rate)
    return found


def _index_work(run: pathlib.Path) -> Work:
    """The build of an index of a recorded run, in shards of 256 rows."""

    def method() -> kt.TracIn:
        model = _model()
        kt.TrainingRun(run).restore(model)
        data = kt.with_ids(_data()).batch(64)
        return kt.TracIn(model, data, run).within(shard=1)

    def build(directory: pathlib.Path, told: Callable[[str], None]) -> None:
        projection = kt.GaussianProjection(16, seed=0)
        kt.InfluenceIndex.build(method(), directory, projection=projection)
        told("rows")

    def rows(directory: pathlib.Path) -> dict[str, str]:
        try:
            index = kt.InfluenceIndex(directory, method().model)
        except (ValueError, FileNotFoundError):
            return {}  # not finished, and it says so
        return {"rows": _digest(index.rows(np.arange(_EXAMPLES)).tobytes())}

    return Work(build, rows)


class Child:
    """A fork of this process, which stops before it begins.

    Args:
        function: what it does; what it returns is sent here as JSON.
    """

    def __init__(self, function: Callable[[Callable[[str], None]], object]):
        # A socket, since calls of `write` are made to fail.
        self._source, sink = socket.socketpair()
        self.pid = os.fork()
        if self.pid:
            sink.close()
            os.waitpid(self.pid, os.WUNTRACED)
            return
        self._source.close()
        os.kill(os.getpid(), signal.SIGSTOP)

        def send(message: object) -> None:
            sink.sendall(f"{json.dumps(message)}\n".encode())

        try:
            send({"result": function(send)})
            os._exit(0)
        except BaseException:
            send({"error": traceback.format_exc()})
        finally:
            os._exit(3)  # it must not go on as this process would

    def go(self) -> tuple[int, list]:
        """Lets it run; returns its exit status and what it sent."""
        os.kill(self.pid, signal.SIGCONT)
        with self._source, self._source.makefile(encoding="utf-8") as lines:
            sent = [json.loads(line) for line in lines]
        return os.waitpid(self.pid, 0)[1], sent

    def traced(self, log: pathlib.Path, *options: str) -> tuple[int, list]:
        """Lets it run under `strace`."""
        command = ["strace", "-f", "-y", "-o", str(log), *options]
        tracer = subprocess.Popen(
            [*command, "-p", str(self.pid)], stderr=subprocess.DEVNULL
        )
        status = pathlib.Path(f"/proc/{self.pid}/status")
        while "TracerPid:\t0" in status.read_text():
            if tracer.poll() is not None:
                os.kill(self.pid, signal.SIGKILL)
                raise RuntimeError("strace could not attach to a process.")
            time.sleep(0.01)
        time.sleep(0.1)
        try:
            return self.go()
        finally:
            tracer.wait()


def calls_into(log: pathlib.Path, pid: int, directory: pathlib.Path):
    """The calls of the main thread that change the directory, in order."""
    counts: collections.Counter[str] = collections.Counter()
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if not match or int(match[1]) != pid:
            continue
        name, rest = match[2], match[3]
        counts[name] += 1
        is_read = name == "openat" and "O_RDONLY" in rest
        if str(directory) in rest and not is_read:
            path = re.search(re.escape(str(directory)) + r"/?([^\">]*)", rest)
            target = path[1] if path else ""
            found.append(Call(name, counts[name], target))
    return found


def drill(
    work: Work, what: str, call: Call, reference: dict, scratch: pathlib.Path
) -> dict[str, bool | str]:
    """Does the work with a failure; returns what became of it."""
    directory = scratch / "drilled"
    shutil.rmtree(directory, ignore_errors=True)
    child = Child(lambda tell: work.run(directory, tell) and None)
    injected = f"{call.name}:{_INJECTED[what].format(n=call.number)}"
    options = "-e", f"trace={_CALLS}", "-e", f"inject={injected}"
    status, sent = child.traced(scratch / "log", *options)
    told = [each for each in sent if isinstance(each, str)]
    errors = [e["error"] for e in sent if isinstance(e, dict) and "error" in e]
    outcome: dict[str, bool | str] = {
        "ended by itself": os.WIFEXITED(status),
        "error": errors[0].strip().splitlines()[-1] if errors else "",
    }

    def look(_):
        held = work.saved(directory)
        return {
            "is listed": set(told) <= held.keys(),
            "is whole": all(held[name] == reference[name] for name in held),
        }

    def again(tell):
        work.run(directory, tell)
        return {
            "goes on": True,
            "ends the same": work.saved(directory) == reference,
        }

    for function, names in (
        (look, ("is listed", "is whole")),
        (again, ("goes on", "ends the same")),
    ):
        try:
            outcome |= in_child(function)
        except RuntimeError as error:
            outcome |= dict.fromkeys(names, False) | {"error": str(error)}
    return outcome


def in_child(function: Callable[[Callable[[str], None]], dict]) -> dict:
    """What a function returns in a fork of this process."""
    _, sent = Child(function).go()
    for each in sent:
        if isinstance(each, dict) and "result" in each:
            return each["result"]
    raise RuntimeError(f"A process failed: {sent}")


def undisturbed(work: Work, scratch: pathlib.Path) -> tuple[dict, list[Call]]:
    """What work saves without a failure, and the calls by which it does."""
    directory = scratch / "drilled"
    shutil.rmtree(directory, ignore_errors=True)
    child = Child(lambda tell: work.run(directory, tell) and None)
    status, sent = child.traced(scratch / "log", "-e", f"trace={_CALLS}")
    if status:
        raise RuntimeError(f"Undisturbed work failed: {sent}")
    calls = calls_into(scratch / "log", child.pid, directory)
    return in_child(lambda _: work.saved(directory)), calls


def main(_) -> None:
    """Does the drills, and prints a table."""
    columns = (
        "ended by itself",
        "is listed",
        "is whole",
        "goes on",
        "ends the same",
    )
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        run = scratch / "run"
        in_child(lambda _: bool(_train(run)))
        works = {
            "training": Work(_train, _checkpoints),
            "index": _index_work(run),
        }
        for name in _WORKS.value:
            reference, calls = undisturbed(works[name], scratch)
            print(f"{name}: {len(calls)} calls change the directory")
            for what in _DRILLS.value:
                rng = random.Random(f"{_SEED.value}{name}{what}")
                chosen = (
                    calls
                    if len(calls) <= _COUNT.value
                    else rng.sample(calls, _COUNT.value)
                )
                outcomes = []
                for call in chosen:
                    outcome = drill(works[name], what, call, reference, scratch)
                    outcomes.append(outcome)
                    if not all(outcome[c] for c in columns[1:]):
                        print(what, call, outcome, flush=True)
                table[name, what] = (
                    [sum(bool(o[c]) for o in outcomes) for c in columns],
                    len(outcomes),
                )
                print(name, what, table[name, what], flush=True)
    print(f"\n| | drills | {' | '.join(columns)} |")
    print(f"|---|---:|{'---:|' * len(columns)}")
    for (name, what), (counts, total) in table.items():
        print(f"| {name}, {what} | {total} | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    app.run(main)
