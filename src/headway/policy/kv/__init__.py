"""Who holds KV cache now, and who will need it when."""
