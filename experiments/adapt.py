"""From a folder of texts to a tuned retriever, and whether it is better: python -m experiments.adapt corpus=FOLDER.

What it does is said first. Its parts are the commands prepare, run and compare, and go on where they were cut off.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from datamodules.storage.files import read_json, write_json, write_text
from experiments.adaptation.settings import LISTS, RUNS, AdaptSettings, are_written, arguments, write_experiments
from experiments.adaptation.survey import HUMAN, survey
from experiments.adaptation.texts import BEGUN, content_hash, corpus_folder
from experiments.cli.alone import alone_in
from experiments.cli.arguments import check_added, say_what_is_kept
from experiments.cli.errors import run_kindly, single
from experiments.cli.quiet import quiet_imports
from experiments.cli.subjects import print_subjects
from experiments.cli.targets import check_written
from experiments.conf import CONF
from experiments.settings.common import PrecisionName
from experiments.settings.encoders import SPECS
from experiments.settings.precision import AUTO
from retriever.errors import InputError, choose
from retriever.printable import printable
from retriever.typed import read_top

log = logging.getLogger(__name__)


def plan_adaptation(config: DictConfig, choices: dict[str, str], typed: Sequence[str], folder: Path) -> AdaptSettings:
    """Decide what is done, say it, and write the experiment files; where an earlier start has, theirs count.

    Args:
        config: as composed from ``experiments/conf/adapt.yaml``.
        choices: of Hydra: group → file.
        typed: overrides of the command line.
        folder: of the adaptation.

    Raises:
        InputError: a wrong setting, no corpus, or too little time.
    """
    stated = OmegaConf.to_container(config, resolve=True)
    asked = read_top(AdaptSettings, stated)
    for name in asked.objectives:
        choose("objectives: an objective", name, sorted(p.stem for p in (CONF / "module").glob("[!_]*.yaml")))
    check_written(config, SPECS)
    del stated["plan"]
    stated["content of the corpus"] = content_hash(asked.corpus, asked.data_dir)
    if are_written(folder):
        print_subjects(_begun(folder, stated)["plan"])
        log.info("It goes on by the settings in %s", folder / "settings")
        return asked
    source = corpus_folder(asked.corpus, asked.text, folder / "corpus", asked.data_dir)
    named = str(source) if folder in source.parents else asked.corpus
    with quiet_imports():
        import torch
        from hydra.utils import instantiate
        from transformers.utils.logging import disable_progress_bar

        from datamodules.precision import Precision, fastest_precision
        from experiments.adaptation.decide import decide, lines
        from experiments.adaptation.estimate import measured_speed
        from retriever.encoder.encoding import device_of
        from retriever.encoder.precision import autocast, cpu_name

    disable_progress_bar()
    found = survey(source, asked.split, asked.cache_dir)
    gpu = torch.cuda.is_available()
    encoder = instantiate(config.encoder).to("cuda" if gpu else "cpu").eval()
    precision = Precision(asked.precision)
    if asked.precision == AUTO:
        precision = fastest_precision(encoder, device_of(encoder), asked.cache_dir)
    with autocast(precision.name, device_of(encoder)):
        device = torch.cuda.get_device_name() if gpu else cpu_name()
        texts, model = (stated["content of the corpus"], asked.text), (stated["encoder"], encoder.fingerprint())
        what = [texts, model, precision.name, device, torch.get_num_threads()]
        plan = decide(asked, found, named, measured_speed(encoder, found, Path(asked.cache_dir) / "speeds.json", what))
    said = lines(plan, found, asked, encoder.name, folder) | {"precision": precision.said("precision")}
    print_subjects(said)
    if not asked.plan:
        human = found.split is not None or plan.decided.held_out == HUMAN
        write_json(folder / BEGUN, {"stated": stated, "plan": said, "corpus": str(source), "human": human})
        chosen = replace(asked, precision=cast(PrecisionName, precision.name))  # whichever machine goes on
        write_experiments(folder, plan.decided, found, chosen, (choices["encoder"], _changed(config, typed)), gpu)
    return asked


def _begun(folder: Path, stated: dict[str, Any]) -> dict[str, Any]:
    """What a folder was begun with; other settings or another corpus are refused."""
    begun = read_json(folder / BEGUN)
    for key, value in stated.items():
        before = begun["stated"].get(key)
        if before != value:
            raise InputError(
                f"{folder} was begun with another {key} ({before}; now {value}). Say the same to go on with it, move "
                "it away, or name another folder: hydra.run.dir=…."
            )
    return begun


def conclude(folder: Path, asked: AdaptSettings) -> None:
    """Compare the runs, say what came of them, and write the page."""
    from experiments.adaptation.verdict import verdict
    from experiments.comparison.report import write_report
    from experiments.comparison.tables import compare

    comparison, last = (compare([folder / "runs"], which) for which in ("best", "last"))
    begun = read_json(folder / BEGUN)
    said = verdict(comparison, last, asked.objectives, begun["human"], Path(begun["corpus"]))
    files = write_report(comparison, folder, said)
    write_text(folder / "verdict.md", "\n\n".join(said) + "\n")
    print()
    for sentence in said:
        print(printable(sentence))
    print(printable(f"This verdict with tables, plots and queries: {files[0]}"))


def _changed(config: DictConfig, typed: Sequence[str]) -> dict[str, Any]:
    """What the command line says of the encoder beside the name of its file."""
    keys = {word.partition("=")[0].lstrip("+") for word in typed if word.lstrip("+").startswith("encoder.")}
    changed = OmegaConf.create({})
    for key in sorted(keys):
        OmegaConf.update(changed, key, OmegaConf.select(config, key), force_add=True)
    return OmegaConf.to_container(changed, resolve=True).get("encoder", {})


@hydra.main(version_base="1.3", config_path="conf", config_name="adapt")
@single
def application(config: DictConfig) -> None:
    """Plan; what follows is done by :func:`main`, outside of Hydra, for its parts are Hydra's applications."""
    state = HydraConfig.get()
    check_added(config, state, "adapt.yaml")
    say_what_is_kept(config, state.overrides.task)
    folder = Path(state.runtime.output_dir).absolute()
    asked = plan_adaptation(config, dict(state.runtime.choices), state.overrides.task, folder)
    _planned.append((folder, asked))


_planned: list[tuple[Path, AdaptSettings]] = []


def _call(command: Callable[[], None], name: str, typed: Sequence[str]) -> None:
    """Call a command as its user would."""
    print(printable(f"\npython -m experiments.{name} {' '.join(typed)}"), flush=True)
    sys.argv = [name, *typed]
    command()


def main() -> None:
    """The command."""
    run_kindly(application)
    if not _planned or _planned[-1][1].plan:  # --help, --cfg
        return
    from experiments import prepare, run

    folder, asked = _planned.pop()

    def carry_out() -> None:
        with alone_in(folder):
            _call(prepare.main, "prepare", arguments(folder, LISTS))
            _call(run.main, "run", arguments(folder, RUNS))
            conclude(folder, asked)

    run_kindly(carry_out)


if __name__ == "__main__":
    main()
