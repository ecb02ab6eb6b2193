"""Instructions: tokenizers and encoders, and tables of what an encoder made of them."""
