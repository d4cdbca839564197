"""What a graph is worth: paths that must agree, the one scorer, evaluation of a text, speed. What `evaluate`, `bench`,
`verify --deep` and the exporter's receipts share.

Nothing here changes a bundle.
"""
