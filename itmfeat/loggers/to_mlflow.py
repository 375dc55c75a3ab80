"""MLflow: a run of the experiment "itmfeat", known by a tag with the name of the run folder.

MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME hold; without the first, MLflow 3 keeps all in ./mlflow.db.
"""

import os
import time
from pathlib import Path
from typing import Any

TAG = "itmfeat.run"
LONGEST = 6000  # characters of a parameter


class MLflow:
    """One run at an MLflow store."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        # A server that does not answer must not hold up a training for minutes, as the defaults would.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        # Nor may its own statistics hold up the end of a command where there is no network.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # It prints addresses of a run on a server to stdout, which is for results.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        name = path.resolve().name
        self._client = MlflowClient()
        experiment = _experiment(self._client, os.environ.get("MLFLOW_EXPERIMENT_NAME", "itmfeat"))
        quoted = name.replace("\\", "\\\\").replace("'", "\\'")
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{quoted}'")
        run = found[0] if found else self._create(experiment, name, config)
        self._id = run.info.run_id
        self.sent = {tag: self._last(tag) for tag in run.data.metrics}

    def _create(self, experiment: str, name: str, config: dict[str, Any]) -> Any:
        from mlflow.entities import Param

        run = self._client.create_run(experiment, tags={TAG: name}, run_name=name)
        params = [Param(key, str(value)[:LONGEST]) for key, value in config.items()]
        self._client.log_batch(run.info.run_id, params=params)
        return run

    def _last(self, tag: str) -> int:
        return max(int(point.step) for point in self._client.get_metric_history(self._id, tag))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log an epoch in one request."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(
            self._id, metrics=[Metric(tag, value, now, step) for tag, value in values.items()]
        )
        if any(tag.startswith("test/") for tag in values):
            self._client.set_terminated(self._id)

    def close(self) -> None:
        """A run without test metrics stays a running one: it may go on."""


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))
