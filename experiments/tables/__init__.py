"""The tables and pictures of README and docs, made of records."""
