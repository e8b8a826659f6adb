"""Mix tuned weights with their base model's, as dev lists choose: python -m experiments.mix RUN … --output FOLDER.

Several runs, which differ in their seed, say, are averaged first. Test queries are not looked at: what came of it says
python -m experiments.evaluate RUN FOLDER sets=….
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from callbacks.reliability.termination import terminate_gracefully
from callbacks.reporting.markdown import markdown_text
from callbacks.reporting.results import RESULTS, read_results
from datamodules.storage.files import read_json, write_json, write_text
from experiments.cli.errors import KindParser
from experiments.cli.quiet import quiet_imports, quiet_training
from experiments.cli.rerun import read_run, save_config
from experiments.settings.finished_runs import exported_results
from retriever.errors import InputError
from retriever.printable import printable

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    Weights = dict[str, Tensor]

SHARES = (0.25, 0.5, 0.75, 1.0)


def mix(folders: Sequence[Path], output: Path, shares: Sequence[float] = SHARES) -> dict[float, float]:
    """Mix the weights of runs' exported models with their base model's, and keep the mixture that dev lists choose.

    The weights are (1 − share) · base + share · mean of the tuned ones (Wortsman et al. 2022, arXiv 2109.01903 and
    2203.05482). Share 0, the base model, is always tried; of equal mixtures the nearest to it is kept.

    Args:
        folders: finished runs of one base model; data, objective and criterion are those of the first.
        output: the new folder, which ``experiments.evaluate`` takes as it takes a run's.
        shares: of the tuned weights, each in (0, 1].

    Returns:
        Share → the criterion.

    Raises:
        InputError: a run is not finished, exported no model, or has another base model; or a wrong share.
    """
    if not shares or not all(0 < share <= 1 for share in shares):
        raise InputError(f"--shares is {list(shares)}; each must be above 0 and at most 1.")
    if output.exists():
        raise InputError(f"{output} is there already. Name a new folder with --output.")
    config = _config(folders)
    with quiet_imports():
        import torch
        from hydra.utils import instantiate

        from experiments.training.train import make_module_and_data
        from retriever.encoder import TextEncoder

    quiet_training()
    module, data = make_module_and_data(config)
    encoder = module.encoder
    if encoder.projection is not None:
        raise InputError(
            f"{folders[0]}: a run whose encoder was projected to its guide's dimensions: there is no base model to mix "
            "with."
        )
    base = {name: value.clone() for name, value in encoder.state_dict().items()}
    of_runs = [TextEncoder.from_pretrained(str(folder / "model")).state_dict() for folder in folders]
    tuned = {name: torch.stack([of[name].double() for of in of_runs]).mean(0) for name in base}
    trainer = instantiate(config.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    found: dict[float, float] = {}
    for share in (0.0, *sorted(set(shares))):
        encoder.load_state_dict(_mixed(base, tuned, share))
        trainer.validate(module, datamodule=data, verbose=False)
        if config.criterion not in trainer.callback_metrics:
            raise InputError(f"The runs' criterion is {config.criterion}, which dev lists do not give.")
        found[share] = float(trainer.callback_metrics[config.criterion])
    best = _best(found, config.criterion_mode)
    encoder.load_state_dict(_mixed(base, tuned, best))
    _write(output, folders, config, encoder, found, best)
    return found


def _mixed(base: "Weights", tuned: "Weights", share: float) -> "Weights":
    """In double precision, rounded once; whole numbers, as positions are, stay the base model's."""
    floating = {name for name, value in base.items() if value.is_floating_point()}
    return base | {n: ((1 - share) * base[n].double() + share * tuned[n]).to(base[n].dtype) for n in floating}


def _best(found: dict[float, float], mode: str) -> float:
    sign = 1 if mode == "min" else -1
    return min(found, key=lambda share: (sign * found[share], share))


def _config(folders: Sequence[Path]) -> "DictConfig":
    """The first run's configuration, as far as dev lists need it; all runs must have one base model."""
    bases = set()
    for folder in folders:
        exported_results(folder)
        config = read_run(folder)
        if config.get("passage_encoder"):
            raise InputError(
                f"{folder}: a run with a passage_encoder, whose query side began in another space than the passages': "
                "there is no base model to mix with."
            )
        # a seed draws adapters, which are among the weights that a run began with
        bases.add(str(config.encoder) if config.encoder.lora else read_json(folder / "environment.json").get("weights"))
    if len(bases) > 1:
        raise InputError(f"These runs have {len(bases)} different base models; weights of one alone can be mixed.")
    config = read_run(folders[0])
    del config["hydra"]
    config.encoder.lora = config.encoder.trainable_layers = None  # the exported weights hold what adapters learned
    return config


def _write(
    output: Path, folders: Sequence[Path], config: "DictConfig", encoder, found: dict[float, float], best: float
) -> None:
    """Write the folder under another name first, so that it is whole or not there."""
    first = read_results(folders[0]) or {}
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    encoder.save(temporary / "model")
    names = ", ".join(markdown_text(folder.resolve().name) for folder in folders)  # no place: a card may be shared
    of = f"{best:g} of the mean weights of {names}, and {1 - best:g} of their base model's"
    card = f"# A mixture of weights\n\n{of}; chosen on dev lists by {config.criterion}.\n"
    write_text(temporary / "model" / "README.md", card)
    save_config(config, temporary)
    write_json(temporary / "mix.json", {"runs": list(map(str, folders)), "share": best, config.criterion: found})
    results = {"name": f"mix of {first['name']}", "seed": first["seed"], "steps": {"best": 0}, "datasets": {}}
    write_json(temporary / RESULTS, results)
    temporary.rename(output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = KindParser(prog="python -m experiments.mix", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs of one base model")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="a new folder")
    of_shares = "of the tuned weights, to choose from (default: %(default)s)"
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), metavar="SHARE", help=of_shares)
    options: argparse.Namespace = parser.parse_args(arguments)
    terminate_gracefully()
    try:
        found = mix(options.runs, options.output, options.shares)
    except InputError as error:
        sys.exit(printable(f"error: {error}"))
    kept = read_json(options.output / "mix.json")["share"]
    table = Table(Column("share of the tuned weights", justify="right"), Column("criterion", justify="right"), "")
    for share, value in found.items():
        table.add_row(f"{share:g}", f"{value:.5f}", "kept" if share == kept else "")
    Console().print(table)
    print(printable(f"python -m experiments.evaluate {options.runs[0]} {options.output} sets=…"))


if __name__ == "__main__":
    main()
