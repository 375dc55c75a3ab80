"""What a logger is to the rest: somewhere to put the points of one run."""

from typing import Protocol


class Writer(Protocol):
    """One run at one logger.

    `sent` has the last step of each tag that the logger holds already, so that no point is sent twice;
    whoever writes keeps it up to date.
    """

    sent: dict[str, int]

    def write(self, step: int, values: dict[str, float]) -> None:
        """Put values by tag ("loss", "val/rsum") at a step, which is an epoch."""

    def close(self) -> None:
        """Nothing more comes from this process."""
