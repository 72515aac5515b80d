"""The command line itself."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from app.operate.cli import COMMANDS, main

STATUS = {
    "pipeline": "fraud",
    "ready": False,
    "partitions": [
        {
            "partition": 0,
            "offset": 5,
            "end_offset": 5,
            "lag": 0,
            "watermark_ms": None,
            "keys": 1,
            "worker": "stream-a",
            "checkpoint_error": "checkpoint c is not written: No space left on device; make room there",
        }
    ],
    "workers": [{"id": "stream-a", "error": "payments/1: its checkpoint has no state of CardHistory"}],
    "throughput": {"events_per_s": 1.0, "decisions_per_s": 1.0},
    "totals": {"events": 2},
    "stages": {},
    "sinks": [],
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/fraud/status"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(json.dumps(STATUS).encode() if found else b"no such pipeline")

    def log_message(self, *_: Any) -> None:
        """The requests are not what a test wants to read."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"python -m app {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["brokr"], ["simulate"], ["simulate", "--to-file", "f", "--rate", "fast"]])
def test_a_call_that_is_wrong_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m app" in capsys.readouterr().err


def test_status_prints_what_the_pipeline_says(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--pipeline", "fraud", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS
    assert main(["status", "--pipeline", "fraud", "--url", url]) == 0
    out = capsys.readouterr().out
    assert out.startswith("fraud: not ready\n")
    assert "partition 0: checkpoint c is not written: No space left on device; make room there\n" in out
    assert "worker stream-a: payments/1: its checkpoint has no state of CardHistory\n" in out


def test_status_of_an_unknown_pipeline_says_what_was_answered(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--pipeline", "frauds", "--url", url]) == 1
    assert "/frauds/status answers 404 Not Found: no such pipeline" in capsys.readouterr().err


def test_status_where_nothing_runs_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1/fraud/status does not answer" in capsys.readouterr().err
