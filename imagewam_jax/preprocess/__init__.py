"""From raw data to the inputs of the model, the same for training and acting: see `inputs`."""
