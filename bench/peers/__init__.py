"""One small program each."""
