"""The emoji world: pictures of three open sets with names and keywords that people wrote."""
