"""Ollama's API, which many desktop programs speak: chat, generate, and what they ask about the model."""
