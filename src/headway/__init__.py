"""Headway: an SLO-aware scheduler for LLM servers. It keeps tokens on schedule."""

__version__ = "0.2.0"
