"""Our own discrete-event engine: the iteration is the event."""
