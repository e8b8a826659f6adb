"""What a preparation's configuration is asked before torch is imported."""

from omegaconf import DictConfig, OmegaConf

from datamodules.corpus.data_sets import require_dataset
from experiments.cli.signatures import of_source
from experiments.cli.targets import check_settings, check_written
from experiments.preparation.second_round import check_second_round
from experiments.preparation.settings import OF_STAGES, PrepareSettings
from experiments.settings.encoders import SPECS
from retriever.errors import InputError
from retriever.typed import read_top


def check_first(config: DictConfig) -> None:
    """Refuse what is wrong in a preparation's configuration, as far as that shows within a second.

    Raises:
        InputError: with the setting, its value and what to do.
    """
    for key in config:
        if OmegaConf.is_missing(config, key):
            raise InputError(f"{key} has no default, and is not set: say {key}=….")
    check_written(config, SPECS)
    settings = read_top(PrepareSettings, config)
    for section, stage in OF_STAGES.items():
        signature = of_source(stage)
        if signature is not None:
            plain = OmegaConf.to_container(config[section], resolve=True, throw_on_missing=False)
            check_settings(section, plain, signature)
    require_dataset(settings.corpus, settings.data_dir)
    check_second_round(settings, config.encoder.get("trust_remote_code", False))
