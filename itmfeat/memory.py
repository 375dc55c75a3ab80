"""A memory of recent batches: momentum heads of some nets, queues of their embeddings, statistics.

Larger batches of negatives than fit into one, after momentum contrast (MoCo, He et al., CVPR 2020, arXiv
1911.05722): what the queues hold was embedded by averages of the heads, which change slowly. For
`fne`, the one loss that looks beyond its batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itmfeat.heads import Head
from itmfeat.loader import Batch
from itmfeat.losses.similarity import Similarities, Statistics, Way

DECAY = 0.99  # of the statistics with each batch: they look back on about 100


@dataclass(frozen=True)
class Latest:
    """A batch as the queues take it: momentum embeddings of k nets, normalised."""

    image: Tensor  # (k, B, E)
    text: Tensor  # (k, B, E)
    ids: Tensor  # (B,) given images
    true: Tensor  # (k, B) true images of the captions, -1 where unknown


@dataclass(frozen=True)
class Picker:
    """Similarities of each query to one of M = B + filled candidates, with a gradient for the query."""

    image: Tensor  # (k, B, E) of the heads, normalised
    text: Tensor
    latest: Latest
    images: Tensor  # (k, size, E), the queues
    texts: Tensor
    positive: Tensor  # (B, M)
    ids: Tensor  # (M,)
    true: Tensor  # (k, M)
    drawn: Tensor  # (k, 2): negatives that are known to match, negatives of which it is known

    def __call__(self, way: Way, index: Tensor) -> Tensor:
        """Candidates (k, B) -> similarities (k, B); counts the false negatives among them."""
        query, batch, queue = (
            (self.image, self.latest.text, self.texts)
            if way == "image"
            else (self.text, self.latest.image, self.images)
        )
        with torch.no_grad():
            self._count(way, index)
            size = batch.shape[1]
            runs = torch.arange(len(index), device=index.device).unsqueeze(1)
            old = queue[runs, (index - size).clamp(min=0)]  # (k, B, E)
            new = batch[runs, index.clamp(max=size - 1)]
            candidates = new.where((index < size).unsqueeze(-1), old)
        return (query * candidates).sum(-1)

    def _count(self, way: Way, index: Tensor) -> None:
        """Add to `drawn` what the annotation knows as a negative."""
        size = index.shape[-1]
        given, true = self.ids.expand(len(index), -1), self.true
        if way == "image":
            given, true = given[:, :size], true.gather(1, index)
        else:
            given, true = given.gather(1, index), true[:, :size]
        annotated = self.positive.expand(len(index), -1, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
        known = ~annotated & (true >= 0)
        self.drawn.add_(torch.stack([(known & (given == true)).sum(-1), known.sum(-1)], -1))


class Memory(nn.Module):
    """What k nets of a stack that share a loss remember; `nets` (k,) are their places in the stack.

    A call takes a batch with its similarities and returns those to the batch and the queues. A batch enters
    the queues at the next call, since the loss may still ask for a candidate that it would push out.
    """

    nets: Tensor  # (k,)
    images: Tensor  # (k, size, E)
    texts: Tensor
    ids: Tensor  # (size,)
    true: Tensor  # (k, size)
    moments: Tensor  # (k, 2, 3) of matches and negatives: weight, mean, sum of squared deviations
    count: Tensor  # (k,) matches seen
    drawn: Tensor  # (k, 2) since the last report

    def __init__(self, heads: tuple[Head, Head], nets: Tensor, size: int, momentum: float) -> None:
        super().__init__()
        self.size, self.momentum = size, momentum
        self.image, self.text = (head.copied(nets) for head in heads)
        k, dim = self.image.linear.bias.shape
        for name, value in {
            "nets": nets,
            "images": torch.zeros(k, size, dim),
            "texts": torch.zeros(k, size, dim),
            "ids": torch.full((size,), -1),
            "true": torch.full((k, size), -1),
            "moments": torch.zeros(k, 2, 3),
            "count": torch.zeros(k),
            "drawn": torch.zeros(k, 2, dtype=torch.int64),
        }.items():
            self.register_buffer(name, value, persistent=False)
        self.pointer = self.filled = 0
        self.latest: Latest | None = None

    def forward(
        self,
        s: Similarities,
        image: Tensor,
        text: Tensor,
        batch: Batch,
        variant: Tensor,
        truth: Tensor | None,
        heads: tuple[Head, Head],
    ) -> Similarities:
        """Similarities (k, B, B) and embeddings (k, B, E) of a batch -> similarities (k, B, B + filled).

        `variant` (k,) says which noise each net takes, `truth` (C,) which image each caption of the split
        truly shows (for the report alone). `heads` are those of the whole stack. The result has a gradient
        by `pick` alone, so epochs in which the loss warms up with its batch do without. May run under the
        autocast of the heads: everything else computes in float32.
        """
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        with torch.no_grad():
            self._enqueue()
            self._follow(heads)
            self.latest = latest = self._embed(batch, variant, truth)
            self._observe(s)
            ids = torch.cat([latest.ids, self.ids[: self.filled]])
            true = torch.cat([latest.true, self.true[:, : self.filled]], -1)
            i2t = self._dense(image, latest.text, self.texts)
            t2i = self._dense(text, latest.image, self.images)
            positive = latest.ids.unsqueeze(1) == ids
        picker = Picker(image, text, latest, self.images, self.texts, positive, ids, true, self.drawn)
        return replace(
            s,
            i2t=i2t,
            t2i=t2i,
            positive=positive,
            statistics=self.statistics(),
            draw_seed=batch.image.drop_seed,
            picker=picker,
        )

    def _enqueue(self) -> None:
        """The batch of the last call takes the oldest places."""
        if self.latest is None:
            return
        latest, self.latest = self.latest, None
        last = min(len(latest.ids), self.size)  # of a batch larger than the queue
        places = (self.pointer + torch.arange(last, device=self.ids.device)) % self.size
        self.images[:, places] = latest.image[:, -last:]
        self.texts[:, places] = latest.text[:, -last:]
        self.ids[places] = latest.ids[-last:]
        self.true[:, places] = latest.true[:, -last:]
        self.pointer = (self.pointer + last) % self.size
        self.filled = min(self.filled + last, self.size)

    def _follow(self, heads: tuple[Head, Head]) -> None:
        """Averages of the heads: m * average + (1 - m) * head; a copy of them where no match was seen yet."""
        step = torch.where(self.count > 0, 1 - self.momentum, 1.0)
        for average, head in zip((self.image, self.text), heads, strict=True):
            for old, new in zip(average.parameters(), head.parameters(), strict=True):
                old.lerp_(new[self.nets], step.view(-1, *[1] * (old.dim() - 1)))

    def renew(self, index: int) -> None:
        """A net starts anew: forget its statistics, and copy its heads at the next call.

        Its queues turn over in size / B steps.
        """
        self.moments[index] = self.count[index] = 0

    def _embed(self, batch: Batch, variant: Tensor, truth: Tensor | None) -> Latest:
        """A batch as the momentum heads see it, without dropout."""
        device = self.ids.device
        image = self.image(replace(batch.image, drop_seed=None))
        text = self.text(replace(batch.text, drop_seed=None), variant)
        captions = batch.captions.to(device)[variant]  # (k, B)
        true = torch.full_like(captions, -1) if truth is None else truth.to(device)[captions]
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        return Latest(image, text, batch.image_ids.to(device), true)

    def _observe(self, s: Similarities) -> None:
        """Take up pairs whose image and caption are each other's most similar: they are hardly ever wrong."""
        match, among = s.pair, s.i2t.masked_fill(s.positive, -torch.inf)
        rows, columns = among.amax(-1), among.amax(-2)  # hardest negatives, (k, B)
        sure = (match > rows) & (match > columns) & (rows > -torch.inf)
        of_match = _update(self.moments[:, 0], match, sure)
        of_negative = _update(self.moments[:, 1], torch.cat([rows, columns], -1), sure.repeat(1, 2))
        self.moments.copy_(torch.stack([of_match, of_negative], 1))
        self.count.add_(sure.sum(-1))

    def statistics(self) -> Statistics:
        """The distributions as they are now, (k,) each."""
        weight, mean, squares = self.moments.unbind(-1)  # (k, 2) each
        variance = squares / weight.clamp(min=1)
        return Statistics(mean[:, 0], variance[:, 0], mean[:, 1], variance[:, 1], self.count.clone())

    def _dense(self, query: Tensor, batch: Tensor, queue: Tensor) -> Tensor:
        """(k, B, E) against the batch and the filled part of a queue, (k, B, B + filled)."""
        size = batch.shape[1]
        dense = query.new_empty(*query.shape[:2], size + self.filled)
        with torch.autocast(query.device.type, enabled=False):
            torch.matmul(query, batch.mT, out=dense[..., :size])
            torch.matmul(query, queue[:, : self.filled].mT, out=dense[..., size:])
        return dense

    def report(self) -> list[dict[str, float]]:
        """Of each net since the last report: the share of false negatives among those drawn, where known.

        And the means of the statistics, once there are any.
        """
        found = []
        for (false, known), (match, negative), count in zip(
            self.drawn.tolist(), self.moments[:, :, 1].tolist(), self.count.tolist(), strict=True
        ):
            facts = {"false_negatives": false / known} if known else {}
            found.append(facts | ({"mean_match": match, "mean_negative": negative} if count else {}))
        self.drawn.zero_()
        return found

    def _views(self, index: int) -> Iterator[tuple[str, Tensor]]:
        """What a net owns, to read or to write."""
        for side in ("image", "text"):
            for name, value in getattr(self, side).named_parameters():
                yield f"{side}.{name}", value.detach()[index]
        for name in ("images", "texts", "true", "moments", "count", "drawn"):
            yield name, getattr(self, name)[index]
        yield "ids", self.ids

    def state(self, index: int) -> dict[str, Tensor]:
        """All that a net remembers, in tensors of fixed shapes: views, and the places of the queue.

        The pending batch enters the queues first, as the next call would do.
        """
        with torch.no_grad():
            self._enqueue()
        places = torch.tensor([self.pointer, self.filled])
        return {**dict(self._views(index)), "places": places}

    @torch.no_grad()
    def restore(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Write back what `state` gave; all nets have to come from the same step."""
        self.latest = None
        for name, value in self._views(index):
            value.copy_(tensors[name])
        self.pointer, self.filled = tensors["places"].tolist()


def _update(moments: Tensor, values: Tensor, counted: Tensor) -> Tensor:
    """Weight, mean and sum of squared deviations (k, 3) after the counted ones of values (k, n).

    What was there fades by `DECAY`, and the two sets are joined by Chan's formula; nothing counted, nothing
    changes.
    """
    weight, mean, squares = moments.unbind(-1)
    added = counted.sum(-1)
    fade = torch.where(added > 0, DECAY, 1.0)
    center = values.where(counted, 0).sum(-1) / added.clamp(min=1)
    spread = (values - center.unsqueeze(-1)).square().where(counted, 0).sum(-1)
    weight, squares = fade * weight, fade * squares
    share, shift = added / (weight + added).clamp(min=1), center - mean
    joined = squares + spread + shift.square() * weight * share
    return torch.stack([weight + added, mean + shift * share, joined], -1)
