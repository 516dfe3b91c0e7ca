"""``python -m m2chat.worlds.emoji``: builds the pictures, pretrains the pocket backbones."""

from __future__ import annotations

from m2chat.worlds.emoji.command import main

if __name__ == "__main__":
    main()
