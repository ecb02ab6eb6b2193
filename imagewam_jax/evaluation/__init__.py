"""Evaluation: closed loop in simulators and open loop on recorded episodes."""
