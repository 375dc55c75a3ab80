"""Text transformers of the transformers library: one `Family` for each `config.model_type`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from itmfeat.errors import DataError, reason_of, unknown
from itmfeat_extract.backbones import hub
from itmfeat_extract.backbones.base import Encoded, Fingerprint, Reading, Tokenized
from itmfeat_extract.backbones.placement import Placement, readable
from itmfeat_extract.backbones.view import Layers

CPU_STEP = 16  # captions that a core computes at once
SPELT = 4  # letters from which a word of hardly more letters than tokens counts as unknown


@dataclass(frozen=True)
class Family:
    """How to load the text encoder of a model type and to read its answer.

    `pooled` is an attribute of the answer, or the mean over a caption's tokens: the poolers of BERT's family
    are trained for another task, or not at all.
    """

    architecture: str
    pooled: Literal["mean", "text_embeds", "pooler_output"] = "mean"
    projection: str | None = None  # a weight that a checkpoint may lack: then nothing is pooled
    with_pooler: bool = True  # False: the class takes add_pooling_layer=False
    padded_positions: bool = False  # positions count from the padding id, so the table is longer
    fixed: bool = False  # trained on captions padded to full length, without a mask
    lower: bool = False  # trained on lower case, whatever its tokenizer does


BERT = Family("BertModel", with_pooler=False)
CLIP = Family("CLIPTextModelWithProjection", "text_embeds", "text_projection.weight")
SIGLIP = Family("SiglipTextModel", "pooler_output", fixed=True, lower=True)
SIGLIP2 = Family("Siglip2TextModel", "pooler_output", fixed=True, lower=True)

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": Family("RobertaModel", with_pooler=False, padded_positions=True),
    "mpnet": Family("MPNetModel", with_pooler=False, padded_positions=True),
    "distilbert": Family("DistilBertModel"),
    "electra": Family("ElectraModel"),
    "modernbert": Family("ModernBertModel"),
    "clip": CLIP,
    "clip_text_model": CLIP,
    "siglip": SIGLIP,
    "siglip_text_model": SIGLIP,
    "siglip2": SIGLIP2,
    "siglip2_text_model": SIGLIP2,
}


@dataclass(frozen=True, eq=False)
class TransformersText:
    """A text transformer, seen as a sequence of tokens; special tokens are kept, padding is not."""

    name: str
    origin: Fingerprint  # the checkpoint's
    vocabulary: str  # sha256 of the tokenizer's files
    placement: Placement
    model: Any
    tokenizer: Any
    family: Family
    pooled: str  # "none" where the checkpoint lacks the projection
    layers: Layers
    max_length: int
    dim: int = 0
    pooled_dim: int = 0

    @property
    def pad_id(self) -> int:
        """The id to pad with; 0 where the tokenizer names none and a mask hides it anyway."""
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def pad_to(self) -> int | None:
        """The full length for models without a mask."""
        return self.max_length if self.family.fixed else None

    def tokenize(self, captions: list[str]) -> Tokenized:
        """Ids with special tokens, at most `max_length` a caption."""
        if self.family.lower:
            captions = [caption.lower() for caption in captions]
        ids = self._ids(captions)
        long = [row for row, each in enumerate(ids) if len(each) > self.max_length]
        # A cut tokenizer keeps the special tokens at the end, which cutting here would lose.
        short = self._ids([captions[row] for row in long], max_length=self.max_length)
        for row, each in zip(long, short, strict=True):
            ids[row] = each
        return Tokenized(ids, len(long))

    def read(self, sentence: str) -> Reading:
        """How many tokens and words a sentence has, and which words the tokenizer does not know."""
        sentence = sentence.lower() if self.family.lower else sentence
        if not self.tokenizer.is_fast:  # a slow one does not tell which letters a token is of
            return Reading(len(self._ids([sentence])[0]), len(sentence.split()), [])
        found = self.tokenizer(sentence, return_offsets_mapping=True, verbose=False)
        words: dict[int, list[int]] = {}  # the tokens of each word; special ones belong to none
        for token, word in enumerate(found.word_ids()):
            if word is not None:
                words.setdefault(word, []).append(token)
        unknown = []
        for tokens in words.values():
            start, end = found["offset_mapping"][tokens[0]][0], found["offset_mapping"][tokens[-1]][1]
            lost = any(found["input_ids"][token] == self.tokenizer.unk_token_id for token in tokens)
            # Of a script that the tokenizer was not made for, some letters are known, and no word.
            if lost or (end - start >= SPELT and 3 * len(tokens) >= 2 * (end - start)):
                unknown.append(sentence[start:end].strip())
        return Reading(len(found["input_ids"]), len(words), unknown)

    def encode(self, ids: Tensor, lengths: Tensor) -> Encoded:
        """Ids (B, L) in int64, padded with `pad_id`, lengths (B,) -> vectors (B, L, D), pooled (B, P)."""
        return self.placement.encode(self._encode, CPU_STEP, ids, lengths)

    @torch.inference_mode()
    def _encode(self, ids: Tensor, lengths: Tensor) -> Encoded:
        """As `encode`, in one forward pass over no more padding than these captions need."""
        padded, needed = ids.shape[1], self.pad_to or int(lengths.max())
        ids = F.pad(ids, (0, needed - padded), value=self.pad_id)  # cuts where negative
        ids, lengths = ids.to(self.placement.device), lengths.to(self.placement.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # (B, L)
        with self.placement.autocast():
            answer = self.model(
                input_ids=ids,
                attention_mask=None if self.family.fixed else mask.long(),
                output_hidden_states=not self.layers.last,
            )
        vectors = self.layers.of(answer.get("hidden_states"), answer.last_hidden_state)
        pooled = self._pooled(answer, vectors, mask)
        return Encoded(readable(F.pad(vectors, (0, 0, 0, padded - needed))), pooled)

    def fingerprint(self) -> Fingerprint:
        """Weights, tokenizer and precision."""
        return {
            **self.origin,
            "tokenizer": self.vocabulary,
            "architecture": type(self.model).__name__,
            "layer": self.layers.described,
            "pooled": self.pooled,
            "dtype": self.placement.dtype_name,
            "max_length": self.max_length,
            "case": "lower" if self.family.lower else "as its tokenizer does",
        }

    def measured(self) -> TransformersText:
        """With the sizes that a caption shows."""
        ids = torch.tensor(self._ids(["a"]))
        seen = self._encode(ids, torch.tensor([ids.shape[1]]))
        return replace(
            self, dim=seen.vectors.shape[2], pooled_dim=0 if seen.pooled is None else seen.pooled.shape[1]
        )

    def _ids(self, captions: list[str], max_length: int | None = None) -> list[list[int]]:
        if not captions:
            return []
        try:  # verbose=False: a caption beyond the model's length is counted here, not warned of
            encoded = self.tokenizer(
                captions, truncation=max_length is not None, max_length=max_length, verbose=False
            )
        except Exception as error:  # of a damaged vocabulary the library raises no type of its own
            raise DataError(f"the tokenizer of {self.name} fails: {reason_of(error)}") from error
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _pooled(self, answer: Any, vectors: Tensor, mask: Tensor) -> Tensor | None:
        """The answer, its vectors (B, L, D) and the tokens' mask (B, L) -> (B, P), or None."""
        if self.pooled == "none":
            return None
        if self.pooled != "mean":
            return readable(answer[self.pooled])
        weight = (mask / mask.sum(1, keepdim=True)).unsqueeze(1).to(vectors.dtype)  # (B, 1, L)
        return readable((weight @ vectors).squeeze(1))


