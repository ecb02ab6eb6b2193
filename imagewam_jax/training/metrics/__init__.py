"""What a run records while it trains: metrics, speed, the account of its time, profiler traces."""
