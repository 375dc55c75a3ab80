"""A stack: K >= 1 runs trained side by side on one stream of batches. A run alone is a stack of one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from itmfeat.config import HeadConfig, RunConfig
from itmfeat.heads import Head
from itmfeat.loader import Batch, Source, whole
from itmfeat.losses import Objective, build, similarities
from itmfeat.pairs import Ints, Pairs

Statistics = tuple[Tensor, Tensor]

EMBED_BATCH = 512


def build_heads(
    config: HeadConfig,
    dims: tuple[int, int],
    generators: list[torch.Generator],
    statistics: tuple[Statistics, Statistics] | None = None,
) -> tuple[Head, Head]:
    """Image and text heads of K = len(generators) runs; `dims` are the feature dims of both."""
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
            statistics=None if statistics is None else statistics[place],
        )
        for place, (dim, pool) in enumerate(zip(dims, config.poolings, strict=True))
    )
    return image, text


@dataclass(frozen=True)
class Group:
    """Runs of a stack that share a loss with equal parameters."""

    runs: list[int]
    objective: Objective


class Stack(nn.Module):
    """Heads and objectives of K runs. `variant` (K,) says which noise of the stream each run takes."""

    variant: Tensor

    def __init__(
        self,
        configs: list[RunConfig],
        dims: tuple[int, int],
        statistics: tuple[Statistics, Statistics],
        variant: list[int],
    ) -> None:
        super().__init__()
        generators = [torch.Generator().manual_seed(config.seed) for config in configs]
        self.image, self.text = build_heads(configs[0].head, dims, generators, statistics)
        members: dict[str, list[int]] = {}
        for run, config in enumerate(configs):
            members.setdefault(repr(sorted(config.loss.items())), []).append(run)
        self.groups = [
            Group(runs, build(runs=len(runs), **configs[runs[0]].loss)) for runs in members.values()
        ]
        self.objectives = nn.ModuleList(group.objective for group in self.groups)
        self.register_buffer("variant", torch.tensor(variant), persistent=False)
        self.precision = configs[0].schedule.precision

    def __len__(self) -> int:
        return len(self.variant)

    def forward(self, batch: Batch, epoch: int) -> Tensor:
        """The loss of each run on a batch, (K,)."""
        with self._autocast(batch.image.vectors.device):
            image = self.image(batch.image)
            text = self.text(batch.text, self.variant)
        ids = batch.image_ids.to(image.device)
        s = similarities(image.float(), text.float(), ids, epoch=epoch)
        if len(self.groups) == 1:
            alone: Tensor = self.groups[0].objective(s)
            return alone
        losses = torch.empty(len(self), device=image.device)
        for group in self.groups:
            runs = torch.tensor(group.runs, device=image.device)
            losses = losses.index_copy(0, runs, group.objective(s.run(runs)))
        return losses

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def named_slices(self, run: int) -> Iterator[tuple[str, nn.Parameter, int]]:
        """Names, parameters and the place of a run in each: what a run alone would own."""
        for side in ("image", "text"):
            for name, value in getattr(self, side).named_parameters():
                yield f"{side}.{name}", value, run
        for group in self.groups:
            if run in group.runs:
                for name, value in group.objective.named_parameters():
                    yield f"loss.{name}", value, group.runs.index(run)

    @torch.no_grad()
    def clip_(self, limit: float) -> Tensor:
        """Scale the gradients of each run to a norm of at most `limit`; returns the norms, (K,).

        Unlike a clip over all parameters this keeps the runs of a stack independent of each other.
        """
        square = torch.zeros(len(self), device=self.variant.device)
        owned = [*self._with_runs()]
        for value, runs in owned:
            if value.grad is not None:
                rest = tuple(range(1, value.dim()))
                norm = torch.linalg.vector_norm(value.grad, dim=rest) if rest else value.grad
                square[runs] += norm.square()
        norms = square.sqrt()
        factors = (limit / norms.clamp(min=1e-12)).clamp(max=1)
        for value, runs in owned:
            if value.grad is not None:
                value.grad.mul_(factors[runs].view(-1, *[1] * (value.dim() - 1)))
        return norms

    def _with_runs(self) -> Iterator[tuple[nn.Parameter, "list[int]"]]:
        """Each parameter with the runs along its first axis."""
        for head in (self.image, self.text):
            for value in head.parameters():
                yield value, list(range(len(self)))
        for group in self.groups:
            for value in group.objective.parameters():
                yield value, group.runs


def head_state(stack: Stack, run: int) -> dict[str, Tensor]:
    """The heads of one run without the run axis, with the statistics of their inputs."""
    state = {
        name: value.detach()[place].clone()
        for name, value, place in stack.named_slices(run)
        if not name.startswith("loss.")
    }
    for side in ("image", "text"):
        head: Head = getattr(stack, side)
        state |= {f"{side}.mean": head.mean.clone(), f"{side}.scale": head.scale.clone()}
    return state


def load_heads(
    config: HeadConfig, states: list[Mapping[str, Tensor]], device: torch.device
) -> tuple[Head, Head]:
    """Heads of K = len(states) runs from their saved states, for evaluation."""
    dims = len(states[0]["image.mean"]), len(states[0]["text.mean"])
    generators = [torch.Generator() for _ in states]
    heads = build_heads(config, dims, generators)
    for side, head in zip(("image", "text"), heads, strict=True):
        own = {name for name, _ in head.named_parameters()}
        head.load_state_dict(
            {name: torch.stack([state[f"{side}.{name}"] for state in states]) for name in own}
            | {name: states[0][f"{side}.{name}"] for name in ("mean", "scale")}
        )
        head.to(device)
    return heads


@torch.no_grad()
def embed_pairs(
    heads: tuple[Head, Head], sources: tuple[Source, Source], pairs: Pairs, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Normalised embeddings of a split on the device: images (K, I, E) and captions (K, C, E), float32."""

    def embed(head: Head, source: Source, rows: Ints) -> Tensor:
        sides = whole(source, rows, EMBED_BATCH)
        parts = [nn.functional.normalize(head(side.to(device)).float(), dim=-1) for side in sides]
        return torch.cat(parts, dim=1)

    image = embed(heads[0], sources[0], pairs.images)
    return image, embed(heads[1], sources[1], pairs.captions)
