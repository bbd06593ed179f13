"""Prefill and decode on engines of their own: pages are reserved, computed elsewhere, pushed, and taken over."""
