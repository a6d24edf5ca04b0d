"""Commands that are killed and started again until they are done, and a look at what they leave behind.

A command is forked from a process that has imported everything (`preloaded`), which saves ten seconds each time, or is
started as a process of its own (`real`). It is a group of its own, and a kill is SIGKILL to the whole group. This module
imports neither torch nor mlflow: whatever needs them goes on in a fork.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import zip_longest
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOG = "commands.log"
STEPS = "steps"  # a byte for every optimizer step that was taken
_LONGEST_SECONDS = 300.0
_SIGNALS = ("SIGTERM", "SIGKILL")

Kill = float | str  # seconds after the start, or a failpoint with its count: "checkpoint.before_rename:3"


@dataclass(frozen=True)
class Command:
    """A verb of `pipelines` with its words, the folder that its output is noted in, and variables of its environment."""

    verb: str
    words: tuple[str, ...]
    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def real(self, failpoint: str | None = None) -> subprocess.Popen[bytes]:
        """Start it as a user does, as a process of its own."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self.variables}
        environment |= {} if failpoint is None else {"TRACKED_CLS_FAILPOINT": failpoint}
        with (self.home / LOG).open("ab") as log:
            line = [sys.executable, "-m", f"pipelines.{self.verb}", *self.words]
            return subprocess.Popen(line, cwd=self.home, env=environment, stdout=log, stderr=log, start_new_session=True)


@dataclass
class Story:
    """How often a command was killed and started until it was done, and the seconds that all of it took."""

    kills: int = 0
    starts: int = 0
    seconds: float = 0.0
    killed_at: list[str] = field(default_factory=list)


def run(command: Command) -> Story:
    """Run a command to its end, undisturbed."""
    return until_done(command, ())


def until_done(
    command: Command,
    kills: Iterable[Kill],
    *,
    forked: bool = True,
    after_kill: Callable[[Kill | None], None] = lambda kill: None,
) -> Story:
    """Start a command, killed as told, again and again; the last start is left in peace and must end well.

    A command that ended before its kill came has done what it was to do: it is not started again.
    """
    story, started = Story(), time.perf_counter()
    for kill in [*kills, None]:
        story.starts += 1
        code = attempt(command, kill, forked=forked)
        if code == 0:
            break
        if code != -signal.SIGKILL:
            raise AssertionError(f"{command.verb} ended with {code}, killed at {story.killed_at}:\n{tail(command)}")
        story.kills += 1
        story.killed_at.append(str(kill))
        after_kill(kill)
    story.seconds = time.perf_counter() - started
    return story


def tail(command: Command, size: int = 3000) -> str:
    """Return the end of what a command has said."""
    return (command.home / LOG).read_text(errors="replace")[-size:]


