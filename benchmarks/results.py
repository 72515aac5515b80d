"""The results file: a section per kind of measurement, each with where, when and of what it was taken."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

FILE = Path(__file__).parent / "results" / "pipeline.json"
LIBRARIES = ("ray", "torch", "numpy", "numba", "msgspec", "confluent-kafka", "kafka-python")
WRITTEN = (":!README.md", ":!benchmarks/results")
GIB = 1 << 30


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def write(results: dict[str, Any]) -> None:
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(results, indent=2) + "\n")


def circumstances() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": f"{cpu()}, {os.cpu_count()} cores, {round(psutil.virtual_memory().total / GIB)} GiB",
        "load_before": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def commit() -> str:
    """The commit that is checked out, with a + when files differ from it, others than those written here."""
    said = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *WRITTEN], capture_output=True, check=False)
    return said.stdout.strip() + "+" * changed.returncode if said.returncode == 0 else "unknown"


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
