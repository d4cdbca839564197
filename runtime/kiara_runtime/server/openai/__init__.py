"""OpenAI's formats: requests, responses, and the pieces of a sequence as choices."""
