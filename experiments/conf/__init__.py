"""The configuration files; a package, so that they are installed and Hydra finds them."""
