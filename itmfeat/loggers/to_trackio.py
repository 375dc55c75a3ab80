"""Trackio: a run of the project "itmfeat" in its local store, with the name of the run folder.

`trackio show --project itmfeat` shows it; TRACKIO_DIR moves the store.
"""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

PROJECT = "itmfeat"


class Trackio:
    """One run in the local store of trackio."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        self._name, self._config = path.resolve().name, config
        self.sent: dict[str, int] = {}
        for point in SQLiteStorage.get_logs(PROJECT, self._name):
            self.sent |= {tag: max(int(point["step"]), self.sent.get(tag, 0)) for tag in point}

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log an epoch and wait until it is stored: trackio has one open run at a time, a stack several."""
        import trackio

        with redirect_stdout(io.StringIO()):  # it talks, and stdout is for results
            run = trackio.init(
                PROJECT,
                self._name,
                config=self._config,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
            run.log(values, step=step)
            trackio.finish()

    def close(self) -> None:
        """Each write closed its own."""
