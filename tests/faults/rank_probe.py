"""What `launch` starts in its test: ``python -m tests.faults.rank_probe FOLDER WORD``, a process that does as the word says.

``killed``: process 1 dies by SIGKILL the first time; ``always``: each time; ``wrong``: it ends with 2, as after a mistake.
"""

import os
import signal
import sys
from pathlib import Path


def main(folder: Path, word: str) -> None:
    """Note the start; end as told."""
    rank, starts = os.environ["RANK"], folder / "starts"
    with starts.open("a") as file:
        file.write(rank)
    if rank == "0":
        return
    first = starts.read_text().count("1") == 1
    if word == "always" or (word == "killed" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "wrong":
        sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
