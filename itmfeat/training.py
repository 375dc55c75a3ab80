"""The one training loop: a stack on one stream, checkpoints, and the choice by validation alone."""

import ctypes
import math
import platform
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itmfeat import retrieval, robust
from itmfeat.checkpoint import by_progress, resume, save
from itmfeat.config import RunConfig, ScheduleConfig
from itmfeat.errors import DataError, ItmfeatError, Note, UsageError, silent
from itmfeat.features import Features, reopen
from itmfeat.heads import input_statistics
from itmfeat.loader import Batch, Source, Stream
from itmfeat.losses import similarities
from itmfeat.members import Member, claimed, member_of
from itmfeat.pairs import Pairs
from itmfeat.robust import Means, Method, Scores, Setting, scored
from itmfeat.stack import Stack, StackedRun, embed_pairs, head_state, joined, load_heads, stacked

LISTED = 10  # hits of each query that a run keeps, found by FAISS
PAUSE = 20  # times what a checkpoint took, until the next: saving costs about 5 %, a kill a little more work

Progress = Callable[[int, int, str], None]
"""Called with finished steps, all steps and a line about the last epoch."""

Logged = Callable[[Path], None]
"""Called with the folder of a run when it has one more epoch."""


class Trainer:
    """A stack with its data, optimiser and run folders."""

    def __init__(
        self,
        members: list[Member],
        features: Features,
        device: torch.device,
        resident: str = "auto",
        note: Note = silent,
    ) -> None:
        first = members[0].config
        self.members, self.features, self.device = members, features, device
        self.schedule, self.head = first.schedule, first.head
        per_image = first.data.captions_per_image
        self.pairs = {split: features.pairs(split, per_image) for split in ("train", "val", "test")}
        self.sources = self._sources(resident, note)
        noises = {member.noise.digest: member.noise.caption_image for member in members}
        order = list(noises)
        train = self.pairs["train"]
        self.stream = Stream(
            self.sources,
            (train.images, train.captions),
            list(noises.values()),
            self.schedule.batch_size,
            seed=self.schedule.order_seed,
            order=self.schedule.order,
            device=device,
        )
        statistics = (
            input_statistics(features.image, train.images),
            input_statistics(features.text, train.captions),
        )
        means = cache(partial(features.means, train))
        methods = [self._method(member, means) for member in members]
        self.stack = Stack(
            stacked([member.config for member in members], methods),
            features.dims,
            statistics,
            [order.index(member.noise.digest) for member in members],
            train.caption_image,
        ).to(device)
        self.optimizer = _optimizer(self.stack, self.schedule)
        self.step = 0
        self.steps = self.schedule.epochs * self.stream.batches

    def _method(self, member: Member, means: Callable[[], Means]) -> Method:
        given = torch.from_numpy(member.noise.caption_image).to(self.device)
        setting = Setting(given, self.schedule.epochs, self.device, means)
        return robust.build(setting=setting, **member.config.robust)

    def _sources(self, resident: str, note: Note) -> tuple[Source, Source]:
        rows = self.pairs.values()
        images = np.concatenate([pairs.images for pairs in rows])
        captions = np.concatenate([pairs.captions for pairs in rows])
        return self.features.sources(self.head, images, captions, self.device, resident, note)

    def begin_epoch(self, epoch: int, progress: Progress) -> None:
        """Restarts, and what the methods of the runs decide before an epoch."""
        asking = [net for run in self.stack.runs if run.method.asks for net in run.indices]

        @cache
        def scores() -> Scores:
            progress(self.step, self.steps, "scoring the training pairs")
            return self.scores(epoch, asking)

        def of(run: StackedRun) -> Scores:
            return scores().of([asking.index(net) for net in run.indices])

        for run in self.stack.runs:
            if run.method.restarts(epoch):
                self._restart(run, epoch)
        for run in self.stack.runs:
            run.method.begin(epoch, partial(of, run))

    def _restart(self, run: StackedRun, epoch: int) -> None:
        """Give a run new nets. AdamW's second moments stay, as its count of steps does: without them the
        first steps would be several times too long.
        """
        self.stack.redraw_(run, epoch)
        for value, nets in self.stack.trained():
            own = [place for place, net in enumerate(nets.tolist()) if net in run.indices]
            self.optimizer.state[value]["exp_avg"][own] = 0

    @torch.no_grad()
    def scores(self, epoch: int, nets: list[int]) -> Scores:
        """How some nets see each training pair, (n, C): one pass over the split without a step."""
        self.stack.eval()
        chosen = torch.tensor(nets, device=self.device)
        heads = self.stack.image.copied(chosen), self.stack.text.copied(chosen)
        table: Scores | None = None
        for gathered in self.stream.every_pair(epoch):
            batch = gathered.to(self.device)
            image, text = self.stack.embed(batch, heads, self.stack.variant[chosen])
            part = scored(similarities(image, text, batch.image_ids.to(self.device)))
            if table is None:
                table = part.blank(self.stream.caption_count)
            table.put(self.stack.captions(batch)[chosen], part)
        assert table is not None
        return table

    def train_epoch(self, epoch: int, progress: Progress, line: str) -> Tensor:
        """One pass over the stream; returns the mean loss of each run, (number of runs,)."""
        self.stack.train()
        total = torch.zeros(len(self.stack), device=self.device)
        match = torch.full((len(self.stack), self.stream.caption_count), torch.nan, device=self.device)
        for batch in self.stream.epoch(epoch):
            losses, matches = self.update(batch, epoch)
            total += losses
            match.scatter_(1, self.stack.captions(batch), matches)
            progress(self.step, self.steps, line)
        for member, own in zip(self.members, self.stack.runs, strict=True):
            seen = match[own.nets].mean(0).cpu()
            member.match.copy_(seen.where(~seen.isnan(), member.match))
        return torch.stack([total[own.nets].mean() for own in self.stack.runs]) / self.stream.batches

    def update(self, gathered: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """One step; returns the loss of each net, (K,), and how well it matches each pair, (K, B)."""
        batch = gathered.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.schedule, self.step, self.steps)
        losses, matches = self.stack(batch, epoch, self.step)  # (K,), (K, B)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # the nets share no parameter, so a sum keeps them apart
        self.stack.clip_(self.schedule.clip)
        self.optimizer.step()
        self.step += 1
        return losses.detach(), matches

    def validate(self, epoch: int, losses: Tensor, seconds: float) -> list[dict[str, Any]]:
        """Score every run on the validation split and keep its heads where they are the best so far."""
        pairs = self.pairs["val"]
        self.stack.eval()
        images, texts = embed_pairs((self.stack.image, self.stack.text), self.sources, pairs, self.device)
        entries, reports = [], self.stack.reports()
        for place, (member, own) in enumerate(zip(self.members, self.stack.runs, strict=True)):
            loss = float(losses[place])
            if not math.isfinite(loss) and member.diverged is None:
                member.diverged = epoch + 1
            found = _scores(joined(images[own.nets]), joined(texts[own.nets]), pairs)
            member.seconds += seconds
            if found["rsum"] > member.best_rsum and member.diverged is None:
                member.best_rsum, member.best_epoch = found["rsum"], epoch + 1
                member.best = head_state(self.stack, own)
            entry = {
                "epoch": epoch + 1,
                "step": self.step,
                "loss": loss if math.isfinite(loss) else None,
                "val": found,
                "seconds": member.seconds,
            }
            facts = {
                "separation": member.separation(own.method.split()),
                "memory": reports.get(own.nets.start),
            }
            entries.append(entry | {name: value for name, value in facts.items() if value})
        return entries

    def finish(self) -> None:
        """Complete the folder of each run; an error of one is raised when the others are complete."""
        errors = []
        for member in self.members:
            try:
                self._complete(member)
            except DataError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _complete(self, member: Member) -> None:
        """Evaluate the best heads of a run on the test split, once, and write down what came out."""
        if member.diverged is not None:
            member.run.write("manifest.json", self.manifest(member) | {"diverged": member.diverged})
            return
        pairs = self.pairs["test"]
        heads = load_heads(self.head, member.best, self.device)
        image, text = map(joined, embed_pairs(heads, self.sources, pairs, self.device))
        ranks: dict[str, retrieval.Ranks] = {}
        results = retrieval.evaluate_split(image, text, pairs, self.features.cache.index, kept=ranks)
        lists = {
            "i2t": retrieval.search(image, text, LISTED)[1],  # (I, 10) captions of the split
            "t2i": retrieval.search(text, image, LISTED)[1],  # (C, 10) images of the split
        }
        member.run.write_tensors("retrieved.safetensors", lists)
        member.run.write_tensors(retrieval.RANKS_FILE, retrieval.to_tensors(ranks, pairs))
        member.run.write_tensors("head.safetensors", member.best)
        member.run.write("manifest.json", self.manifest(member))
        member.run.write("results.json", results)
        member.run.tidy()

    def manifest(self, member: Member) -> dict[str, Any]:
        """What a table or a reader needs to trust the numbers."""
        names = ("itmfeat", "torch", "numpy", "h5py", "scikit-learn")
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
                    "missing": pairs.missing,
                }
                for split, pairs in self.pairs.items()
            },
            "stack": len(self.members),
            "seconds": {"train": member.seconds},
            "match": member.histogram(),
            "device": device,
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
            "argv": sys.argv,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }


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
    *,
    resident: str = "auto",
    verify: bool = False,
    logged: Logged = lambda run: None,
    note: Note = silent,
) -> list[Path]:
    """Train runs that can be stacked side by side, resuming where they were; returns their folders.

    Runs that are finished, perhaps by another process meanwhile, stay as they are. A run whose loss stops
    being a number ends alone; one that another process trains is left to it, and is an error in the end.
    `resident` says where the features stay (`itmfeat.residency`), `verify` compares every byte of them first:
    otherwise each range is when it is read for the first time.
    """
    if len({config.stackable() for config in configs}) != 1:
        raise UsageError("these runs differ in data, head or schedule and cannot be stacked")
    keep_freed_memory()
    features = reopen(cache, configs[0].data)
    if features.missing:
        note(features.missing)
    if verify:
        features.verify()
    members = [member_of(config, features, runs) for config in configs]
    where = choose_device(device)
    taken: list[DataError] = []
    for group in by_progress(members):
        trainer = Trainer(group, features, where, resident, note)
        with ExitStack() as locks:
            # Only now: a request that fails leaves no folder behind.
            left = [member for member in group if claimed(member, locks, taken)]
            if left and len(left) < len(group):
                del trainer  # and what it holds of a GPU's memory
                trainer = Trainer(left, features, where, resident, note)
            if left:
                _train(trainer, progress, logged)
    reasons = [str(error) for error in taken]
    failed = next((member for member in members if member.diverged is not None), None)
    if failed is not None:
        diverged = f"{failed.run.path} diverged in epoch {failed.diverged}: its loss is no number any more"
        raise ItmfeatError("; ".join([f"{diverged}; try a lower learning rate", *reasons]))
    if taken:
        raise DataError("; ".join(reasons))
    return [member.run.path for member in members]


