"""How Hugging Face's families spell the one model: a file each, registry reads and writes through them.

A new family is a file here, and at most new fields in `kiara.config.model`.
"""
