"""The HTTP API: requests from outside (border), the queue that runs them (scheduler), and what is
served (jobs, openai)."""
