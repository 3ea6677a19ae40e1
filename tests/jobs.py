"""The processes of a job, found by its mark: JOB in the environment that they were started with; shared memory.

Their sessions and parents do not tell: a launcher's processes have sessions of their own, and survive it.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil


def processes_of(job: str) -> list[psutil.Process]:
    """All but this process."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("JOB") == job and process.pid != os.getpid():
                found.append(process)
    return found


def kill_job(job: str) -> None:
    for process in processes_of(job):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def shared_memory_of(processes: Iterable[psutil.Process]) -> set[str]:
    """The names in /dev/shm of what these processes have open or mapped.

    Of a listing of the folder alone a test could not tell what is its own: other tests run beside it.
    """
    names, folder, held = os.listdir("/dev/shm"), Path("/dev/shm"), set()
    for process in processes:
        with suppress(psutil.Error):
            held |= {file.path for file in (*process.open_files(), *process.memory_maps())}
    return {name for name in names if str(folder / name) in held}


def nobodys_shared_memory() -> set[str]:
    """The names in /dev/shm of what no process holds any more: what dead ones left behind."""
    names = set(os.listdir("/dev/shm"))
    held = shared_memory_of(psutil.process_iter())
    return {name for name in names - held if os.path.exists(f"/dev/shm/{name}")}
