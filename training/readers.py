"""Examples read ahead of their step: by a thread, or by processes for data that do not fit in memory.

Reading a batch draws nothing, and the batches come in the order of the steps. So the bits do not depend on who reads, on how
many read, or on where a run resumes.

A process reads what its parent asks for and answers by a pipe. It takes no signals: the parent, which may still need a batch
in order to save, ends it. If the parent is killed, the kernel ends it at once (Linux), or the end of the pipe does.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor

from scorefield.data.dataset import Condition, Split
from scorefield.data.transforms import batch_indices
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.processes import World

Items = tuple[Tensor, Condition]

Worker = tuple[Any, Connection]      # a process, and the pipe to it
AUTO = -1
MOST = 8             # processes, if their number is chosen here
BATCHES_EACH = 2     # that a process holds or reads ahead
PR_SET_PDEATHSIG = 1
NOT_OURS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
            if hasattr(signal, name)]      # sent to a whole group; the parent answers


def chosen_workers(asked: int, split: Split, device: torch.device) -> int:
    """How many processes read: those that were asked for; of AUTO, some beside a GPU, for data that are not in memory.

    Beside a network on the CPU, a thread reads while the network computes, and processes would take its cores.
    """
    if getattr(split, "in_memory", False):
        return 0
    if asked != AUTO:
        return asked
    return min(MOST, cores() - 1) if device.type == "cuda" else 0


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, eq=False)
class Fetch:
    """What reads the batch of a step: `fetch(step)`. It can be sent to another process if its split can.

    split  the training examples
    world  the processes that share a batch; this one reads its own examples
    """

    split: Split
    batch_size: int
    seed: int
    world: World = World()

    def indices(self, step: int) -> Tensor:
        """The numbers of this process's examples of a step, int64 (share,)."""
        return batch_indices(len(self.split), self.batch_size, step, self.seed)[self.world.rank::self.world.size]

    def __call__(self, step: int) -> Items:
        return self.split[self.indices(step)]

    def name(self, i: int) -> str:
        """Of an example, for messages: its file, if it has one."""
        data: Any = self.split
        while not (data is None or isinstance(data, Tensor) or hasattr(data, "files")):      # a split may wrap another
            data = getattr(data, "split", getattr(data, "data", None))
        return str(data.files[i]) if hasattr(data, "files") else f"example {i}"


class ReadAhead:
    """The batches of steps: `read(step)`, while those of the next steps are read already.

    fetch  reads the batch of a step
    ahead  how many batches are read ahead by a thread
    pin    whether batches lie in pinned memory, from which they go to a GPU while this process goes on
    """

    def __init__(self, fetch: Fetch, ahead: int = 1, pin: bool = False):
        self.fetch, self.ahead, self.pin = fetch, ahead, pin
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[Items]] = {}

    def __call__(self, step: int) -> Items:
        if step not in self._coming:      # the first call, or a step that nobody expected
            self._restart(step)
        future = self._coming.pop(step)
        self._order(step + 1)
        return future.result()

    def _restart(self, step: int) -> None:
        for future in self._coming.values():
            future.cancel()
        self._coming = {}
        self._order(step)

    def _order(self, step: int) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        for later in range(step, step + self.ahead):
            if later not in self._coming:
                self._coming[later] = self._pool.submit(self._obtain, later)

    def _obtain(self, step: int) -> Items:
        return pinned(self.fetch(step)) if self.pin else self.fetch(step)

    def close(self) -> None:
        """Stop reading; what is read already is dropped."""
        for future in self._coming.values():
            future.cancel()
        self._coming = {}
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None


@contextlib.contextmanager
def reading(batches: Any) -> Iterator[None]:
    """A time in which batches are read; afterwards what reads ahead of them ends."""
    try:
        yield
    finally:
        if hasattr(batches, "close"):
            batches.close()


