"""OpenAI's formats: what requests may hold, what responses are, and a sequence's pieces as choices."""
