"""The best hits of each query, by FAISS where it can serve the device."""

import importlib
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from itmfeat.errors import DataError, UsageError
from itmfeat.retrieval.precision import HELD_SCORES, float32, full_precision

FAISS_GPU_MAX_K = 2048


def search(
    queries: Tensor, gallery: Tensor, k: int, device: "torch.device | str | None" = None
) -> tuple[Tensor, Tensor]:
    """The k best of `gallery` (G, E) for each of `queries` (Q, E): scores and ids (Q, min(k, G)).

    Scores descend; equal scores of one list stand by ascending id. The work is done in float32 on
    `device`, or where the queries live: by FAISS, or by torch where FAISS is absent or cannot serve
    that device.
    """
    if k < 1:
        raise UsageError(f"cannot search for the best {k}: ask for at least 1")
    device = queries.device if device is None else torch.device(device)
    queries, gallery = float32(queries, device), float32(gallery, device)
    if not (queries.isfinite().all() and gallery.isfinite().all()):
        raise DataError(
            "the embeddings hold NaN or infinite values, so they cannot be searched: "
            "the head diverged, train it again with a lower learning rate"
        )
    k = min(k, len(gallery))
    faiss = faiss_library()
    if faiss is not None and _faiss_serves(faiss, device, k):
        return _by_id_where_equal(*_faiss_top(faiss, queries, gallery, k))
    return _by_id_where_equal(*_torch_top(queries, gallery, k))


@cache
def faiss_library() -> ModuleType | None:
    """FAISS, or None where it is not installed."""
    with warnings.catch_warnings():
        # SWIG's generated types name no module, of which Python 3.12 and later complain on import.
        warnings.filterwarnings("ignore", message=".*[Ss]wig.*", category=DeprecationWarning)
        try:
            return importlib.import_module("faiss")
        except (ImportError, RuntimeError):  # RuntimeError: a CUDA wheel that misses its libraries
            return None


def _faiss_serves(faiss: ModuleType, device: torch.device, k: int) -> bool:
    """Whether this FAISS can search on `device`; a CPU build must not pull tensors off a GPU."""
    if device.type == "cuda":
        return k <= FAISS_GPU_MAX_K and bool(faiss.get_num_gpus())
    return device.type == "cpu"


def _faiss_top(faiss: ModuleType, queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Top k of (Q, E) against (G, E) by a flat FAISS index, as scores and ids (Q, k)."""
    index: Any = faiss.IndexFlatIP(gallery.shape[1])
    if queries.device.type == "cuda":
        number = queries.device.index or 0
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), number, index)
    index.add(gallery.cpu().numpy())
    scores, ids = index.search(queries.cpu().numpy(), k)
    return torch.from_numpy(scores).to(queries.device), torch.from_numpy(ids).to(queries.device)


def _torch_top(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Top k of (Q, E) against (G, E) by blocked matrix products, as scores and ids (Q, k)."""
    rows = max(1, HELD_SCORES // len(gallery))
    with full_precision(queries.device):
        lists = [(block @ gallery.T).topk(k, dim=1) for block in torch.split(queries, rows)]
    return torch.cat([top.values for top in lists]), torch.cat([top.indices for top in lists])


def _by_id_where_equal(scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Reorder lists (Q, k) by descending score, then by ascending id."""
    ids, order = ids.sort(dim=1)
    scores, by_score = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores, ids.gather(1, by_score)
