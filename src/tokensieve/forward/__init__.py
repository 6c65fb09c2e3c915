"""The forward pass of a sieved model: start reading in `token_stream.py`."""
