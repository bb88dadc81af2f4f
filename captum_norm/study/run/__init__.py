"""How a study is run: batch by batch, into a store that survives a kill, in one process or several."""
