"""From raw observations to what the model takes: the same for training and for acting."""
