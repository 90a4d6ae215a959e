"""What published rules are composed of, and a planner of such parts; the default needs none."""
