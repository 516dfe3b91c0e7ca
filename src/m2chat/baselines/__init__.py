"""The rows beside M²Chat in Tables 1 and 2, a folder each; each has a `module` with its LightningModule."""
