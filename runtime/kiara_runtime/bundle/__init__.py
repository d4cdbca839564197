"""The folder that ships: its manifest and hashes, its variants, its graph files as bytes, its signature.

Text (`tokens`) and computation (`engine`) are not here: a bundle can be checked without either.
"""
