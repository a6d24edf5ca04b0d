"""Processes that open files nobody vouches for: each file within limits, and one that ends its process costs only itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

from tracked_cls.data.ingest import Rejection, start_worker
from tracked_cls.processes import without_main

T = TypeVar("T")
Work = Callable[[Iterable[str]], Sequence[T]]  # takes the paths one by one: the time of a file runs until it asks for the next

_PATIENCE = 6  # by the clock a file may take so many times its seconds of computing: other programs run too, and disks are slow
_GRACE_SECONDS = 30.0  # the kernel ends what computes or waits too long; this is for what it cannot end


class Limits(NamedTuple):
    """What opening one file may cost: seconds of computing (six times that by the clock), bytes of memory; None: no limit.

    `section` is where a user sets them: ``data.decode_seconds``, ``data.decode_memory_bytes``.
    """

    seconds: float | None = 10.0
    memory_bytes: int | None = 4_000_000_000
    section: str = "data"


class Decoders(Generic[T]):
    """`num` processes that do `work` on files, started when they are needed and gone at the end of the block.

    Where a process dies, its files are taken one by one: the verdict on a file is always that of a process which had no
    other. `work` is imported by name in a process that holds numpy and Pillow only.
    """

    def __init__(self, work: Work[T], num: int, limits: Limits) -> None:
        self._work = work
        self._limits = limits
        self._threads = ThreadPoolExecutor(num, thread_name_prefix="decoders")  # each minds one process
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._running: set[_Process[T]] = set()
        self._closed = False

    def submit(self, paths: Sequence[str]) -> Callable[[], Sequence[T | Rejection]]:
        """Return a call that waits for what became of each file, in their order."""
        return self._threads.submit(self._judge, paths).result

    def __enter__(self) -> Decoders[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._closed = True
            for process in self._running:
                process.end()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _judge(self, paths: Sequence[str]) -> Sequence[T | Rejection]:
        try:
            outcomes = self._process().ask(paths)
        except _Died:
            return [self._judge_alone(path) for path in paths]
        # what its neighbours held in memory is no fault of a file
        return [self._judge_alone(path) if _lacked_memory(each) else each for path, each in zip(paths, outcomes, strict=True)]

    def _judge_alone(self, path: str) -> T | Rejection:
        try:
            [outcome] = self._process().ask([path])
        except _Died as death:
            return death.verdict(self._limits)
        return _out_of_memory(self._limits) if _lacked_memory(outcome) else outcome

    def _process(self) -> _Process[T]:
        """Return the calling thread's process, a new one in the place of one that died."""
        process: _Process[T] | None = getattr(self._mine, "process", None)
        if process is None or process.died:
            with self._lock:
                assert not self._closed, "the decoders were closed while files were waiting"
                self._running -= {process} if process else set()
                self._mine.process = process = _Process(self._work, self._limits)
                self._running.add(process)
        return process


def _out_of_memory(limits: Limits) -> Rejection:
    if limits.memory_bytes is None:
        return Rejection("E_MEMORY", "the machine has no memory to decode it")
    return Rejection(
        "E_MEMORY", f"decoding needs more than {limits.memory_bytes:,} bytes ({limits.section}.decode_memory_bytes)"
    )


def _lacked_memory(outcome: object) -> bool:
    return isinstance(outcome, Rejection) and outcome.code == "E_MEMORY"


# ---- one process, seen from outside ----------------------------------------------------------------------------------