def moments(seed: int, count: int, seconds: float, points: Sequence[str]) -> list[Kill]:
    """Return `count` kills, in turn at a random failpoint and at a random time within `seconds`.

    Early ones come first, as `points` are in the order in which a command reaches them: what was killed late goes on late.
    """
    draw = random.Random(seed)
    times: list[Kill] = sorted(draw.uniform(0.05, seconds) for _ in range(count // 2))
    places: list[Kill] = [_counted(draw, name) for name in sorted(draw.choices(points, k=count - count // 2), key=points.index)]
    return [kill for pair in zip_longest(places, times) for kill in pair if kill is not None]


def _counted(draw: random.Random, name: str) -> str:
    return name if ":" in name else f"{name}:{draw.randint(1, 3)}"


# ---- one start -------------------------------------------------------------------------------------------------------


def attempt(command: Command, kill: Kill | None, *, forked: bool = True) -> int:
    """Run a command until it ends or is killed; return its exit code."""
    failpoint = kill if isinstance(kill, str) else None
    process = _fork(_be, command, failpoint) if forked else command.real(failpoint)
    try:
        code = _wait(process, kill if isinstance(kill, float) else _LONGEST_SECONDS)
        if code is None and not isinstance(kill, float):
            raise AssertionError(f"{command.verb} hangs:\n{tail(command)}")
    finally:
        _kill_group(process.pid)  # workers too, where the command itself has died
        code = _wait(process, 60.0)
    assert code is not None
    return code


@dataclass(frozen=True)
class Place:
    """Where a process that trains with others stands: its number, how many there are, the port where they meet.

    `sees_first`: whether it finds the files of the first one, as on the same machine.
    """

    rank: int
    count: int
    port: int
    sees_first: bool = True
    restarts: int = 0

    def take(self) -> None:
        """Tell this process what a launcher tells."""
        number, count = str(self.rank), str(self.count)
        os.environ |= {"RANK": number, "WORLD_SIZE": count, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": count}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), "GLOO_SOCKET_IFNAME": "lo"}
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(self.restarts)
        if not self.sees_first and self.rank:
            from tracked_cls import job

            os.environ["LOCAL_RANK"] = "0"
            job.COMPLETE = "of another machine"  # type: ignore[misc]


def together(
    command: Command,
    count: int,
    *,
    kills: Mapping[int, str] | None = None,
    own: Mapping[int, Sequence[str]] | None = None,
    sees_first: bool = True,
    absent: int = 0,
    restarts: int = 0,
    tells: bool = True,
) -> list[int]:
    """Run a command in so many processes that train together, the last of them `absent`; return their exit codes.

    `kills` and `own` say what happens to one of them, by its rank, and which words it has besides: a failpoint, or the signal
    that it gets once steps are taken. As by a launcher that `tells`, once one has failed the others are told to stop;
    `restarts` is how often it has started them.
    """
    kills, port, steps = kills or {}, _free_port(), _steps_of(command)
    ranks = []
    for rank in range(count - absent):
        words = (*command.words, *(own or {}).get(rank, ()))
        failpoint = kill if isinstance(kill := kills.get(rank), str) and kill not in _SIGNALS else None
        ranks.append(_fork(_be, replace(command, words=words), failpoint, Place(rank, count, port, sees_first, restarts)))
    started, signalled, told = time.monotonic(), False, not tells or "SIGTERM" in kills.values()
    try:
        while any(process.exitcode is None for process in ranks):
            if time.monotonic() - started > _LONGEST_SECONDS:
                raise AssertionError(f"the processes of {command.verb} hang:\n{tail(command)}")
            for rank, kill in kills.items():
                if kill in _SIGNALS and _steps_of(command) > steps + 12 and not signalled:
                    signalled = True
                    os.kill(ranks[rank].pid, signal.Signals[str(kill)])
            if not told and any(process.exitcode for process in ranks):
                told = True
                for process in ranks:
                    if process.exitcode is None:
                        os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.05)
    finally:
        for process in ranks:
            _kill_group(process.pid)
            process.join(60)
    return [process.exitcode for process in ranks]


def _steps_of(command: Command) -> int:
    path = command.home / STEPS
    return path.stat().st_size if path.exists() else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: Any, seconds: float) -> int | None:
    """Return the exit code of a process, None where it still goes on after `seconds`."""
    if isinstance(process, subprocess.Popen):
        with suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
        return None
    process.join(seconds)
    return process.exitcode  # type: ignore[no-any-return]


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # it may not have opened its group yet
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _fork(function: Callable[..., None], *args: object) -> Any:
    context = multiprocessing.get_context("forkserver")
    _stop_strange_server()
    context.set_forkserver_preload(["tests.faults.preloaded"])
    os.environ.update(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "src")]), OMP_NUM_THREADS="1")  # the server's
    process = context.Process(target=function, args=args)
    process.start()
    return process


@cache
def _stop_strange_server() -> None:
    """End a server that decoders have started in this process: each fork of it would have to import everything."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _be(command: Command, failpoint: str | None, place: Place | None = None) -> None:
    """Be a command: a group of processes, its output in a file, its optimizer steps counted."""
    os.setsid()
    os.environ.update(command.variables)
    if place is not None:
        place.take()
    _redirect(command.home / LOG)
    os.chdir(command.home)
    from pipelines.command import command as ended_by
    from tracked_cls import failpoints

    failpoints.arm(failpoint)
    _count_steps(command.home / STEPS)
    sys.argv = [f"pipelines.{command.verb}", *command.words]
    ended_by(importlib.import_module(f"pipelines.{command.verb}").main, several=place is not None)


def _redirect(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)


def _count_steps(path: Path) -> None:
    from tracked_cls.step import Stepper

    plain, file = Stepper.step, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def counted(self: Stepper, batch: Any) -> None:
        plain(self, batch)
        os.write(file, b".")

    Stepper.step = counted  # type: ignore[method-assign]


# ---- questions, answered in a fork -----------------------------------------------------------------------------------


def ask(question: Callable[..., Any], *args: object) -> Any:
    """Return what a function answers in a fork, as JSON carries it."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _fork(_answer, sender, question, args)
    sender.close()
    try:
        answer = json.loads(receiver.recv())
    except EOFError:
        raise AssertionError(f"{question.__name__}{args} gave no answer") from None
    finally:
        process.join()
    if isinstance(answer, dict) and "trouble" in answer:
        raise AssertionError(answer["trouble"])
    return answer


def _answer(sender: Any, question: Callable[..., Any], args: tuple[object, ...]) -> None:
    try:
        sender.send(json.dumps(question(*args)))
    except Exception as error:
        import traceback

        sender.send(json.dumps({"trouble": "".join(traceback.format_exception(error))}))
