"""What `launch` starts in its test: ``python -m tests.faults.rank_probe FOLDER WORD``, a process that does as the word says.

``killed``: process 1 dies by SIGKILL the first time; ``always``: each time; ``told``: the first time it ends as a training that
got SIGTERM; ``wrong``: it ends with 2, as after a mistake; ``heard``: they meet, and process 0 notes the addresses at which
itself and its launcher listen.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path


def main(folder: Path, word: str) -> None:
    """Note the start; end as told."""
    rank, starts = os.environ["RANK"], folder / "starts"
    with starts.open("a") as file:
        file.write(rank)
    if word == "heard":
        meet(folder)
    if rank == "0":
        return
    first = starts.read_text().count("1") == 1
    if word == "always" or (word == "killed" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "told" and first:
        sys.exit(128 + signal.SIGTERM)
    if word == "wrong":
        sys.exit(2)


def meet(folder: Path) -> None:
    """Meet the others, and note who listens where while all are there."""
    from tracked_cls import distributed

    with distributed.joined(60) as ranks:
        assert ranks.total([1.0]) == [2.0]
        if ranks.is_first:
            (folder / "addresses").write_text("\n".join(listening({os.getpid(), os.getppid()})))
        ranks.meet("the end")


def listening(pids: set[int]) -> list[str]:
    """Return the local addresses, as the kernel writes them, of the sockets of some processes that wait for connections."""
    held = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                held.add(str(entry.readlink()))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in held:
                found.append(columns[1].partition(":")[0])
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
