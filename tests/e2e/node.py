"""One node of a training run over several: a launcher that takes jobs from its standard input until that ends.

    python node.py LOGS NODE_RANK NODES MASTER_ADDR

In: `{"folder": "...", "port": 29400}` submits one rank of the job that lies there, `{"cancel": true}` stops it.
Out: `{"up": true}` at once, and for each job `{"exit": 0, "reason": ""}` when its processes are gone.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from infra.launch.launcher import JobSpec
from infra.launch.local import LocalJob, LocalLauncher


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def answer_for(job: LocalJob) -> None:
    say({"exit": job.wait(), "reason": job.reason})


def main(logs: str, node_rank: str, nodes: str, master_addr: str) -> None:
    launcher = LocalLauncher(Path(logs), preload=("tasks.training.loop.train", "tasks.training.engine.engine"))
    launcher.prestart(warm=True)
    say({"up": True})
    job = None
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            if "cancel" in asked:
                assert job is not None
                job.cancel(grace=30.0)
                continue
            spec = JobSpec(
                "base",
                Path(asked["folder"]),
                warm=True,
                nodes=int(nodes),
                node_rank=int(node_rank),
                master_addr=master_addr,
                master_port=asked["port"],
            )
            job = launcher.submit(spec)
            threading.Thread(target=answer_for, args=(job,), daemon=True).start()
    finally:
        launcher.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
