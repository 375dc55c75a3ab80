"""Tiny random checkpoints as folders, and the pixels that go through them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "dog",
    "cat",
    "runs",
    "on",
    "the",
    "beach",
    "sleeps",
    ",",
    ".",
]
CLS, SEP = 2, 3
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": CLS,
    "eos_token_id": SEP,
}
PROCESSOR = {
    "size": {"height": 32, "width": 32},
    "do_center_crop": False,
    "resample": 3,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def save(architecture: str, config: Any, folder: Path, **processor: Any) -> Any:
    """A random model as a checkpoint with an image processor and a tokenizer beside it."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config).eval()
    for parameter in model.parameters():
        # Bigger than the initialisation, so that a wrong mask or prefix shows.
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | processor))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return model


def normalised(pixels: np.ndarray = PIXELS) -> torch.Tensor:
    """Pixels (B, H, W, 3) as a model takes them, (B, 3, H, W)."""
    mean, std = torch.tensor(PROCESSOR["image_mean"]), torch.tensor(PROCESSOR["image_std"])
    return ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)


PRECISIONS = ["float32", "bfloat16"]


def precision(dtype: str) -> Any:
    """The precision of a direct forward pass, as a user of torch would ask for it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def near(found: torch.Tensor, expected: torch.Tensor, dtype: str) -> None:
    """Equal but for the order of sums: bfloat16 has eight bits."""
    assert found.dtype == torch.float32
    expected = expected.detach().float()
    if dtype == "float32":
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    else:
        assert found.shape == expected.shape
        assert (found - expected).norm() < 0.02 * expected.norm()
