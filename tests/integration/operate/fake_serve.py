"""Stands in for Ray's `serve` command: says and answers what `make run` listens for, and starts a process of its own.

FAKE_SERVE says how it behaves: "well", "deploy failed", "ends", or "stubborn", which heeds no signal.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from app.sources import KafkaSettings, open_admin

BEHAVIOUR = os.environ["FAKE_SERVE"]
FAILED = {"status": "DEPLOY_FAILED", "message": "ConfigError: args.topics.source is missing; write it"}
RUNNING = {"status": "RUNNING", "message": "", "deployments": {"StreamWorker": {"status": "HEALTHY", "message": ""}}}
SPREAD = {"count": 0, "p50_ms": 1.5, "p95_ms": 2.0, "p99_ms": 3.5, "budget_ms": None, "alert": False}
STATUS = {
    "pipeline": "fraud",
    "ready": True,
    "partitions": [],
    "sinks": [],
    "throughput": {"events_per_s": 0.0, "decisions_per_s": 0.0},
    "totals": {
        "events": 0,
        "decisions": 0,
        "dead_letters": 0,
        "actions": 0,
        "fallbacks": 0,
        "duplicates": 0,
        "late": 0,
    },
    "stages": {"end_to_end": {**SPREAD, "last_minute": SPREAD}},
}
ANSWERS = {
    "/api/serve/applications/": {"applications": {"fraud": FAILED if BEHAVIOUR == "deploy failed" else RUNNING}},
    "/fraud/status": STATUS,
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(ANSWERS[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """The requests are not what a test wants to read."""


def serve(port: int) -> int:
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def main() -> None:
    config = yaml.safe_load(Path(sys.argv[-1]).read_text())
    if BEHAVIOUR == "ends":
        sys.exit("no room for an object store")
    if BEHAVIOUR == "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    admin = open_admin(KafkaSettings(bootstrap=os.environ["KAFKA_BOOTSTRAP"]))
    admin.ensure_topics({"payments": 2, "fraud.decisions": 2})
    admin.close()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    serve(config["http_options"]["port"])
    print(f"Started a local Ray instance. View the dashboard at \x1b[1m\x1b[32mhttp://127.0.0.1:{serve(0)} \x1b[39m")
    sys.stdout.flush()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("drained", flush=True)


main()
