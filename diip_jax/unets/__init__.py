"""The noise-predicting UNets whose public checkpoints serve as priors."""
