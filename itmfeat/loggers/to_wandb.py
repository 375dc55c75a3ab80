"""Weights & Biases: a run of the project "itmfeat" with the name of the run folder as its id.

WANDB_PROJECT, WANDB_MODE, WANDB_DIR and the rest of its environment hold. What was sent is noted beside the
files that wandb keeps of a run (offline there is nobody to ask); online, wandb itself refuses earlier steps.
"""

import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

SENT = "itmfeat-sent.json"


class WandB:
    """One run at Weights & Biases."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        import wandb

        self._wandb, self._config = wandb, config
        self._name = path.resolve().name
        # Its end is the digest of the configuration.
        self._key = re.sub(r"[^\w.-]", "-", self._name, flags=re.ASCII)[-64:]
        self.sent: dict[str, int] = {}
        folder = Path(os.environ.get("WANDB_DIR", ".")) / "wandb"
        # Folders of one second are told apart by a number behind the key.
        for note in folder.glob(f"*run-*-{self._key}*/{SENT}"):
            noted = json.loads(note.read_text())
            self.sent |= {tag: max(step, self.sent.get(tag, 0)) for tag, step in noted.items()}

    @cached_property
    def _run(self) -> Any:
        """Begun with the first point: it makes a folder at once."""
        return self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "itmfeat"),
            id=self._key,
            name=self._name,
            resume="allow",
            reinit="create_new",  # the runs of a stack are open side by side
            config=self._config,
            settings=self._wandb.Settings(console="off", login_timeout=30),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log an epoch; the test metrics, which come at the last epoch again, are the summary of the run."""
        if any(tag.startswith("test/") for tag in values):
            self._run.summary.update(values)
        else:
            self._run.log(values, step=step)
        note = Path(self._run.dir).parent / SENT
        part = note.with_suffix(".part")
        part.write_text(json.dumps(self.sent | dict.fromkeys(values, step)))
        os.replace(part, note)

    def close(self) -> None:
        """Send what is left."""
        if "_run" in self.__dict__:
            self._run.finish()
