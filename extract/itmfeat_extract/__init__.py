"""The one-time extractor: images and captions in, a cache of frozen features out."""
