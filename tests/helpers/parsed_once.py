"""What a process parses again at each composing and checking is parsed once, where this is imported.

Interpolations, files of YAML by their text, overrides by theirs, what a class of a library or of the project takes:
half of what it takes to compose and check a configuration, which most tests do, and some a hundred times. Nodes are
copied without a look at what is never there.
"""

import copy
import pickle
from collections import defaultdict
from functools import cache, lru_cache
from types import SimpleNamespace

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import _utils, base, omegaconf
from omegaconf.resolvers import oc

from experiments.cli import targets

for module in (_utils, base, oc):  # nobody changes a parse tree
    module.parse = lru_cache(maxsize=10_000)(module.parse)

_utils.is_attr_class = lambda _: False  # nobody has classes of attrs here


def _copied(self, memo):
    """Metadata of a node: of types, which are no copies, and a mapping of flags."""
    made = object.__new__(type(self))
    made.__dict__.update(self.__dict__)
    made.flags = self.flags and dict(self.flags)
    made.resolver_cache = copy.deepcopy(self.resolver_cache, memo) if self.resolver_cache else defaultdict(dict)
    return made


base.Metadata.__deepcopy__ = _copied
_utils.get_yaml_loader = cache(_utils.get_yaml_loader)
_texts: dict[str, bytes] = {}


def _load(stream, Loader):
    text = stream if isinstance(stream, str) else stream.read()
    if text not in _texts:
        if not isinstance(stream, str):
            stream.seek(0)  # not the text: what is wrong with a file is said with its name
        _texts[text] = pickle.dumps(yaml.load(stream, Loader=Loader))
    return pickle.loads(_texts[text])


omegaconf.yaml = SimpleNamespace(load=_load, dump=yaml.dump)
_parse = lru_cache(maxsize=10_000)(OverridesParser.parse_rule)
_parser = OverridesParser.create()
OverridesParser.parse_rule = lambda _, *rule: copy.copy(_parse(_parser, *rule))


def _once(signature_of, home):
    """Tests write modules of their own, and write them again: what is in those is read each time."""
    known = cache(signature_of)
    return lambda of: known(of) if home(of).startswith(_FIXED) else signature_of(of)


_FIXED = ("retriever.", "datamodules.", "callbacks.", "lightning.", "torch.")
targets.of_source = _once(targets.of_source, str)
targets.of_object = _once(targets.of_object, lambda of: f"{getattr(of, '__module__', '')}.")
