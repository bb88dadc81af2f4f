"""Which attribution method should be believed on this model?  Methods, metrics and data in one study."""
