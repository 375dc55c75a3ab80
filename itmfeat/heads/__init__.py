"""Light heads: cached vectors of one modality -> embeddings of K runs."""

from itmfeat.heads.head import Head, input_statistics

__all__ = ["Head", "input_statistics"]
