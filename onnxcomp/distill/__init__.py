"""Training a compressed model: the client side, which never imports the training runtime, and its worker process."""