def _train(trainer: Trainer, progress: Progress, logged: Logged) -> None:
    """All epochs that are left, then the test split."""
    line = ""
    members, stack, optimizer = trainer.members, trainer.stack, trainer.optimizer
    first = resume(members, stack, optimizer, trainer.stream.batches)
    trainer.step = first * trainer.stream.batches
    due = 0.0
    for epoch in range(first, trainer.schedule.epochs):
        if all(member.diverged is not None for member in members):
            break
        start = time.perf_counter()
        trainer.begin_epoch(epoch, progress)
        losses = trainer.train_epoch(epoch, progress, line)
        entries = trainer.validate(epoch, losses, time.perf_counter() - start)
        for member, entry in zip(members, entries, strict=True):
            member.run.log(epoch, entry)
        over = epoch + 1 == trainer.schedule.epochs or all(member.diverged is not None for member in members)
        if (began := time.perf_counter()) >= due or over:
            save(members, stack, optimizer, epoch + 1)
            due = (1 + PAUSE) * time.perf_counter() - PAUSE * began
        for member in members:
            logged(member.run.path)
        line = f"epoch {epoch + 1}, val rSum " + " ".join(f"{e['val']['rsum']:.1f}" for e in entries)
    trainer.finish()


def _optimizer(stack: Stack, schedule: ScheduleConfig) -> torch.optim.AdamW:
    """AdamW with decay on the matrices alone; fused, so that a step reads each parameter once."""
    matrices = [value for value, _ in stack.trained() if value.dim() > 2]
    others = [value for value, _ in stack.trained() if value.dim() <= 2]
    groups = [
        {"params": matrices, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.lr, fused=True)


def keep_freed_memory() -> None:
    """Let the C library (glibc) keep freed memory for the next step instead of giving it back.

    A step frees and makes gradients as large as all weights of a stack, and pages that come fresh from the
    kernel have to be zeroed first, which took about a fifth of a step of 24 runs.
    """
    trim_threshold, mmap_max = -1, -4  # names of the two settings in malloc.h
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


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
