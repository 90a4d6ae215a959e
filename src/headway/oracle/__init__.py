"""What could be done at best: an oracle that knows the future, and a bound nobody can pass."""
