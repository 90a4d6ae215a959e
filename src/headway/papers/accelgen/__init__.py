"""AccelGen's rules (arXiv 2503.13737), each a part of its own; see its README."""