def load(checkpoint: hub.Checkpoint, placement: Placement, layers: Layers) -> TransformersText:
    """The text encoder of a checkpoint, also of one that holds a vision encoder beside it."""
    folder, model_type = checkpoint.folder, checkpoint.model_type
    family = FAMILIES.get(model_type)
    if family is None:
        raise unknown(f"text model type (of {checkpoint.name})", model_type, list(FAMILIES))
    tokenizer = hub.load_tokenizer(folder)
    options = {} if family.with_pooler else {"add_pooling_layer": False}
    optional = [family.projection] if family.projection else []
    model, missing = hub.load_model(family.architecture, folder, optional, **options)
    config = model.config
    backbone = TransformersText(
        checkpoint.name,
        checkpoint.fingerprint(),
        hub.digest([folder / file for file in hub.TOKENIZER_FILES if (folder / file).is_file()]),
        placement,
        placement.ready(model, dynamic=not family.fixed),
        tokenizer,
        family,
        "none" if missing else family.pooled,
        layers,
        _max_length(tokenizer, family, config),
    )
    return backbone.measured()


def _max_length(tokenizer: Any, family: Family, config: Any) -> int:
    positions = int(config.max_position_embeddings)
    if family.padded_positions:
        positions -= config.pad_token_id + 1
    # A tokenizer without a limit says some 1e30.
    return min(positions, int(tokenizer.model_max_length))
