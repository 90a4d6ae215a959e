"""Output lengths learnt from what was served."""
