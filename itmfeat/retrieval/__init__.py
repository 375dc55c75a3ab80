"""From embeddings to recalls: search, exact ranks, and the protocols that a table is read by.

Letters in shapes: N images, C captions, E embedding dim, Q queries, G gallery. Similarity is the
inner product, so embeddings are expected normalised, as the heads give them.

**Ranks are exact.** They equal a stable descending argsort of the similarity matrix: of two equal
scores the lower gallery index comes first, wherever the positive stands. A head that maps all to
one point therefore scores chance (rSum 2.0 for 1000 images of five captions), never 100; and a NaN
counts as ahead of every positive, so a diverged head ranks last.

**Where FAISS is used, and where not.** `search` is FAISS. `ranks` is not: both directions need the
same N x C products, which one pass shares, while FAISS multiplies once for each direction before it
keeps its lists. Measured in one run on two busy CPU cores, in matrix products of that size (5000 x
25000 x 1024, then 1000 x 5000 x 512): the pass takes 1.5 and 1.7, MedR and MeanR included; the two
searches take 2.7 and 6.2 at k = 10, 6.7 and 22 at k = 1000, and leave queries still to be counted
(tests/benchmarks/bench_retrieval.py --faiss).

COCO 5K with its five folds (both directions, all metrics, 1024-d) took 1.25 products in CPU seconds of
one thread and at most 719 MB above the embeddings; the loops that sort each query's scores took 5.8.
"""

from itmfeat.retrieval.kept import RANKS_FILE, Queries, from_tensors, queries_of, to_tensors
from itmfeat.retrieval.nearest import faiss_library, search
from itmfeat.retrieval.protocols import PROTOCOLS, Recalls, Results, Standard, evaluate, results
from itmfeat.retrieval.ranking import Ranks, first, ranks
from itmfeat.retrieval.relevance import Precision, Relevance, precision_at_r
from itmfeat.retrieval.splits import evaluate_split
from itmfeat.retrieval.uncertainty import intervals

__all__ = [
    "PROTOCOLS",
    "RANKS_FILE",
    "Precision",
    "Queries",
    "Ranks",
    "Recalls",
    "Relevance",
    "Results",
    "Standard",
    "evaluate",
    "evaluate_split",
    "faiss_library",
    "first",
    "from_tensors",
    "intervals",
    "precision_at_r",
    "queries_of",
    "ranks",
    "results",
    "search",
    "to_tensors",
]
