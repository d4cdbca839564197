"""What a checkpoint is worth in PyTorch, and the reference that bundles are compared with.

The figures are `kiara_runtime.verify.scoring`'s.
"""
