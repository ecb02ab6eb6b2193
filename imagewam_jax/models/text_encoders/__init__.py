"""Networks and tokenizers that make features of text; `text.encoders` has them by name."""
