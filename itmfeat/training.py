"""The one training loop: K runs on one stream, their checkpoints, and the choice by validation alone."""

import math
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itmfeat import retrieval
from itmfeat.config import RunConfig, ScheduleConfig
from itmfeat.errors import ItmfeatError, UsageError
from itmfeat.features import Features, reopen
from itmfeat.heads import input_statistics
from itmfeat.loader import Source, Stream
from itmfeat.noise import Noisy, corrupt, from_file
from itmfeat.pairs import Pairs
from itmfeat.runs import Run
from itmfeat.stack import Stack, embed_pairs, head_state, load_heads

LISTED = 10  # hits of each query that a run keeps, found by FAISS

Progress = Callable[[int, int, str], None]
"""Called with finished steps, all steps and a line about the last epoch."""


@dataclass
class Member:
    """One run of the stack while it trains."""

    run: Run
    config: RunConfig
    noise: Noisy
    best: dict[str, Tensor] = field(default_factory=dict)  # heads of the best epoch so far
    best_rsum: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    diverged: int | None = None  # the epoch in which the loss stopped being a number


class Trainer:
    """A stack with its data, optimiser and run folders."""

    def __init__(self, members: list[Member], features: Features, device: torch.device) -> None:
        first = members[0].config
        self.members, self.features, self.device = members, features, device
        self.schedule, self.head = first.schedule, first.head
        per_image = first.data.captions_per_image
        self.pairs = {split: features.pairs(split, per_image) for split in ("train", "val", "test")}
        self.sources = self._sources()
        noises = {member.noise.digest: member.noise.caption_image for member in members}
        order = list(noises)
        train = self.pairs["train"]
        self.stream = Stream(
            self.sources,
            (train.images, train.captions),
            list(noises.values()),
            self.schedule.batch_size,
            seed=self.schedule.order_seed,
            pin=device.type == "cuda",
        )
        statistics = (
            input_statistics(features.image, train.images),
            input_statistics(features.text, train.captions),
        )
        variant = [order.index(member.noise.digest) for member in members]
        configs = [member.config for member in members]
        self.stack = Stack(configs, features.dims, statistics, variant).to(device)
        self.optimizer = _optimizer(self.stack, self.schedule)
        self.step = 0
        self.steps = self.schedule.epochs * self.stream.batches

    def _sources(self) -> tuple[Source, Source]:
        rows = self.pairs.values()
        images = np.concatenate([pairs.images for pairs in rows])
        captions = np.concatenate([pairs.captions for pairs in rows])
        return self.features.sources(self.head, images, captions)

    def train_epoch(self, epoch: int, progress: Progress, line: str) -> Tensor:
        """One pass over the stream; returns the mean loss of each run, (K,)."""
        self.stack.train()
        total = torch.zeros(len(self.stack), device=self.device)
        for batch in self.stream.epoch(epoch):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.schedule, self.step, self.steps)
            losses = self.stack(batch.to(self.device), epoch)  # (K,)
            self.optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()  # the runs share no parameter, so a sum keeps them apart
            self.stack.clip_(self.schedule.clip)
            self.optimizer.step()
            total += losses.detach()
            self.step += 1
            progress(self.step, self.steps, line)
        return total / self.stream.batches

    def validate(self, epoch: int, losses: Tensor, seconds: float) -> list[dict[str, Any]]:
        """Score every run on the validation split and keep its heads where they are the best so far."""
        pairs = self.pairs["val"]
        self.stack.eval()
        images, texts = embed_pairs((self.stack.image, self.stack.text), self.sources, pairs, self.device)
        entries = []
        for place, member in enumerate(self.members):
            loss = float(losses[place])
            if not math.isfinite(loss) and member.diverged is None:
                member.diverged = epoch + 1
            found = _scores(images[place], texts[place], pairs)
            member.seconds += seconds
            if found["rsum"] > member.best_rsum and member.diverged is None:
                member.best_rsum, member.best_epoch = found["rsum"], epoch + 1
                member.best = head_state(self.stack, place)
            entry = {
                "epoch": epoch + 1,
                "step": self.step,
                "loss": loss if math.isfinite(loss) else None,
            }
            entries.append(entry | {"val": found, "seconds": member.seconds})
        return entries

    def finish(self) -> None:
        """Evaluate the best heads of each run on the test split, once, and complete its folder."""
        for member in self.members:
            if member.diverged is not None:
                member.run.write("manifest.json", self.manifest(member) | {"diverged": member.diverged})
                continue
            pairs = self.pairs["test"]
            heads = load_heads(self.head, [member.best], self.device)
            image, text = embed_pairs(heads, self.sources, pairs, self.device)
            results = retrieval.evaluate(
                image[0], text[0], torch.from_numpy(pairs.caption_image).to(self.device)
            )
            lists = {
                "i2t": retrieval.search(image[0], text[0], LISTED)[1],  # (I, 10) captions of the split
                "t2i": retrieval.search(text[0], image[0], LISTED)[1],  # (C, 10) images of the split
            }
            member.run.write_tensors("retrieved.safetensors", lists)
            member.run.write_tensors("head.safetensors", member.best)
            member.run.write("manifest.json", self.manifest(member))
            member.run.write("results.json", results)
            member.run.tidy()

    def manifest(self, member: Member) -> dict[str, Any]:
        """What a table or a reader needs to trust the numbers."""
        names = ("itmfeat", "torch", "numpy", "h5py")
        cuda = self.device.type == "cuda"
        device = torch.cuda.get_device_name(self.device) if cuda else str(self.device)
        return {
            "config": member.config.digest,
            "cache": str(self.features.cache.path.resolve()),
            "noise": {"digest": member.noise.digest, "effective": member.noise.effective},
            "selection": {
                "split": "val",
                "epoch": member.best_epoch,
                "rsum": member.best_rsum if member.best else None,
            },
            "pairs": {
                split: {
                    "images": len(pairs.images),
                    "captions": len(pairs.captions),
                    "dropped": pairs.dropped,
                }
                for split, pairs in self.pairs.items()
            },
            "stack": len(self.stack),
            "seconds": {"train": member.seconds},
            "device": device,
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
            "argv": sys.argv,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def save(self, epochs: int) -> None:
        """A checkpoint of each run after so many epochs, then the older ones go."""
        for place, member in enumerate(self.members):
            tensors = {f"best.{name}": value for name, value in member.best.items()}
            for name, value, index in self.stack.named_slices(place):
                state = self.optimizer.state.get(value, {})
                tensors[f"now.{name}"] = value.detach()[index]
                for key in ("exp_avg", "exp_avg_sq"):
                    tensors[f"{key}.{name}"] = state[key][index]
            facts = [member.best_rsum, member.best_epoch, member.seconds, member.diverged or 0]
            tensors["facts"] = torch.tensor(facts, dtype=torch.float64)
            member.run.write_tensors(member.run.checkpoint(epochs), tensors)
        for member in self.members:
            for number, file in member.run.checkpoints().items():
                if number < epochs:
                    file.unlink()

    def resume(self) -> int:
        """Take up the latest epoch that all runs have a checkpoint of; returns the finished epochs."""
        shared = set.intersection(*(set(member.run.checkpoints()) for member in self.members))
        if not shared:
            return 0
        epochs = max(shared)
        self.step = epochs * self.stream.batches
        for place, member in enumerate(self.members):
            tensors = member.run.read_tensors(member.run.checkpoint(epochs))
            self._restore(place, member, {key: value.to(self.device) for key, value in tensors.items()})
        return epochs

    def _restore(self, place: int, member: Member, tensors: dict[str, Tensor]) -> None:
        prefix = "best."
        member.best = {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
        }
        rsum, epoch, seconds, diverged = tensors["facts"].tolist()
        member.best_rsum, member.best_epoch, member.seconds = rsum, int(epoch), seconds
        member.diverged = int(diverged) or None
        with torch.no_grad():
            for name, value, index in self.stack.named_slices(place):
                value[index] = tensors[f"now.{name}"]
                state = self.optimizer.state[value]
                for key in ("exp_avg", "exp_avg_sq"):
                    state.setdefault(key, torch.zeros_like(value))[index] = tensors[f"{key}.{name}"]
                state["step"] = torch.tensor(float(self.step), device=self.device)


def learning_rate(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Linear rise over the warm-up share, then a half cosine to zero (or constant)."""
    warm = max(1, round(schedule.warmup * steps))
    rise = min(1.0, (step + 1) / warm)
    if schedule.decay == "constant":
        return schedule.lr * rise
    left = max(0.0, (step - warm) / max(1, steps - warm))
    return schedule.lr * rise * 0.5 * (1 + math.cos(math.pi * left))


def train_stack(
    configs: list[RunConfig],
    cache: Path,
    runs: Path,
    device: str = "auto",
    progress: Progress = lambda done, total, line: None,
) -> list[Path]:
    """Train runs that can be stacked side by side, resuming where they were; returns their folders.

    Folders of finished runs must not be among them. A run whose loss stops being a number ends alone.
    """
    if len({config.stackable() for config in configs}) != 1:
        raise UsageError("these runs differ in data, head or schedule and cannot be stacked")
    features = reopen(cache, configs[0].data)
    members = [_member(config, features, runs) for config in configs]
    for group in _by_progress(members):
        trainer = Trainer(group, features, choose_device(device))
        with ExitStack() as locks:
            for member in group:  # only now: a request that fails leaves no folder behind
                member.run.start(member.config)
                locks.callback(os.close, member.run.lock())
            _train(trainer, progress)
    failed = [member for member in members if member.diverged is not None]
    if failed:
        raise ItmfeatError(
            f"{failed[0].run.path} diverged in epoch {failed[0].diverged}: its loss is no number any more; "
            "try a lower learning rate"
        )
    return [member.run.path for member in members]


def _by_progress(members: list[Member]) -> list[list[Member]]:
    """Runs that go on together: all that share a checkpoint, else those that are equally far."""
    found = [set(member.run.checkpoints()) for member in members]
    if set.intersection(*found) or not any(found):
        return [members]
    groups: dict[int, list[Member]] = {}
    for member, epochs in zip(members, found, strict=True):
        groups.setdefault(max(epochs, default=0), []).append(member)
    return list(groups.values())


def _train(trainer: Trainer, progress: Progress) -> None:
    """All epochs that are left, then the test split."""
    line = ""
    for epoch in range(trainer.resume(), trainer.schedule.epochs):
        if all(member.diverged is not None for member in trainer.members):
            break
        start = time.perf_counter()
        losses = trainer.train_epoch(epoch, progress, line)
        entries = trainer.validate(epoch, losses, time.perf_counter() - start)
        for member, entry in zip(trainer.members, entries, strict=True):
            member.run.log(epoch, entry)
        trainer.save(epoch + 1)
        line = f"epoch {epoch + 1}, val rSum " + " ".join(f"{e['val']['rsum']:.1f}" for e in entries)
    trainer.finish()


def _member(config: RunConfig, features: Features, runs: Path) -> Member:
    """The run folder (not made yet) and the noise of a configuration."""
    pairs = features.pairs("train", config.data.captions_per_image)
    asked = config.noise
    if asked.file:
        noise = from_file(Path(asked.file), pairs.caption_image)
    else:
        noise = corrupt(pairs.caption_image, asked.protocol, asked.ratio, asked.seed)
    return Member(Run(runs / config.name), config, noise)


def _optimizer(stack: Stack, schedule: ScheduleConfig) -> torch.optim.AdamW:
    """AdamW with decay on the matrices alone; fused, so that a step reads each parameter once."""
    matrices = [value for value in stack.parameters() if value.dim() > 2]
    others = [value for value in stack.parameters() if value.dim() <= 2]
    groups = [
        {"params": matrices, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.lr, fused=True)


def choose_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(device.type)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} is not available here; try --device auto") from error
    return device


def _scores(image: Tensor, text: Tensor, pairs: Pairs) -> dict[str, float]:
    """rSum and the six recalls of one run on the validation split."""
    caption_image = torch.from_numpy(pairs.caption_image).to(image.device)
    found = retrieval.results(retrieval.ranks(image, text, caption_image), split="val")
    flat = {f"{way}_{key}": found[way][key] for way in ("i2t", "t2i") for key in ("r1", "r5", "r10")}
    return {"rsum": found["rsum"], **flat}
