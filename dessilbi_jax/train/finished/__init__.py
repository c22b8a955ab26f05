"""What is done with a finished run: a ticket taken, retrained, made slim, measured."""
