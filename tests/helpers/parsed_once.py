"""OmegaConf parses an interpolation at each reading anew: where this is imported, the first time alone.

A third of what it takes to compose and check a configuration, which most tests do. Nobody changes a parse tree.
"""

from functools import lru_cache

from omegaconf import _utils, base
from omegaconf.resolvers import oc

for module in (_utils, base, oc):
    module.parse = lru_cache(maxsize=10_000)(module.parse)
