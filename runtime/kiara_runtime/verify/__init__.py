"""Measures a graph: agreement of its paths, the one scorer, evaluation of a text, speed. Shared by `evaluate`, `bench`,
`verify --deep` and the exporter's receipts.

Nothing here changes a bundle.
"""
