"""How well the two halves of a pair agree, judged in each modality's own frozen space by trusted pairs.

Image and text features need not share a space: a pair is compared with a memory of A trusted pairs, its image
with their images and its caption with their captions. A right pair is similar to the same ones in both.
Cosines are those of centred features, since the features of frozen backbones share a large mean; those of
unlike items then lie around zero.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from itmfeat.robust.method import Means

BLOCK = 2048  # captions that are judged at once


def trusted(loss: Tensor, share: float) -> Tensor:
    """The `share` of the pairs with the smallest loss, smallest first: (C,) -> (K,) int64, K >= 2 if C is."""
    count = min(max(round(share * len(loss)), 2), len(loss))
    return loss.argsort(stable=True)[:count]


def spaced(places: Tensor, most: int) -> Tensor:
    """At most `most` of the places, evenly spaced from the first to the last: (K,) -> (A,)."""
    if len(places) <= most:
        return places
    return places[torch.linspace(0, len(places) - 1, most, dtype=torch.float64).round().long()]


def ratio_consistency(features: Means, given: Tensor, memory: Tensor, device: torch.device) -> Tensor:
    """Similarity ratios of BiCro (CVPR 2023, code xu5zhao/BiCro): given (C,), memory (A,) -> (C,) in [0, 1].

        y = 1/2 [min(v_a / t_a, t_a / v_a) + min(v_b / t_b, t_b / v_b)]

    v and t are the similarities of a pair's image and caption to those of the memory, a is the pair of the
    memory with the nearest image, b the one with the nearest caption. A pair of the memory is compared with
    the others, so that all scores mean the same. `given` (C,) holds the image of each caption, `memory`
    the captions of the trusted pairs. Cosines of centred features can be negative, where a ratio has no
    meaning: they count as 0, and a ratio of two zeros as 0.
    """
    score = torch.empty(len(given), device=device)
    own = torch.full((len(given),), -1, device=device)
    own[memory.to(device)] = torch.arange(len(memory), device=device)
    for captions, place, by_image, by_text in _similarities(features, given, memory, device):
        itself = own[captions].unsqueeze(1) == torch.arange(len(memory), device=device)
        v, t = (s.masked_fill(itself, 0).clamp(min=0) for s in (by_image[place], by_text))  # (n, A)
        score[captions] = (_ratio(v, t, v.argmax(1)) + _ratio(v, t, t.argmax(1))) / 2
    return score


def _ratio(v: Tensor, t: Tensor, column: Tensor) -> Tensor:
    """min(v / t, t / v) at a column of each row, (n, A) -> (n,)."""
    both = torch.stack([s.gather(1, column.unsqueeze(1)).squeeze(1) for s in (v, t)])
    return both.amin(0) / both.amax(0).clamp(min=1e-12)


def rank_consistency(features: Means, given: Tensor, memory: Tensor, device: torch.device) -> Tensor:
    """Rank correlation of the distances to the memory (REPAIR, arXiv 2403.08224): (C,) in [-1, 1].

        rho = 1 - 6 sum_k (r_k - q_k)^2 / (A (A^2 - 1))

    r and q rank the A pairs of the memory by their distance from the pair's image and from its caption
    (Spearman). `given` (C,) holds the image of each caption, `memory` (A,) the captions of the trusted pairs.
    Equal distances, of captions of one image, are ranked in the order of the memory.
    """
    score = torch.empty(len(given), device=device)
    size = len(memory)
    for captions, place, by_image, by_text in _similarities(features, given, memory, device):
        apart = _ranks(by_image)[place] - _ranks(by_text)
        score[captions] = 1 - 6 * apart.square().sum(1) / max(size * (size**2 - 1), 1)
    return score


def _ranks(s: Tensor) -> Tensor:
    """Ranks of the columns in each row, (n, A) -> (n, A) of the same dtype."""
    order = s.argsort(dim=1, stable=True)
    places = torch.arange(s.shape[1], device=s.device, dtype=s.dtype).expand_as(s)
    return torch.empty_like(s).scatter_(1, order, places)


def rescaled(score: Tensor, reference: Tensor, quantile: float) -> Tensor:
    """Scores (C,) as labels in [0, 1], of which that quantile of the `reference` scores (K,) is 1.

    Where it is not above zero, trusted pairs agree no better than others, the scores tell nothing, and all
    labels are 1.
    """
    typical = reference.quantile(quantile)
    return (score / typical).clamp(0, 1) if typical > 0 else torch.ones_like(score)


def _similarities(
    features: Means, given: Tensor, memory: Tensor, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Cosines to the memory: captions (n,), places of their images (n,) in images (m, A), captions (n, A).

    Blocks go in the order of the images, so the images of a block are few and each is compared once.
    """
    means = [x.mean(0) for x in features]
    given, memory = given.cpu(), memory.cpu()

    def unit(side: int, rows: Tensor) -> Tensor:
        return F.normalize((features[side][rows] - means[side]).to(device), dim=1)

    image, text = unit(0, given[memory]), unit(1, memory)  # (A, D), (A, D')
    order = given.argsort(stable=True)
    for start in range(0, len(order), BLOCK):
        captions = order[start : start + BLOCK]
        images, place = np.unique(given[captions].numpy(), return_inverse=True)
        by_image, by_text = unit(0, torch.from_numpy(images)) @ image.T, unit(1, captions) @ text.T
        yield captions.to(device), torch.from_numpy(place).to(device), by_image, by_text
