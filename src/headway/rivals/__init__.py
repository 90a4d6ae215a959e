"""The rules of published rivals that no preset of our own needs; see ``docs/rivals.md``."""
