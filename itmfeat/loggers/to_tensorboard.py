"""TensorBoard: event files in the run folder itself, so that `tensorboard --logdir runs` finds all runs."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any


class TensorBoard:
    """The event files of one run."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        self._path, self._config = path, config
        self.sent: dict[str, int] = {}
        if any(path.glob("events.out.tfevents.*")):
            events = EventAccumulator(str(path), size_guidance={"scalars": 0})  # 0: all of them
            events.Reload()
            self.sent = {tag: events.Scalars(tag)[-1].step for tag in events.Tags()["scalars"]}

    @cached_property
    def _writer(self) -> Any:
        """Made for the first point: it makes a file at once."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self._path))
        if not self.sent:
            writer.add_text("configuration", f"```json\n{json.dumps(self._config, indent=1)}\n```")
        return writer

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add scalars, and flush them."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file, if there is one."""
        if "_writer" in self.__dict__:
            self._writer.close()
