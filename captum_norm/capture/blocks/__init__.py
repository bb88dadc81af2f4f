"""Reading the block around an attention call: what it is added to, and the norms before and behind."""
