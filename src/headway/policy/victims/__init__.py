"""Who loses its KV: the order CacheOPT gives, and the set that costs the least goodput."""
