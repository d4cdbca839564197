"""Output constrained by a JSON Schema, a regular expression or a Lark grammar, through llguidance, an extra.

`constraint` compiles a grammar and follows it; `schema` and its helper modules rewrite a JSON Schema so that llguidance
reads it as it is meant.
"""
