"""OpenAI's Responses API: requests, responses and events, and the conversations that are kept in memory."""
