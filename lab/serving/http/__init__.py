"""The loop behind OpenAI's HTTP interface: its questions, its answers, a thread for the loop, metrics, a live page."""
