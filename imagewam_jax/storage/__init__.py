"""Object storage: datasets, weights and runs at `gs://` and `s3://` addresses."""
