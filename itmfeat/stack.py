"""A stack: runs trained side by side on one stream of batches. A run alone is a stack of one.

K counts nets: a run owns one, or two where its robust method teaches them by each other.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

from itmfeat.config import HeadConfig, RunConfig
from itmfeat.heads import Head
from itmfeat.loader import Batch, Side, Source, whole
from itmfeat.losses import Objective, Similarities, build, similarities
from itmfeat.memory import Memory
from itmfeat.pairs import Ints, Pairs
from itmfeat.robust import Method, margin_factor, matched

InputStatistics = tuple[Tensor, Tensor]

EMBED_BATCH = 512


def build_heads(
    config: HeadConfig,
    dims: tuple[int, int],
    generators: list[torch.Generator],
    statistics: tuple[InputStatistics, InputStatistics] | None = None,
) -> tuple[Head, Head]:
    """Image and text heads of K = len(generators) nets; `dims` are the feature dims of both."""
    image, text = (
        Head(
            dim,
            generators,
            dim=config.dim,
            pool=pool,
            projection=config.projection,
            topk=config.topk,
            dropout=config.dropout,
            hidden_dropout=config.hidden_dropout,
            statistics=None if statistics is None else statistics[side],
        )
        for side, (dim, pool) in enumerate(zip(dims, config.poolings, strict=True))
    )
    return image, text


class Group(nn.Module):
    """Nets of a stack that share a loss and a robust method with equal parameters."""

    index: Tensor  # (k,) of the nets, where the stack is: a GPU would have to be given a list in each step

    def __init__(self, nets: list[int], objective: Objective, method: Method, memory: Memory | None) -> None:
        super().__init__()
        self.nets, self.objective, self.memory = nets, objective, memory
        self.method = method  # of one of their runs, for what is equal in all
        self.register_buffer("index", torch.tensor(nets), persistent=False)


@dataclass(frozen=True)
class StackedRun:
    """A run inside a stack: its configuration, its method, and which nets are its own."""

    config: RunConfig
    method: Method
    nets: slice

    @property
    def indices(self) -> list[int]:
        """The nets one by one."""
        return list(range(self.nets.start, self.nets.stop))


def stacked(configs: list[RunConfig], methods: list[Method]) -> list[StackedRun]:
    """The nets of a stack, handed out to its runs in order."""
    ends = list(accumulate(method.nets for method in methods))
    return [
        StackedRun(config, method, slice(end - method.nets, end))
        for config, method, end in zip(configs, methods, ends, strict=True)
    ]


def net_seed(config: RunConfig, net: int, epoch: int = 0) -> torch.Generator:
    """Draws the start of a run's nets: the first as if it were alone, others and restarts differently."""
    seed = config.seed
    if net or epoch:  # torch reads 32 bits of a seed
        seed = int(np.random.SeedSequence([seed, net, epoch]).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


class Stack(nn.Module):
    """Heads, objectives and labels of K nets; `variant` (K,) says which noise of the stream each takes."""

    variant: Tensor
    truth: Tensor
    every: Tensor

    def __init__(
        self,
        runs: list[StackedRun],
        dims: tuple[int, int],
        statistics: tuple[InputStatistics, InputStatistics],
        variant: list[int],
        truth: Ints,
    ) -> None:
        super().__init__()
        first = runs[0].config
        self.runs, self.dims, self.precision = runs, dims, first.schedule.precision
        generators = [net_seed(run.config, net) for run in runs for net in range(run.method.nets)]
        self.image, self.text = build_heads(first.head, dims, generators, statistics)
        alike: dict[str, list[StackedRun]] = {}
        for run in runs:
            alike.setdefault(repr((run.config.loss, run.config.robust)), []).append(run)
        self.groups = [self._group(shared) for shared in alike.values()]
        self.registered = nn.ModuleList(self.groups)  # the same: modules move with the stack
        noises = [which for run, which in zip(runs, variant, strict=True) for _ in run.indices]
        self.register_buffer("variant", torch.tensor(noises), persistent=False)
        self.register_buffer("truth", torch.from_numpy(truth), persistent=False)  # for diagnosis alone
        self.register_buffer("every", torch.arange(len(noises)), persistent=False)

    def _group(self, runs: list[StackedRun]) -> Group:
        nets = [net for run in runs for net in run.indices]
        objective = build(runs=len(nets), **runs[0].config.loss)
        memory = None
        if size := objective.memory.get("memory"):
            heads = self.image, self.text
            memory = Memory(heads, torch.tensor(nets), size, objective.memory["momentum"])
        return Group(nets, objective, runs[0].method, memory)

    def __len__(self) -> int:
        return len(self.variant)

    def embed(
        self, batch: Batch, heads: tuple[Head, Head] | None = None, variant: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images and texts of a batch, (K, B, E) float32, not normalised; by copied heads if given."""
        to_image, to_text = heads or (self.image, self.text)
        device = batch.image.vectors.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            image = to_image(batch.image)
            text = to_text(batch.text, self.variant if variant is None else variant)
        return image.float(), text.float()

    def captions(self, batch: Batch) -> Tensor:
        """The caption of each slot as each net has it, (K, B), on the device."""
        return batch.captions.to(self.variant.device)[self.variant]

    def forward(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """The loss of each net on a batch, (K,), and how well it matches each pair, (K, B) in [0, 1]."""
        image, text = self.embed(batch)
        ids = batch.image_ids.to(image.device)
        s = similarities(image, text, ids, epoch=epoch, step=step)
        seen = replace(s, i2t=s.i2t.detach(), t2i=s.t2i.detach())
        s = self._labelled(s, seen, self.captions(batch), epoch)
        losses = torch.zeros(len(self), device=image.device)
        for group in self.groups:
            nets = group.index
            own = s if len(self.groups) == 1 else s.run(nets)
            if group.method.warm(epoch):
                own = replace(own, epoch=0)
            if group.memory is not None and not group.objective.warm(own):
                own = group.memory(
                    own,
                    image[nets],
                    text[nets],
                    batch,
                    self.variant[nets],
                    self.truth,
                    (self.image, self.text),
                )
            losses = losses.index_copy(0, nets, group.objective(own))
        return losses, matched(seen)

    def _labelled(self, s: Similarities, seen: Similarities, captions: Tensor, epoch: int) -> Similarities:
        """The similarities with the confidences, margins and weights that the methods of the runs give."""
        tables: dict[str, Tensor] = {}
        for run in self.runs:
            own = replace(seen, i2t=seen.i2t[run.nets], t2i=seen.t2i[run.nets])
            labels = run.method.labels(own, captions[run.nets.start], epoch)
            if labels is None:
                continue
            found = {"weight": labels.weight, "confidence": labels.soft}
            if run.config.robust.get("use") == "margin":
                found = {"weight": labels.weight, "margin_factor": margin_factor(labels.soft)}
            for name, values in found.items():
                if values is not None:
                    table = tables.setdefault(name, torch.ones_like(captions, dtype=torch.float32))
                    table[run.nets] = values
        return replace(
            s,
            confidence=tables.get("confidence"),
            margin_factor=tables.get("margin_factor"),
            weight=tables.get("weight"),
        )

    @torch.no_grad()
    def redraw_(self, run: StackedRun, epoch: int) -> None:
        """Start the nets of a run anew, and its learned scalars."""
        fresh = build_heads(
            run.config.head, self.dims, [net_seed(run.config, n, epoch) for n in range(run.method.nets)]
        )
        for mine, new in zip((self.image, self.text), fresh, strict=True):
            for value, start in zip(mine.parameters(), new.parameters(), strict=True):
                value[run.nets] = start.to(value.device)
        for net in run.indices:
            for name, value, index in self.named_slices(net):
                if name.startswith("loss."):
                    value[index] = 0
            if found := self.memory_of(net):
                memory, index = found
                memory.renew(index)

    def named_slices(self, net: int) -> Iterator[tuple[str, nn.Parameter, int]]:
        """Names, trained parameters and the place of a net in each: what a net alone would own."""
        for side in ("image", "text"):
            for name, value in getattr(self, side).named_parameters():
                yield f"{side}.{name}", value, net
        for group in self.groups:
            if net in group.nets:
                for name, value in group.objective.named_parameters():
                    yield f"loss.{name}", value, group.nets.index(net)

    def trained(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each trained parameter with the nets along its first axis, (k,)."""
        for head in (self.image, self.text):
            for value in head.parameters():
                yield value, self.every
        for group in self.groups:
            for value in group.objective.parameters():
                yield value, group.index

    def memory_of(self, net: int) -> tuple[Memory, int] | None:
        """The memory of a net and its place in it."""
        for group in self.groups:
            if net in group.nets and group.memory is not None:
                return group.memory, group.nets.index(net)
        return None

    def reports(self) -> dict[int, dict[str, float]]:
        """What the memories tell of their nets since the last time."""
        return {
            net: facts
            for group in self.groups
            if group.memory is not None
            for net, facts in zip(group.nets, group.memory.report(), strict=True)
        }

    @torch.no_grad()
    def clip_(self, limit: float) -> Tensor:
        """Scale the gradients of each net to a norm of at most `limit`; returns the norms, (K,).

        Unlike a clip over all parameters this keeps the nets of a stack independent of each other.
        """
        square = torch.zeros(len(self), device=self.variant.device)
        owned = [*self.trained()]
        for value, nets in owned:
            if value.grad is not None:
                rest = tuple(range(1, value.dim()))
                norm = torch.linalg.vector_norm(value.grad, dim=rest) if rest else value.grad
                square.index_add_(0, nets, norm.square())
        norms = square.sqrt()
        factors = (limit / norms.clamp(min=1e-12)).clamp(max=1)
        if norms.is_cpu and bool((factors == 1).all()):  # mostly; a GPU would have to be waited for
            return norms
        for value, nets in owned:
            if value.grad is not None:
                value.grad.mul_(factors[nets].view(-1, *[1] * (value.dim() - 1)))
        return norms


def head_state(stack: Stack, run: StackedRun) -> dict[str, Tensor]:
    """The heads of a run: its nets along the first axis, and the statistics of their inputs."""
    state: dict[str, Tensor] = {}
    for side in ("image", "text"):
        head: Head = getattr(stack, side)
        state |= {
            f"{side}.{name}": value.detach()[run.nets].clone() for name, value in head.named_parameters()
        }
        state |= {f"{side}.mean": head.mean.clone(), f"{side}.scale": head.scale.clone()}
    return state


def load_heads(config: HeadConfig, state: Mapping[str, Tensor], device: torch.device) -> tuple[Head, Head]:
    """The heads of a run from their saved state, for evaluation."""
    dims = len(state["image.mean"]), len(state["text.mean"])
    heads = build_heads(config, dims, [torch.Generator() for _ in state["image.linear.bias"]])
    for side, head in zip(("image", "text"), heads, strict=True):
        head.load_state_dict({name: state[f"{side}.{name}"] for name in head.state_dict()})
        head.to(device)
    return heads


def joined(embeddings: Tensor) -> Tensor:
    """The nets of a run (n, I, E) as one embedding (I, n E), whose cosines are the mean of theirs."""
    return torch.cat(embeddings.unbind(), dim=-1) / math.sqrt(len(embeddings))


@torch.no_grad()
def embed(head: Head, sides: Iterable[Side], device: torch.device) -> Tensor:
    """Normalised embeddings of the items of all sides one after another, (K, I, E) float32 on the device."""
    parts = [nn.functional.normalize(head(side.to(device)).float(), dim=-1) for side in sides]
    return torch.cat(parts, dim=1)


def embed_pairs(
    heads: tuple[Head, Head], sources: tuple[Source, Source], pairs: Pairs, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Normalised embeddings of a split on the device: images (K, I, E) and captions (K, C, E), float32."""
    image = embed(heads[0], whole(sources[0], pairs.images, EMBED_BATCH), device)
    return image, embed(heads[1], whole(sources[1], pairs.captions, EMBED_BATCH), device)
