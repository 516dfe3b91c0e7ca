"""How the pocket backbones are pretrained on the emoji world; every part can be stopped and resumed."""
