"""The folder that ships: its manifest and hashes, its variants, its graph files as bytes, its signature.

Independent of `tokens` and `engine`: a bundle can be checked without either.
"""
