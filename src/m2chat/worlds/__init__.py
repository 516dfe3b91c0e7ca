"""Generated worlds, a folder each; `m2chat.world.find_world` finds them by name, and nothing imports them."""
