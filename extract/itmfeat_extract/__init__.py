"""The one-time extractor: images and captions in, a cache of frozen features out.

The way through it: `corpus` reads a dataset, `backbones` encode it, `pipeline` overlaps decoding, forward
passes and writing, `extraction` ties them together.
"""
