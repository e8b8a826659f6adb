"""Print the temperatures that fit files of query lists.

python -m experiments.prepare temperatures LISTS … [key=value …]

A run fits them itself where it is asked to (``temperatures=fitted``); here they can be looked at beforehand. Settings
are those of ``experiments.run``: ``encoder=bge_base``, ``data.list_length=50``, ``data.normalization=none``, and
``module=distillation_corpus`` for the teacher that scores the whole corpus.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from datamodules.corpus import find_file
from datamodules.query_lists import read_query_lists
from experiments.cli.errors import explain, is_for_users
from experiments.cli.quiet import quiet_imports, quiet_training
from experiments.conf import CONF
from experiments.plan.fitted import fitted_line
from experiments.settings.first_checks import check_first
from retriever.errors import InputError
from retriever.printable import printable

_SHOWN = 6  # query types that are named


def print_temperatures(words: Sequence[str]) -> None:
    """Fit both temperatures to files of lists, all of whose lists count, and print what comes out.

    Args:
        words: files, and settings of a run as ``key=value``; ``corpus=FOLDER`` names the lists' corpus where it is not
            found by the name that they give.

    Raises:
        InputError: no file, a wrong setting, or scores that allow no fit.
    """
    files = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    if not files:
        raise InputError("temperatures needs a file of query lists: prepare temperatures LISTS.parquet encoder=minilm.")
    types: Counter[str] = Counter()
    config = _config(files, settings, types)
    check_first(config)
    with quiet_imports():
        from experiments.training.precision import with_chosen_precision
        from experiments.training.temperatures import fit
        from experiments.training.train import make_module_and_data

    quiet_training()
    module, data = make_module_and_data(config)
    data.open(dev=False)
    config, _ = with_chosen_precision(config, module.encoder, "temperatures")
    found = fit(config, module, data)
    kinds = ", ".join(f"{name} {count:,}" for name, count in types.most_common(_SHOWN))
    teacher = "corpus_teacher" if found["whole_corpus"] else "teacher"
    fitted = {side: found[side]["temperature"] for side in ("teacher", "student")}
    print(printable(f"{', '.join(files)} ({kinds}); {config.encoder.model}"))
    print(fitted_line(found))
    for warning in found["warnings"]:
        print(f"Warning: {warning}")
    print(f"temperatures.{teacher}={fitted['teacher']:g} temperatures.student={fitted['student']:g}")


def _config(files: Sequence[str], settings: Sequence[str], types: Counter[str]) -> DictConfig:
    """A run's configuration on these files; their query types are counted."""
    named = [word.partition("=")[2] for word in settings if word.startswith("corpus=")]
    typed = [word for word in settings if not word.startswith("corpus=")]
    module = [] if any(word.startswith("module=") for word in typed) else ["module=distillation"]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(
                "run", ["data=lists", "evaluation=beir", *module, "module.train_passage_encoder=false", *typed]
            )
    except Exception as error:
        if is_for_users(error):
            raise InputError(explain(error)) from error
        raise
    train: list[dict[str, Any]] = []
    for file in files:
        lists = list(read_query_lists(find_file(file)))
        if not lists:
            raise InputError(f"{file}: no list in it.")
        types.update(each.query_type for each in lists)
        train.append({"path": file, "corpus": named[-1] if named else lists[0].corpus})
    with open_dict(config):
        config.name = config.name if "name" in {w.partition("=")[0] for w in typed} else "temperatures"
        config.data.train = train
        config.evaluation.datasets = []
        config.data.evaluation = []
    return OmegaConf.create(config)
