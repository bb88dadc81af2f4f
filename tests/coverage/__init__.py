"""Every model type of transformers, built tiny, run while recording, and proved."""
