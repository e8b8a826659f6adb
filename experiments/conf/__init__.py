"""The configuration files; a package, so that they are installed and Hydra finds them."""

from pathlib import Path

CONF = Path(__file__).parent
