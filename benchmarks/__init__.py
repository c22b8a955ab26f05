"""One file a question; results stand beside them in `results/`, with the command that made them."""
