"""Weights & Biases: a run of the project "itmfeat" with the name of the run folder as its id.

WANDB_PROJECT, WANDB_MODE, WANDB_DIR and the rest of its environment hold. What was sent is noted beside the
files that wandb keeps of a run (offline there is nobody to ask); online, wandb itself refuses earlier steps.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

SENT = "itmfeat-sent.json"


class WandB:
    """One run at Weights & Biases."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        import wandb

        name = path.resolve().name
        key = re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[-64:]  # ends with the digest of the configuration
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "itmfeat"),
            id=key,
            name=name,
            resume="allow",
            reinit="create_new",  # the runs of a stack are open side by side
            config=config,
            settings=wandb.Settings(console="off", login_timeout=30),
        )
        folder = Path(self._run.dir).parent
        self._note = folder / SENT
        self.sent: dict[str, int] = {}
        for note in folder.parent.glob(f"*run-*-{key}/{SENT}"):
            noted = json.loads(note.read_text())
            self.sent |= {tag: max(step, self.sent.get(tag, 0)) for tag, step in noted.items()}

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log an epoch; what comes at the same epoch again, the test metrics, is the summary of the run."""
        if any(tag.startswith("test/") for tag in values):
            self._run.summary.update(values)
        else:
            self._run.log(values, step=step)
        part = self._note.with_suffix(".part")
        part.write_text(json.dumps(self.sent | dict.fromkeys(values, step)))
        os.replace(part, self._note)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish(quiet=True)
