"""Settings: a documented field is schema, YAML key and help text at once; files, environment and `--set` in layers.

Imports no PyTorch, so that `kiara config` and `kiara prepare` start at once.
"""
