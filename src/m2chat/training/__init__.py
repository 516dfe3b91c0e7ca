"""Training: the two stages as LightningModules, and what they need to run, stop and go on."""
