"""Published rivals, and ``slack``, the default before; see ``docs/rivals.md``."""
