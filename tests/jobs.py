"""The processes of a job, found by its mark: JOB in the environment that they were started with.

Their sessions and parents do not tell: a launcher's processes have sessions of their own, and survive it.
"""

import os
from contextlib import suppress

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
