"""The training loop, its optimizers, the choice of device, and the files of a run."""