class Workers(ReadAhead):
    """As ReadAhead, with `count` processes that read; they start at the first call and end with `close` or with this one.

    Raises the errors of reading as they are, such as an ArgumentError that names a picture, and OSError if a process dies.
    """

    def __init__(self, fetch: Fetch, count: int, pin: bool = False):
        super().__init__(fetch, count * BATCHES_EACH, pin)
        self.count = count
        self._workers: list[Worker] = []
        self._asked: list[int] = []      # the steps that processes were asked for, in the order of their answers
        self._lock = threading.Lock()    # one thread at a time talks to the processes
        self._finish: Any = None

    def _obtain(self, step: int) -> Items:
        with self._lock:
            if self._asked[:1] != [step]:
                self._start()            # anew, since the old ones read other steps
                self._asked = []
            while len(self._asked) < self.ahead:
                later = self._asked[-1] + 1 if self._asked else step
                self._send(later)
                self._asked.append(later)
            answer = self._receive(step)
            self._asked.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return pinned(answer) if self.pin else answer

    def _start(self) -> None:
        self._end()
        # Before multiprocessing waits, at exit, for processes that take no SIGTERM.
        self._finish = Finalize(self, _kill, args=(self._workers,), exitpriority=100)
        for _ in range(self.count):
            self._workers.append(self._new())

    def _new(self) -> Worker:
        forks = sys.platform == "linux"      # then a split needs no pickling, and a script no guard
        context: Any = multiprocessing.get_context("fork" if forks else "spawn")
        ours, theirs = context.Pipe()
        others = [ours, *(connection for _, connection in self._workers)] if forks else []
        process = context.Process(target=_work, args=(self.fetch, theirs, others, os.getpid()), daemon=True,
                                  name="scorefield-reader")
        with warnings.catch_warnings(), _signals_held():      # a new process inherits that, until it ignores them
            warnings.simplefilter("ignore", DeprecationWarning)      # of Python 3.12 on threads, of which a reader uses none
            process.start()
        theirs.close()
        return process, ours

    def _send(self, step: int) -> None:
        with contextlib.suppress(OSError):      # of a dead process; _receive says so
            self._workers[step % self.count][1].send(step)

    def _receive(self, step: int) -> Any:
        process, connection = self._workers[step % self.count]
        try:
            return received(connection)
        except (EOFError, OSError):
            how = _how_it_ended(process)
        if (i := self._culprit(step)) is not None:
            raise OSError(f"{self.fetch.name(i)} cannot be read: the process that read it {how}; replace or remove it")
        raise OSError(f"process {process.pid}, which read the examples of step {step}, {how}, and each of them can be read; "
                      "if memory ran out, set fewer training.workers, and start again")

    def _culprit(self, step: int) -> int | None:
        """The example of a step that ends any process that reads it, if there is one."""
        worker = self._new()
        with contextlib.closing(worker[1]):
            for i in self.fetch.indices(step).tolist():
                try:
                    worker[1].send([i])
                    received(worker[1])
                except (EOFError, OSError):
                    return i
            _kill([(worker[0], None)])
        return None

    def _end(self) -> None:
        if self._finish is not None:
            self._finish()
            self._finish, self._workers = None, []

    def close(self) -> None:
        super().close()
        processes = [process for process, _ in self._workers]
        _kill([(process, None) for process in processes])      # ends the wait of the thread that reads from them
        with self._lock:
            self._end()
            self._asked = []


def pinned(items: Items) -> Items:
    data, condition = items
    return data.pin_memory(), {name: tensor.pin_memory() for name, tensor in condition.items()}


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """In this context, signals of NOT_OURS to this thread, and to a process that it starts, wait."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_OURS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how_it_ended(process: Any) -> str:
    process.join(5)
    code = process.exitcode
    return f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"


def _kill(workers: Sequence[tuple[Any, Connection | None]]) -> None:
    for process, _ in workers:
        process.kill()      # they hold nothing that could be lost
    for process, connection in workers:
        process.join()
        if connection is not None:
            connection.close()


def send(connection: Connection, items: Items) -> None:
    """A batch by a pipe: its shapes, then the bytes of each tensor."""
    data, condition = items
    tensors = {"": data, **condition}
    connection.send([(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()])
    for tensor in tensors.values():
        if tensor.numel():
            connection.send_bytes(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def received(connection: Connection) -> Items | Exception:
    """What `send` has sent, or an error that was sent instead."""
    head = connection.recv()
    if isinstance(head, Exception):
        return head
    tensors = {}
    for name, dtype, shape in head:
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            connection.recv_bytes_into(tensor.flatten().view(torch.uint8).numpy().data)
        tensors[name] = tensor
    return tensors.pop(""), tensors


def _work(fetch: Fetch, connection: Connection, others: Sequence[Connection], parent: int) -> None:
    """The life of a process that reads: answer steps with batches, until the parent hangs up."""
    for number in NOT_OURS:
        signal.signal(number, signal.SIG_IGN)      # also of one that came while they were held
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_OURS)
    _die_with(parent)
    for other in others:      # or a sibling would keep the pipe open after the parent's end
        other.close()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):      # of a pipe whose other end is closed
        while True:
            asked = connection.recv()      # a step, or a list of examples
            try:
                items: Items | Exception = fetch(asked) if isinstance(asked, int) else fetch.split[torch.tensor(asked)]
            except Exception as error:      # of any type: the parent raises it
                items = _sendable(error)
            if isinstance(items, Exception):
                connection.send(items)
            else:
                send(connection, items)


def _sendable(error: Exception) -> Exception:
    """An error that the parent can unpickle, with the arguments that it names."""
    names = tuple(getattr(error, "arguments", ()))
    if isinstance(error, ArgumentError):
        return _Refused(str(error), names)
    if isinstance(error, OSError):
        return OSError(*error.args) if error.filename is None else OSError(error.errno, error.strerror, error.filename)
    for kind in (ValueError, ArithmeticError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


class _Refused(ArgumentError):
    """An ArgumentError that can be pickled: exceptions are made anew of their `args`."""

    def __init__(self, message: str, names: tuple[str, ...] = ()):
        super().__init__(message, *names)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Refused, (str(self), tuple(self.arguments))


def _die_with(parent: int) -> None:
    """Have the kernel end this process when the one that started it ends, however it does (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:      # it ended before that call
            os._exit(1)