class _Died(Exception):  # noqa: N818 - what happened, no error of ours
    """A process died over its files."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code

    def verdict(self, limits: Limits) -> Rejection:
        """Return the rejection of the one file that the process had."""
        if self.exit_code in (-signal.SIGPROF, -signal.SIGALRM, _GIVEN_UP):
            return Rejection("E_TIMEOUT", f"decoding takes more than {limits.seconds:g} s ({limits.section}.decode_seconds)")
        if self.exit_code == _OUT_OF_MEMORY:
            return _out_of_memory(limits)
        if self.exit_code is not None and self.exit_code < 0:
            name = signal.Signals(-self.exit_code).name
            hint = "; perhaps the machine ran out of memory" if name == "SIGKILL" else ""
            return Rejection("E_CRASHED", f"decoding it ended the process by {name}{hint}")
        return Rejection("E_CRASHED", f"decoding it ended the process with exit code {self.exit_code}")


_OUT_OF_MEMORY, _GIVEN_UP = 77, 78  # exit codes of our own
_ENVIRONMENT_LOCK = threading.Lock()


class _Process(Generic[T]):
    """One decoding process and the pipe to it."""

    def __init__(self, work: Work[T], limits: Limits) -> None:
        _start_server()
        context = multiprocessing.get_context("forkserver")  # a fork of this one would inherit the locks of all its threads
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, limits), daemon=True)
        with without_main():
            self._process.start()
        theirs.close()
        self.died = False
        self._seconds = limits.seconds
        self._expect_greeting()

    def _expect_greeting(self) -> None:
        """Tell a process that cannot start from one that dies of a file."""
        try:
            self._pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"a decoding process ended with exit code {self._wait()} as it started") from None

    def ask(self, paths: Sequence[str]) -> Sequence[T]:
        """Return what its work makes of files; raises `_Died`."""
        try:
            self._pipe.send(paths)
            answer = self._answer()
        except (EOFError, OSError):
            raise _Died(self._wait()) from None
        if isinstance(answer, Exception):  # a mistake in `work`
            raise answer
        return answer

    def _answer(self) -> Sequence[T] | Exception:
        """Return what comes; a process that gives no sign of life (stopped, or waiting for a dead disk) is given up."""
        silence = None if self._seconds is None else _PATIENCE * self._seconds + _GRACE_SECONDS
        while self._pipe.poll(silence):
            answer: Sequence[T] | Exception | None = self._pipe.recv()
            if answer is not None:
                return answer
        self._wait()
        raise _Died(_GIVEN_UP)

    def end(self) -> None:
        """End it now, whatever it does."""
        self._process.kill()

    def _wait(self) -> int | None:
        self.died = True
        self._pipe.close()
        self._process.kill()  # one that closed its pipe without ending, or stands still
        self._process.join(_GRACE_SECONDS)
        return self._process.exitcode


def _start_server() -> None:
    """Have a process that decoders are forked from in milliseconds, with all imports made; it ends with this one."""
    forkserver.set_forkserver_preload(["tracked_cls.data.decoders"])
    # a fork loses its parent's threads
    with _environment(PYTHONPATH=os.pathsep.join(sys.path), OPENBLAS_NUM_THREADS="1"), without_main():
        forkserver.ensure_running()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment inside the block: a server of multiprocessing's can be told nothing in another way."""
    with _ENVIRONMENT_LOCK:
        given = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in given.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


# ---- one process, seen from inside -----------------------------------------------------------------------------------


def _serve(pipe: Connection, work: Work[T], limits: Limits) -> None:
    start_worker()
    _limit_memory(limits.memory_bytes)
    pipe.send("ready")
    _be_silent()
    while True:
        try:
            paths = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(work, _timed(paths, limits.seconds, pipe)))


def _answer(work: Work[T], paths: Iterable[str]) -> Sequence[T] | Exception:
    try:
        return work(paths)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    except Exception as error:
        return error
    finally:
        _alarm_in(0)


def _timed(paths: Sequence[str], seconds: float | None, pipe: Connection) -> Iterator[str]:
    """Yield the paths, with a sign of life each second; the kernel ends this process if the next is not asked for in time.

    No handler: a decoder in C lets no Python run, and no other thread either.
    """
    told = time.monotonic()
    for path in paths:
        _alarm_in(seconds or 0)
        yield path
        if time.monotonic() > told + 1:
            told = time.monotonic()
            pipe.send(None)
    _alarm_in(0)  # what follows is no file's time


def _alarm_in(seconds: float) -> None:
    """End this process in so many seconds of computing, or a multiple of them by the clock; 0: not at all."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE * seconds)


def _be_silent() -> None:
    """Say nothing of odd files on the terminal: what Pillow and its libraries have to say comes without a name."""
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _limit_memory(memory_bytes: int | None) -> None:
    """Let this process grow by so much, where the system can be asked for that."""
    if memory_bytes is None or not sys.platform.startswith("linux"):
        return
    import resource  # not everywhere

    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no reason to import pathlib here
        held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = held + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
