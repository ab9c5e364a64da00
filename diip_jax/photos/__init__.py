"""The command's work on photos: find, plan, run, tell."""
