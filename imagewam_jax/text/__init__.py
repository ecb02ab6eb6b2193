"""Instructions: tokenizers and encoders, and tables of the features that encoders make."""
