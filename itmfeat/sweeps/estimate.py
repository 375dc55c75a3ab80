"""How long a plan will take, by a few steps of one stack of each kind."""

import tempfile
import time
from pathlib import Path

import torch

from itmfeat.features import reopen
from itmfeat.members import member_of
from itmfeat.sweeps.plan import Plan, Stack
from itmfeat.training import Trainer, choose_device, keep_freed_memory

WARM, STEPS = 2, 5


def estimate(plan: Plan, device: str = "auto", workers: int = 1) -> float | None:
    """Seconds that the training steps of all stacks will take.

    Validation, tests and what robust methods do between epochs come on top. Stacks of the same kind differ by
    their width alone, so one of each kind is tried, on a GPU of each width. Epochs that are done count as if
    they were not. None where a stack does not fit into the memory of the GPU: it would train in parts.
    """
    where = choose_device(device)
    keep_freed_memory()
    seconds: dict[object, float] = {}  # of a net for all its steps
    total = 0.0
    for stack in plan.stacks:
        config = stack.settings[0].config
        data, schedule = config.data, config.schedule
        width = stack.nets if where.type == "cuda" else None  # there launches of kernels take the time
        kind = (data.image_digest, data.text_digest, config.head, schedule.batch_size, schedule.epochs, width)
        if kind not in seconds:
            try:
                seconds[kind] = _probe(stack, where) / stack.nets
            except torch.OutOfMemoryError:
                return None
        total += seconds[kind] * stack.nets
    return total / min(workers, max(1, len(plan.stacks)))


def _probe(stack: Stack, device: torch.device) -> float:
    """Seconds for all steps of a stack, by the mean of a few; its run folders stay unmade."""
    configs = [setting.config for setting in stack.settings]
    features = reopen(stack.cache, configs[0].data)
    with tempfile.TemporaryDirectory() as runs:
        trainer = Trainer([member_of(config, features, Path(runs)) for config in configs], features, device)
    trainer.stack.train()
    for group in trainer.stack.groups:
        if group.memory is not None:
            group.memory.filled = group.memory.size  # as it is after a few batches
    last = trainer.schedule.epochs - 1  # behind the warm-up of losses
    batches, began, steps = trainer.stream.epoch(last), 0.0, 0
    for steps, batch in enumerate(batches, 1):
        trainer.update(batch, last)
        if steps == WARM:
            _wait(device)
            began = time.perf_counter()
        if steps == WARM + STEPS:
            break
    _wait(device)
    timed = steps - WARM
    if timed < 1:  # a split of two batches: there is nothing to wait for
        return 0.0
    return (time.perf_counter() - began) / timed * trainer.steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
