"""The one model: its modules (gpt), fused operations (ops), wiring as a table, rotary positions, and what it will
weigh.

Not here: names of other people's weights (`families`), training, export.
"""
