"""Runs on machines that a cluster's queue gives: submitit (SLURM, or processes here) and ray. Not on one's own."""

import subprocess
import time
from collections.abc import Collection
from typing import Any

from cramming.errors import UserError, one_line
from cramming.plan import Planned
from cramming.sweep.attempt import Attempt
from cramming.sweep.launch import Launcher, attempt, library
from cramming.sweep.squeue import Queued, forget_job, job_of, keep_job, queue

POLL_S = 1.0
LOOK_S = 5.0  # between two looks into SLURM's queue, which all its users share
RESULT_S = 15.0  # in which a file server shows what a job that has ended has written
STOP_S = 120.0  # in which a run that was told to stop writes its checkpoint
HOURS = 24  # of a job, unless timeout_min says otherwise; a run that takes longer is queued again, and goes on
REQUEUED = 100  # times


def by_submitit(launcher: Launcher) -> "Submitit":
    """SLURM, unless another of submitit's clusters was asked for."""
    return (Slurm if launcher.settings.get("cluster", "slurm") == "slurm" else Submitit)(launcher)


class Submitit:
    """Jobs, each of one run; with cluster=local processes of this machine, as SLURM would start them.

    Settings are those of submitit.AutoExecutor.update_parameters (timeout_min, cpus_per_task, gpus_per_node, mem_gb,
    slurm_partition, ...), and cluster.
    """

    def __init__(self, launcher: Launcher) -> None:
        submitit = library("submitit")
        settings = {"name": "sweep", "timeout_min": HOURS * 60, **launcher.settings}
        cluster = settings.pop("cluster", "slurm")
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
            return f"job {job.job_id} of submitit: {one_line(error)} (see {job.paths.folder})"

    def stop(self, handles: Collection[Any]) -> None:
        """Cancel the jobs: each run gets a signal."""
        for job in handles:
            job.cancel(check=False)
        until = time.monotonic() + STOP_S
        while not all(job.done() for job in handles) and time.monotonic() < until:
            time.sleep(POLL_S)


class Slurm(Submitit):
    """Jobs of SLURM, each named after its run unless it was given a name.

    What its queue says counts, not the result alone: a job that is preempted ends with a result, and is started again.
    A job that waits or runs when this process is killed is taken over by the same command.
    """

    def __init__(self, launcher: Launcher) -> None:
        super().__init__(launcher)
        self.name = launcher.settings.get("name")
        self.runs: dict[str, Planned] = {}  # by the job's number
        self.gone: dict[str, float] = {}  # when a job was first seen to have ended, if it left no result
        self.before = self._queue() or {}

    def submit(self, run: Planned) -> Any:
        """Into the queue, unless it is there; UserError where SLURM refuses it."""
        if (found := job_of(run, self.before)) is not None:
            job = library("submitit").SlurmJob(self.executor.folder, found[0])
        else:
            job = self._submitted(run)
        self.runs[job.job_id] = run
        return job

    def _submitted(self, run: Planned) -> Any:
        name = self.name or run.root.run_name
        self.executor.update_parameters(name=name)
        try:
            job = self.executor.submit(attempt(run, self.threads))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"SLURM took no job for {name}: {one_line(error, 300)}; give --launch what it asks for, e.g. "
                "slurm_partition=, slurm_account=, timeout_min= (`sinfo` lists the partitions)."
            ) from None
        keep_job(run, job.job_id, name)
        return job

    def ended(self, handles: Collection[Any]) -> list[tuple[Any, int | str]]:
        """Look into the queue, now and then."""
        while (jobs := self._queue()) is None or not (found := self._over(handles, jobs)):
            time.sleep(LOOK_S)
        for job, _ in found:
            forget_job(self.runs.pop(job.job_id))
        return found

    @staticmethod
    def _queue() -> dict[str, Queued] | None:
        """None where it does not answer, as while its controller is restarted."""
        try:
            return queue()
        except OSError:
            return None

    def _over(self, handles: Collection[Any], jobs: dict[str, Queued]) -> list[tuple[Any, int | str]]:
        found: list[tuple[Any, int | str]] = []
        for job in handles:
            queued = jobs.get(job.job_id)
            if queued is not None and not queued.ended:
                self.gone.pop(job.job_id, None)
            elif job.paths.result_pickle.exists():
                found.append((job, self._status(job)))
            elif time.monotonic() - self.gone.setdefault(job.job_id, time.monotonic()) > RESULT_S:
                why = queued or "gone from the queue"
                found.append((job, f"job {job.job_id} of SLURM: {why} (see {job.paths.folder})"))
        return found

    def stop(self, handles: Collection[Any]) -> None:
        """Cancel the jobs: each run that has begun gets a signal, and has as long as SLURM's KillWait."""
        left = {job.job_id for job in handles}
        if left:
            subprocess.run(["scancel", *left], capture_output=True)
        until = time.monotonic() + STOP_S
        while left and time.monotonic() < until:
            time.sleep(POLL_S)
            jobs = self._queue()
            left = {each for each in left if jobs is None or (each in jobs and not jobs[each].ended)}
        for job in handles:
            if job.job_id not in left:
                forget_job(self.runs.pop(job.job_id))


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
            return f"a task of ray: {one_line(error)}"

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
