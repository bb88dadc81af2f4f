"""The same answers on another device; ``python -m tests.device``."""
