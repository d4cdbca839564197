"""Text that a JSON schema, a regular expression or a Lark grammar allows, through llguidance, an extra.

constraint compiles a grammar and follows it; schema and its neighbours turn a JSON Schema into one that means the same.
"""
