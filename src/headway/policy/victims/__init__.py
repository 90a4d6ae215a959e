"""Who loses its KV, by CacheOPT's order."""
