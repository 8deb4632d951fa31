"""What a cluster runs for one job of a sweep: pickled here, called there by submitit."""

import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import FrameType
from typing import Any

from hydra_plugins.smet_launcher._job import Job, JobProcess

# After SIGTERM a pre-empted job of SLURM is killed or sent the signal by which submitit requeues it. One that had
# ended before would count as complete, and not be requeued.
PRE_EMPTION_S = 30.0


class SubmittedJob:
    """Runs a job as a child process and returns it; submitit requeues it when its time is over or it is pre-empted.

    Args:
        retries: see :class:`JobProcess`; within one submission.
        goes_on: whether submitit has requeued it. SLURM's own requeue, after a pre-emption or the loss of a node, calls
            what was first submitted again.
    """

    def __init__(self, job: Job, retries: int = 0, *, goes_on: bool = False) -> None:
        self._job = job
        self._retries = retries
        self._goes_on = goes_on

    def __call__(self) -> Job:
        """The job with what came of it. The process gets SIGINT and SIGTERM passed on; it saves and ends."""
        goes_on = self._goes_on or (os.environ.get("SLURM_RESTART_COUNT") or "0") != "0"
        self._process = JobProcess(self._job, self._retries, goes_on=goes_on, tell=print)
        with ThreadPoolExecutor(1) as pool:
            self._ended: Future[None] = pool.submit(self._process.run)
            received: list[int] = []

            def forward(number: int, _frame: FrameType | None) -> None:
                received.append(number)
                self._process.stop(number)

            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, forward)
            # Whichever of the two a cluster sends before it ends a job: submitit listens to one of them.
            listens = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)]
            requeue = next((handler for handler in listens if callable(handler)), None)
            if requeue is not None:
                for number in (signal.SIGUSR1, signal.SIGUSR2):
                    signal.signal(number, requeue)
            self._ended.result()
        if received and self._job.status == "stopped":
            name = signal.Signals(received[0]).name
            self._job.error = f"{name}: saved before it was finished; the same command goes on with it"
            if signal.SIGTERM in received and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
                time.sleep(PRE_EMPTION_S)
        return self._job

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues the job: have the run save and end, and return what goes on with it."""
        from submitit.helpers import DelayedSubmission

        self._process.stop(signal.SIGUSR1)
        self._ended.result()
        return DelayedSubmission(SubmittedJob(replace(self._job, status="stopped"), self._retries, goes_on=True))
