"""Anthropic's Messages API: requests, responses and events, over the same engine as OpenAI's formats."""
