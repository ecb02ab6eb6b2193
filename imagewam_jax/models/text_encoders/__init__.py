"""Networks and tokenizers that make features of text; `policies.text` has them by name."""
