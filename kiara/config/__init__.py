"""Settings: each documented field defines its schema, YAML key and help text; values come from layers of sources.

Imports no PyTorch, so that `kiara config` and `kiara prepare` start quickly.
"""
