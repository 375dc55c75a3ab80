"""Every loss and method, under every head: a run in a mixed stack takes the steps that it takes alone."""

from itertools import count
from pathlib import Path

import pytest
import torch
from test_training import config
from test_training_robust import CASES, case
from torch import Tensor

from itmfeat.config import HEADS, RunConfig
from itmfeat.features import open_features
from itmfeat.losses import LOSSES
from itmfeat.members import member_of
from itmfeat.training import Trainer

STEPS = 200
CPU = torch.device("cpu")
# Where two negatives are equal within rounding, the hardest may be another one in a stack, and from there
# on the run goes another way: seen once among 160 settings.
PARTS = pytest.mark.xfail(strict=False, reason="goal-con-con under gpo parts by 0.2 % after 117 steps")
PLAIN = [name for name, facts in LOSSES.items() if facts.robust == "none" and name != "fne"]


def steps(
    configs: list[RunConfig], cache: Path, runs: Path, wanted: int = STEPS, device: torch.device = CPU
) -> Tensor:
    """The losses of the first steps, a row a run (R, steps); two nets of a run count with their mean."""
    features = open_features(cache)
    trainer = Trainer([member_of(one, features, runs) for one in configs], features, device)
    losses: list[Tensor] = []
    for epoch in count():
        trainer.begin_epoch(epoch, lambda done, total, line: None)
        trainer.stack.train()
        for batch in trainer.stream.epoch(epoch):
            found = trainer.update(batch, epoch)[0]
            losses.append(torch.stack([found[run.nets].mean() for run in trainer.stack.runs]))
            if len(losses) == wanted:
                return torch.stack(losses, dim=1)
    raise AssertionError


def mixed(cache: Path, head: str) -> list[RunConfig]:
    """All losses and methods, with noise and seeds that change from one to the next."""
    given = [{"noise": (0.0, 0.4, 0.6)[place % 3], "seed": place} for place in range(len(PLAIN) + len(CASES))]
    plain = [
        config(cache, loss, "head.dim=16", head=head, epochs=34, lr=1e-3, **settings)
        for loss, settings in zip(PLAIN, given, strict=False)
    ]
    methods = [
        case(cache, place, head=head, epochs=34, lr=1e-3, **settings)
        for place, settings in enumerate(given[len(PLAIN) :])
    ]
    return plain + methods


@pytest.mark.slow
@pytest.mark.parametrize(
    "head", [pytest.param(name, marks=[PARTS] if name == "vse-infinity" else []) for name in HEADS]
)
def test_the_first_steps(toy_cache: Path, tmp_path: Path, head: str) -> None:
    configs = mixed(toy_cache, head)
    for one, together in zip(configs, steps(configs, toy_cache, tmp_path), strict=True):
        alone = steps([one], toy_cache, tmp_path)[0]
        torch.testing.assert_close(
            together, alone, rtol=1e-4, atol=1e-6, msg=lambda m, o=one: f"{o.name}: {m}"
        )
