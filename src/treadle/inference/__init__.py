"""Serving a compiled plan: requests, scheduling, state, execution, sampling. `llm.LLM` is the public door."""
