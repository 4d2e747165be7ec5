"""Runs on machines that a cluster's queue gives: submitit (SLURM, or processes here) and ray. Not on one's own."""

import time
from collections.abc import Collection
from typing import Any

from cramming.errors import UserError
from cramming.plan import Planned
from cramming.sweep.attempt import Attempt
from cramming.sweep.launch import Launcher, attempt, library

POLL_S = 1.0
STOP_S = 120.0  # in which a run that was told to stop writes its checkpoint
HOURS = 24  # of a job, unless timeout_min says otherwise; a run that takes longer is queued again, and goes on
REQUEUED = 100  # times


class Submitit:
    """Jobs of SLURM, each of one run; with cluster=local processes of this machine, as SLURM would start them.

    Settings are those of submitit.AutoExecutor.update_parameters (timeout_min, cpus_per_task, gpus_per_node, mem_gb,
    slurm_partition, ...), and cluster: by default slurm where there is one.
    """

    def __init__(self, launcher: Launcher) -> None:
        submitit = library("submitit")
        settings = {"name": "sweep", "timeout_min": HOURS * 60, **launcher.settings}
        cluster = settings.pop("cluster", None)
        self.threads = launcher.threads or settings.get("cpus_per_task")
        try:
            folder = launcher.folder / "submitit" / "%j"
            again = {} if cluster == "local" else {"slurm_max_num_timeout": REQUEUED}
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **again)
            self.executor.update_parameters(**settings)
        except (NameError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise UserError(f"--launcher submitit with {launcher.settings}: {error}") from None

    def submit(self, run: Planned) -> Any:
        """Into the queue."""
        return self.executor.submit(attempt(run, self.threads))

    def ended(self, handles: Collection[Any]) -> list[tuple[Any, int | str]]:
        """Look every second."""
        while not (found := [job for job in handles if job.done()]):
            time.sleep(POLL_S)
        return [(job, self._status(job)) for job in found]

    @staticmethod
    def _status(job: Any) -> int | str:
        try:
            return job.result()
        except Exception as error:  # of many kinds: the job's own, or that it was ended from outside
            return f"job {job.job_id} of submitit: {' '.join(str(error).split())[:200]} (see {job.paths.folder})"

    def stop(self, handles: Collection[Any]) -> None:
        """Cancel the jobs: each run gets a signal."""
        for job in handles:
            job.cancel(check=False)
        until = time.monotonic() + STOP_S
        while not all(job.done() for job in handles) and time.monotonic() < until:
            time.sleep(POLL_S)


class Ray:
    """Tasks of a ray cluster, or of ray on this machine where there is none.

    Settings are address (by default RAY_ADDRESS, else this machine), and num_cpus, num_gpus and others of a task.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.ray = library("ray")
        settings = dict(launcher.settings)
        self.threads = launcher.threads or settings.get("num_cpus")
        address = settings.pop("address", None)
        try:
            if not self.ray.is_initialized():
                self.ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            self.task = self.ray.remote(**{"num_cpus": self.threads or 1, "max_retries": 0, **settings})(called)
        except (TypeError, ValueError, ConnectionError) as error:
            raise UserError(f"--launcher ray with {launcher.settings}: {error}") from None

    def submit(self, run: Planned) -> Any:
        """Into the queue."""
        return self.task.remote(attempt(run, self.threads))

    def ended(self, handles: Collection[Any]) -> list[tuple[Any, int | str]]:
        """Wait for one."""
        found, _ = self.ray.wait(list(handles), num_returns=1)
        return [(task, self._status(task)) for task in found]

    def _status(self, task: Any) -> int | str:
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return f"a task of ray: {' '.join(str(error).split())[:200]}"

    def stop(self, handles: Collection[Any]) -> None:
        """Interrupt the tasks, each of which ends its run by a signal; then leave the cluster."""
        for task in handles:
            self.ray.cancel(task)
        if handles:
            self.ray.wait(list(handles), num_returns=len(handles), timeout=STOP_S)
        self.ray.shutdown()


def called(one: Attempt) -> int:
    """What a task of ray does."""
    return one()
