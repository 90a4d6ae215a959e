"""CacheOPT (arXiv 2503.13773): the parts that only its faithful preset needs."""
