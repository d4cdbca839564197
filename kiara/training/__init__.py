"""The loop over steps, its optimizers, its machine, and the files of a run."""
