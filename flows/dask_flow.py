"""A Prefect flow whose tasks make batches of parts on the workers of a Dask scheduler.

A worker that dies costs the part it had under way: Dask gives its batch to another one, up to three times. Workers
report to the Prefect API themselves, so it has to be one that they can reach.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distributed import Client, KilledWorker, get_worker
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.settings import PREFECT_API_URL
from prefect_dask.task_runners import DaskTaskRunner

from flows.prefect_settings import has_temporary
from infra.errors import ForgelineError, StageError, TransientError, UsageError
from tasks.data.parts.batches import Batch
from tasks.data.parts.parts import KILLED, KILLED_HINT, SINGLE_THREADED
from tasks.run.prefect_task import worth_another_attempt

CONNECT_SECONDS = 5


def local_workers(count: int, folder: Path) -> DaskTaskRunner:
    """Workers of this machine, as long as the flow lasts: processes of one thread that only it can talk to."""
    # What goes wrong is reported at the end, and is in the flow's log.
    quiet = {"PREFECT_LOGGING_LEVEL": "CRITICAL"}
    return DaskTaskRunner(
        cluster_class="distributed.LocalCluster",
        cluster_kwargs={
            "n_workers": count,
            "threads_per_worker": 1,
            "memory_limit": None,
            "host": "127.0.0.1",
            "security": True,
            "dashboard_address": "127.0.0.1:0",
            "local_directory": str(folder),
            "env": SINGLE_THREADED | quiet,
        },
    )


def running_scheduler(address: str) -> DaskTaskRunner:
    """The workers of a scheduler. Raises UsageError where none answers, or they could not reach the Prefect API."""
    where = f"--dask {address}"
    api = PREFECT_API_URL.value()
    if not _on_this_machine(address) and (api is None or _on_this_machine(api)):
        server = "a temporary server" if has_temporary() or api is None else api
        raise UsageError(
            f"its workers could not reach the Prefect API, which is {server} on this machine",
            where=where,
            hint="Set PREFECT_API_URL to a server that they can reach.",
        )
    try:
        client: Any = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
        with client:
            found = client.scheduler_info(n_workers=-1)["workers"]
    except (OSError, ValueError) as error:
        hint = "Start one with `dask scheduler` and `dask worker`, or use --workers. Its address looks like tcp://HOST:8786."
        raise UsageError(f"no Dask scheduler answers: {error}", where=where, hint=hint) from error
    if not found:
        raise UsageError("the scheduler has no workers", where=where, hint=f"dask worker {address}")
    return DaskTaskRunner(address=address)


def make_with_dask(
    pipeline: str,
    stage: str,
    run: str,
    runner: Any,
    missing: list[Batch],
    retries: int,
    on_made: Callable[[Batch], None],
) -> set[str]:
    """The workers (host:process id) that made all batches. Raises the first error of a part."""
    here = _StaysHere(missing, on_made)

    @task(
        name=f"{stage} parts",
        retries=retries,
        retry_condition_fn=worth_another_attempt,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def make_batch(batch: Batch) -> str:
        batch.make(Path(get_worker().local_directory))
        return f"{socket.gethostname()}:{os.getpid()}"

    @flow(
        name=f"{pipeline} prepare",
        flow_run_name=f"{stage} {run}",
        task_runner=runner,
        persist_result=False,
        validate_parameters=False,
    )
    def make_all() -> set[str]:
        batches, on_made = here.values
        futures = {make_batch.submit(batch): batch for batch in batches}
        workers = set()
        for future in as_completed(list(futures)):
            workers.add(future.result())
            on_made(futures[future])
        return workers

    try:
        return make_all()
    except ForgelineError:
        raise
    except KilledWorker as error:
        raise TransientError(KILLED, hint=KILLED_HINT) from error
    except Exception as error:
        hint = (
            "Scheduler and workers need this version of Forgeline with its extra `dask`; workers what opens the store."
        )
        raise StageError(f"{type(error).__name__}: {error}", hint=hint) from error


class _StaysHere:
    """Values that do not go to the workers with the flow, which Prefect sends along with every task."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        return _StaysHere, ()


def _on_this_machine(address: str) -> bool:
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
