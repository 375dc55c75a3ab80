"""Where runs of a stack go on after a kill: each run's own file, whatever stack it was in."""

from typing import Any

import torch
from torch import Tensor, nn

from itmfeat.members import Member
from itmfeat.memory import Memory
from itmfeat.stack import Stack, StackedRun

MOMENTS = ("exp_avg", "exp_avg_sq")


def by_progress(members: list[Member]) -> list[list[Member]]:
    """Runs that go on together: all that share a checkpoint, else those that are equally far."""
    found = [set(member.run.checkpoints()) for member in members]
    if set.intersection(*found) or not any(found):
        return [members]
    groups: dict[int, list[Member]] = {}
    for member, epochs in zip(members, found, strict=True):
        groups.setdefault(max(epochs, default=0), []).append(member)
    return list(groups.values())


def save(members: list[Member], stack: Stack, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """A checkpoint of each run after so many epochs, then the older ones go."""
    for member, own in zip(members, stack.runs, strict=True):
        tensors = {f"best.{name}": value for name, value in member.best.items()}
        for name, value, index in _trained(stack, own):
            tensors[f"now.{name}"] = value.detach()[index]
            tensors |= {f"{key}.{name}": optimizer.state[value][key][index] for key in MOMENTS}
        tensors |= {f"robust.{name}": value for name, value in own.method.state().items()}
        for prefix, memory, index in _memories(stack, own):
            tensors |= {f"{prefix}.{name}": value for name, value in memory.state(index).items()}
        facts = [member.best_rsum, member.best_epoch, member.seconds, member.diverged or 0]
        tensors["facts"] = torch.tensor(facts, dtype=torch.float64)
        tensors["match"] = member.match
        member.run.write_tensors(member.run.checkpoint(epochs), tensors)
    for member in members:
        for number, file in member.run.checkpoints().items():
            if number != epochs:  # also of a later one, which a kill left to some of the runs
                file.unlink()


def resume(members: list[Member], stack: Stack, optimizer: torch.optim.Optimizer, batches: int) -> int:
    """Take up the latest epoch that all runs have a checkpoint of; returns the finished epochs."""
    shared = set.intersection(*(set(member.run.checkpoints()) for member in members))
    if not shared:
        return 0
    epochs = max(shared)
    for member, own in zip(members, stack.runs, strict=True):
        tensors = member.run.read_tensors(member.run.checkpoint(epochs))
        _restore(member, tensors)
        with torch.no_grad():
            for name, parameter, index in _trained(stack, own):
                parameter[index] = tensors[f"now.{name}"]
                state: dict[str, Any] = optimizer.state[parameter]
                for key in MOMENTS:
                    state.setdefault(key, torch.zeros_like(parameter))[index] = tensors[f"{key}.{name}"]
                state["step"] = torch.tensor(float(epochs * batches), device=parameter.device)
            for name, value in own.method.state().items():
                value.copy_(tensors[f"robust.{name}"])
        for prefix, memory, index in _memories(stack, own):
            memory.restore(index, _under(prefix, tensors))
    return epochs


def _restore(member: Member, tensors: dict[str, Tensor]) -> None:
    """What a run knows besides its nets."""
    member.best = _under("best", tensors)
    rsum, epoch, seconds, diverged = tensors["facts"].tolist()
    member.best_rsum, member.best_epoch, member.seconds = rsum, int(epoch), seconds
    member.diverged = int(diverged) or None
    member.match.copy_(tensors["match"])


def _trained(stack: Stack, run: StackedRun) -> list[tuple[str, nn.Parameter, int]]:
    """Trained parameters of a run's nets with names that do not depend on the stack."""
    return [
        (f"{number}.{name}", value, index)
        for number, net in enumerate(run.indices)
        for name, value, index in stack.named_slices(net)
    ]


def _memories(stack: Stack, run: StackedRun) -> list[tuple[str, Memory, int]]:
    """The memories of a run's nets, if they have any, and their places in them."""
    found = [(f"memory.{number}", stack.memory_of(net)) for number, net in enumerate(run.indices)]
    return [(prefix, *memory) for prefix, memory in found if memory is not None]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix and a dot, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
