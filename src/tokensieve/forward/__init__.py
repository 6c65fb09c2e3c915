"""The forward pass of a sieved model: begin with `token_stream.py`."""
