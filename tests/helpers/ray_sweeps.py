"""Sweeps whose jobs are Ray tasks on this machine."""

from __future__ import annotations

import time
from pathlib import Path

from helpers.processes import PATIENCE, start


def ray_worker(process):
    """The process of a job that Ray runs for this one; None where there is none yet."""
    waiting = [process]
    while waiting:
        number = waiting.pop()
        try:
            if Path(f"/proc/{number}/cmdline").read_bytes().startswith(b"ray::_run_job"):
                return number
            for task in Path(f"/proc/{number}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:  # it has ended meanwhile
            continue
    return None


# no dashboard, in a dozen processes; jobs that do not wait for all else that this machine does; 30 s to start are few
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
RAY |= dict.fromkeys(("RAY_NUM_REDIS_GET_RETRIES", "RAY_gcs_server_port_wait_time_s"), f"{PATIENCE:.0f}")
NO_DASHBOARD = "+hydra.launcher.ray.init.include_dashboard=false"


def start_on_ray(folder, *arguments, **options):
    """The process of a sweep whose first job runs; started again where Ray was not up in the 30 s that it allows."""
    deadline = time.monotonic() + PATIENCE
    while True:
        process = start(folder, *arguments, NO_DASHBOARD, **options, **RAY)
        while process.is_alive() and ray_worker(process.pid) is None:
            time.sleep(0.05)
        said = max(folder.parent.glob(f"{folder.name}.*.log"), key=lambda log: log.stat().st_mtime_ns).read_text()
        if process.is_alive() or "timed out during startup" not in said or time.monotonic() > deadline:
            return process
